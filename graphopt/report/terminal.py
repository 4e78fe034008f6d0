"""A Result as tables for a terminal, readable at 100 columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphopt.pipeline.result import PassResult, Result, Status
from graphopt.report.tables import fidelity_table, latency_table, plain_table, print_table
from graphopt.report.units import amount, cosine, megabytes, ratio, seconds, share

_COLOURS = {
    Status.APPLIED: "green",
    Status.BACKED_OFF: "yellow",
    Status.UNCHANGED: "dim",
    Status.ROLLED_BACK: "red",
    Status.SKIPPED: "dim",
    Status.PLANNED: "cyan",
}
_DECLINED_SHOWN = 4


def print_result(result: Result, console: Console, *, verbose: int = 0) -> None:
    """Print everything a reader needs to judge the run; the last line is the verdict."""
    print_table(console, "Passes", passes_table(result))
    for line in _details(result, verbose):
        console.print(line, soft_wrap=True)
    if result.fidelity is not None:
        made_up = result.data is not None and result.data.synthetic
        kind = "synthetic" if made_up else "held-out"
        title = f"Outputs against the original, {result.fidelity.samples} {kind} samples"
        print_table(console, title, fidelity_table(result.fidelity))
    if result.latency:
        threads = result.environment.threads if result.environment is not None else None
        how = f", {threads} thread{'s' if threads != 1 else ''}" if threads else ""
        title = f"Latency, interleaved with the original{how}"
        print_table(console, title, latency_table(result.latency, ("original", "result")))
    _print_facts(result, console)
    if verbose and result.recipe.passes:
        console.print("[bold]Recipe[/] (replays to the same file)")
        console.print(escape(result.recipe.to_yaml().rstrip()), soft_wrap=True)
    console.print(verdict(result), soft_wrap=True)


def passes_table(result: Result) -> Table:
    """One row per pass, within 80 columns: only the parameters behind a pass's name are ever wrapped."""
    table = plain_table("pass", "status", ">sites", ">size", ">params", ">latency", ">cosine", ">time")
    table.columns[0].min_width = max((len(item.name) for item in result.passes), default=0)
    table.columns[1].no_wrap = True
    for item in result.passes:
        colour = _COLOURS[item.status]
        quality = item.fidelity
        after = item.status.kept or item.status is Status.PLANNED
        table.add_row(
            escape(_title(item)),
            f"[{colour}]{item.status}[/]",
            str(len(item.changes)) if item.changes else "-",
            megabytes(item.bytes_after) if after else "-",
            amount(item.parameters_after) if after else "-",
            ratio(item.latency_ratio),
            cosine(quality.min_cosine) if quality else "-",
            seconds(item.seconds),
        )
    return table


def verdict(result: Result) -> str:
    """The last line: ``PASSED ...`` or ``FAILED ...``."""
    colour = "green" if result.passed else "red"
    if result.dry_run:
        text = "dry run, nothing written"
    elif result.output is not None:
        before = result.input.file_bytes or result.input.weight_bytes
        after = result.output.file_bytes or result.output.weight_bytes
        text = f"{megabytes(before)} -> {megabytes(after)} ({ratio(after / before if before else None)})"
        if result.latency_ratio is not None:
            text += f", latency {ratio(result.latency_ratio)}"
        if result.fidelity is not None and result.fidelity.min_cosine is not None:
            text += f", cosine {cosine(result.fidelity.min_cosine)}"
        if result.output.path:
            text += f", written to {result.output.path}"
    else:
        text = "nothing written"
    reasons = "; ".join(result.reasons[:2])
    if len(result.reasons) > 2:
        reasons += f"; and {len(result.reasons) - 2} more failures"
    line = f"{text}; {reasons}" if reasons and result.passed else f"{reasons}; {text}" if reasons else text
    return f"[bold {colour}]{result.status}[/] {escape(' '.join(line.split()))}"


