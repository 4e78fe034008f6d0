"""An Overview as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape

from graphopt.pipeline.overview import GroupFacts, Interface, Overview
from graphopt.report.tables import plain_table, print_table
from graphopt.report.units import amount, megabytes, share

_FROZEN_SHOWN = 10


def print_overview(overview: Overview, console: Console, *, verbose: int = 0) -> None:
    """Interface, roles, layers, prunable groups, and groups that cannot be pruned with the reason."""
    model = overview.model
    opset = ", ".join(f"{domain} {version}" for domain, version in overview.opset.items())
    console.print(f"[bold]{escape(model.path or 'model')}[/]", soft_wrap=True)
    size = megabytes(model.file_bytes or model.weight_bytes)
    console.print(f"{size}, {amount(model.parameters)} parameters, {model.nodes} nodes, opset {opset}", soft_wrap=True)
    for word, values in (("in ", overview.inputs), ("out", overview.outputs)):
        for value in values:
            console.print(f"  {word} {escape(_signature(value))}", soft_wrap=True)
    console.print()
    if overview.roles:
        _print_roles(overview, console)
    if overview.layers:
        _print_layers(overview, console)
    if overview.prunable:
        _print_prunable(overview, console)
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
    table = plain_table("role", ">nodes", ">parameters", ">share", ">bytes", ">MACs", ">share")
    for role in overview.roles:
        cells = (amount(role.parameters), share(role.parameters, total), megabytes(role.bytes))
        table.add_row(escape(role.role), str(role.nodes), *cells, amount(role.macs), share(role.macs, work))
    print_table(
        console, "Parameters and work by role" + (f" (multiply-accumulates at {escape(at)})" if at else ""), table
    )


def _print_layers(overview: Overview, console: Console) -> None:
    table = plain_table(">layer", "blocks", ">parameters", "output")
    for layer in overview.layers:
        table.add_row(str(layer.index), escape(layer.blocks), amount(layer.parameters), escape(layer.output))
    print_table(console, f"{len(overview.layers)} layers", table)


def _print_prunable(overview: Overview, console: Console) -> None:
    table = plain_table("group", "role", ">units", ">parameters", ">share", ">layer", ">weights")
    for group in overview.prunable:
        layer = "-" if group.layer is None else str(group.layer)
        cells = (
            str(group.size),
            amount(group.parameters),
            f"{100 * group.share:.1f} %",
            layer,
            str(len(group.touches)),
        )
        table.add_row(escape(group.name), escape(group.role), *cells)
    print_table(console, f"{_kinds(overview.prunable)} can be pruned", table)


def _print_frozen(overview: Overview, console: Console, verbose: int) -> None:
    largest = sorted(overview.frozen, key=lambda group: -group.parameters)
    shown = largest if verbose else largest[:_FROZEN_SHOWN]
    table = plain_table("group", ">units", ">parameters", "why it stays")
    for group in shown:
        table.add_row(
            escape(group.name), str(group.size), amount(group.parameters), escape(_why(group.reasons, verbose))
        )
    more = f", the largest {len(shown)} shown (-v shows all)" if len(shown) < len(largest) else ""
    print_table(console, f"{len(largest)} groups cannot be pruned{more}", table)


def _why(reasons: Sequence[str], verbose: int) -> str:
    """The first reason, and how many more there are; all of them with -v."""
    if verbose or len(reasons) < 2:
        return "; ".join(reasons)
    return f"{reasons[0]} (+{len(reasons) - 1} more)"


def _kinds(groups: Sequence[GroupFacts]) -> str:
    """``6 x 12 heads, 6 x 1536 neurons``."""
    counts: dict[tuple[int, str], int] = {}
    for group in groups:
        counts[group.size, group.role] = counts.get((group.size, group.role), 0) + 1
    return ", ".join(f"{count} x {size} {role}" for (size, role), count in counts.items())


def _signature(value: Interface) -> str:
    dims = "?" if value.dims is None else ", ".join("?" if d is None else str(d) for d in value.dims)
    return f"{value.name}: {value.dtype.lower()}[{dims}]"
