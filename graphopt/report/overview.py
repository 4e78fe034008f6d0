"""An Overview as tables, readable at 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from graphopt.pipeline.overview import GroupFacts, HoldFacts, Interface, Overview
from graphopt.report.folding import GroupFold, fold_groups
from graphopt.report.tables import plain_table, print_table
from graphopt.report.units import amount, megabytes, milliseconds, percent, share

_FROZEN_SHOWN, _REASONS_SHOWN, _LAYERS_SHOWN = 8, 2, 24
#: Of groups that only norms hold.
_ASKED = "only norms hold it; units go where averages may change: prune(roles=[heads,neurons,hidden])"


def print_overview(overview: Overview, console: Console, *, verbose: int = 0) -> None:
    """Interface, roles, layers, prunable groups, and groups that cannot be pruned with the reason.

    What repeats over layers is one line; with ``verbose`` every group has its own, with the weights it touches.
    """
    model = overview.model
    opset = ", ".join(f"{domain} {version}" for domain, version in overview.opset.items())
    console.print(f"[bold]{escape(model.path or 'model')}[/]", soft_wrap=True)
    size = megabytes(model.file_bytes or model.weight_bytes)
    console.print(f"{size}, {amount(model.parameters)} parameters, {model.nodes} nodes, opset {opset}", soft_wrap=True)
    for word, values in (("in ", overview.inputs), ("out", overview.outputs)):
        for value in values:
            console.print(f"  {word} {escape(_signature(value))}", soft_wrap=True)
    if overview.timing is not None:
        run = f"{milliseconds(1e3 * overview.timing.seconds)} ms a run at {', '.join(overview.timing.shapes)}"
        how = "node by node, without ONNX Runtime's own fusions"
        console.print(f"[dim]time: {escape(run)}, {how}[/]", soft_wrap=True)
    console.print()
    if overview.roles:
        _print_roles(overview, console)
    if overview.layers:
        _print_layers(overview, console, verbose)
    if overview.prunable:
        _print_prunable(overview, console, verbose)
    elif overview.stages:
        console.print("[bold]No group can be pruned[/]\n")
    if overview.frozen:
        _print_frozen(overview, console, verbose)
    if overview.unknown_ops:
        listed = ", ".join(f"{name} x{count}" for name, count in overview.unknown_ops.items())
        console.print(f"no axis rule, so what these touch stays: {escape(listed)}", soft_wrap=True)
    for note in overview.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)


def _print_roles(overview: Overview, console: Console) -> None:
    at = ", ".join(f"{name}={size}" for name, size in overview.macs_at.items())
    total = sum(role.parameters for role in overview.roles)
    work = sum(role.macs for role in overview.roles)
    timed = [">time"] if overview.timing is not None else []
    table = plain_table("role", ">nodes", ">parameters", ">share", ">bytes", ">MACs", ">share", *timed)
    for role in overview.roles:
        cells = (amount(role.parameters), share(role.parameters, total), megabytes(role.bytes))
        time = [percent(role.time_share)] if timed else []
        table.add_row(escape(role.role), str(role.nodes), *cells, amount(role.macs), share(role.macs, work), *time)
    print_table(console, "Parameters and work by role" + (f" (MACs at {escape(at)})" if at else ""), table)


def _print_layers(overview: Overview, console: Console, verbose: int) -> None:
    timed = [">time"] if overview.timing is not None else []
    table = plain_table(">layer", "blocks", ">parameters", *timed, "output")
    shown = overview.layers if verbose else overview.layers[:_LAYERS_SHOWN]
    for layer in shown:
        time = [percent(layer.time_share)] if timed else []
        table.add_row(str(layer.index), escape(layer.blocks), amount(layer.parameters), *time, escape(layer.output))
    more = f", the first {len(shown)} shown (-v shows all)" if len(shown) < len(overview.layers) else ""
    print_table(console, f"{_plural(len(overview.layers), 'layer')}{more}", table)


def _print_prunable(overview: Overview, console: Console, verbose: int) -> None:
    timed = overview.timing is not None
    table = plain_table("role", ">groups x units", "where", ">parameters", ">share", *([">time"] if timed else []))
    for fold in fold_groups(overview, overview.prunable):
        time = [percent(fold.cover.time_share)] if timed else []
        cells = (fold.count, fold.where, amount(fold.cover.parameters), percent(fold.cover.share))
        table.add_row(escape(fold.first.role), *cells, *time)
    print_table(console, f"Groups that can be pruned{_covered(overview)}", table)
    if verbose:
        _print_each(overview.prunable, console, timed=timed)


def _covered(overview: Overview) -> str:
    """What all of them touch together; weights of attention are in three groups each, so rows add up to more."""
    together = overview.cover.get("all")
    if together is None:
        return ""
    time = f" and {percent(together.time_share)} of time" if together.time_share is not None else ""
    return f": together {percent(together.share)} of parameters{time}"


def _print_each(groups: Sequence[GroupFacts], console: Console, *, timed: bool) -> None:
    table = plain_table("group", ">units", ">layer", ">share", *([">time"] if timed else []), "touches")
    for group in groups:
        time = [percent(group.time_share)] if timed else []
        layer = "-" if group.layer is None else str(group.layer)
        table.add_row(
            escape(group.name),
            str(group.size),
            layer,
            percent(group.share),
            *time,
            escape(", ".join(group.touches)),
        )
    print_table(console, "Each of them", table)


def _print_frozen(overview: Overview, console: Console, verbose: int) -> None:
    """Two lines or more for each: the figures, then what holds it."""
    largest = sorted(fold_groups(overview, overview.frozen), key=lambda fold: -fold.cover.parameters)
    shown = largest if verbose else largest[:_FROZEN_SHOWN]
    more = f", the largest {len(shown)} kinds shown (-v shows all)" if len(shown) < len(largest) else ""
    console.print(f"[bold]{_plural(len(overview.frozen), 'group')} cannot be pruned{more}[/]", soft_wrap=True)
    for fold in shown:
        console.print(f"  {_figures(fold)}", soft_wrap=True)
        if fold.first.lossy:
            console.print(f"      [dim]{escape(_ASKED)}[/]", soft_wrap=True)
        holds = fold.first.held_by
        for hold in holds if verbose else holds[:_REASONS_SHOWN]:
            alike = f"; likewise {len(fold.groups) - 1} more" if len(fold.groups) > 1 else ""
            console.print(f"      [dim]{escape(explain(hold))}{alike}[/]", soft_wrap=True)
        if len(holds) > _REASONS_SHOWN and not verbose:
            console.print(f"      [dim]and {_plural(len(holds) - _REASONS_SHOWN, 'more reason')} (-v)[/]")
    console.print()


def _figures(fold: GroupFold) -> str:
    name = fold.first.name if len(fold.groups) == 1 else fold.first.role
    time = "" if fold.cover.time_share is None else f", {percent(fold.cover.time_share)} of time"
    where = "" if fold.where == "-" else f", {fold.where}"
    size = f"{fold.count} units, {amount(fold.cover.parameters)} parameters ({percent(fold.cover.share)}){time}{where}"
    return f"[bold]{escape(name)}[/]  {escape(size)}"


def explain(hold: HoldFacts) -> str:
    """The reason and, in brackets, what it holds: ``normalised by LayerNormalization 'n' (input 0, axis 2)``."""
    if hold.operand is None:
        return hold.reason
    place = "" if hold.operand.startswith("graph") else f"{hold.operand}, {hold.value!r}, "
    return f"{hold.reason} ({place}axis {hold.axis})"


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def _signature(value: Interface) -> str:
    dims = "?" if value.dims is None else ", ".join("?" if d is None else str(d) for d in value.dims)
    return f"{value.name}: {value.dtype.lower()}[{dims}]"