def _details(result: Result, verbose: int) -> Iterable[str]:
    for item in result.passes:
        name = escape(item.name)
        if item.reason:
            yield f"  [bold]{name}[/]: {escape(item.reason)}"
        chosen = {k: v for k, v in item.chosen.items() if verbose or len(str(v)) < 60}
        if chosen:
            yield f"  [bold]{name}[/]: chose {escape(', '.join(f'{k}={v}' for k, v in chosen.items()))}"
        for tried in item.tries:
            outcome = "accepted" if tried.accepted else "refused"
            yield f"  [dim]{name}: strength {tried.value:g} {outcome} {escape(tried.reason)}[/]"
        for note in item.notes:
            yield f"  [dim]{name}: {escape(note)}[/]"
        if verbose:
            word = "[green]changed[/] " if item.status.kept else "planned "
            for site in item.changes:
                yield f"    {word} {escape(site.site)}: {escape(site.before)} -> {escape(site.after)}"
            for refused in item.declined:
                yield f"    [yellow]declined[/] {escape(refused.site)}: {escape(refused.reason)}"
        elif item.declined and (item.status.kept or item.status in (Status.UNCHANGED, Status.PLANNED)):
            yield from _declined_summary(item)


def _declined_summary(item: PassResult) -> Iterable[str]:
    """Equal reasons together, the most frequent first."""
    counts = Counter(refused.reason for refused in item.declined)
    first = {refused.reason: refused.site for refused in reversed(item.declined)}
    for reason, count in counts.most_common(_DECLINED_SHOWN):
        where = first[reason] if count == 1 else f"{count} sites, e.g. {first[reason]}"
        yield f"  [dim]{escape(item.name)}: left alone {escape(where)}: {escape(reason)}[/]"
    if len(counts) > _DECLINED_SHOWN:
        yield f"  [dim]{escape(item.name)}: and {len(counts) - _DECLINED_SHOWN} more reasons (-v shows all)[/]"


def _print_facts(result: Result, console: Console) -> None:
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    source = result.data
    if source is not None and source.synthetic:
        console.print(
            "[bold yellow]SYNTHETIC INPUTS:[/] no --data was given; quality figures are from made-up inputs",
            soft_wrap=True,
        )
    elif source is not None:
        samples = "" if source.samples is None else f", {source.samples} samples"
        held = "" if source.guard_samples is None else f", {source.guard_samples} held out for the guard"
        console.print(f"[dim]data: {escape(source.name)}{samples}{held}[/]", soft_wrap=True)
    quality = result.fidelity
    if quality is not None and quality.metric is not None and quality.metric_original is not None:
        change = quality.metric - quality.metric_original
        console.print(f"metric: {quality.metric_original:.4f} -> {quality.metric:.4f} ({change:+.4f})")
    before, after = result.input, result.output
    if after is not None:
        size = (
            ""
            if before.file_bytes is None or after.file_bytes is None
            else (
                f"file {megabytes(before.file_bytes)} -> {megabytes(after.file_bytes)} "
                f"({share(after.file_bytes, before.file_bytes)}), "
            )
        )
        console.print(
            f"{size}parameters {amount(before.parameters)} -> {amount(after.parameters)}, "
            f"nodes {before.nodes} -> {after.nodes}",
            soft_wrap=True,
        )
    env = result.environment
    if env is not None:
        memory = "" if result.peak_memory_bytes is None else f", peak memory {megabytes(result.peak_memory_bytes)}"
        console.print(
            f"[dim]onnxruntime {env.onnxruntime} on {escape(env.cpu or env.platform)}; "
            f"{seconds(result.seconds)}{memory}[/]",
            soft_wrap=True,
        )


def _title(item: PassResult) -> str:
    shown = {k: v for k, v in item.params.items() if isinstance(v, str | int | float | bool)}
    inside = ", ".join(f"{k}={v}" for k, v in shown.items())
    text = f"{item.name}({inside})" if inside else item.name
    return text if len(text) <= 34 else text[:31] + "..."
