"""Tables that several reports share."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from graphopt.pipeline.result import FidelityReport, LatencyRow
from graphopt.report.units import cosine, milliseconds, ratio, small


def plain_table(*columns: str) -> Table:
    """A table without frames; a column whose name starts with ``>`` is right-aligned and never wrapped."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for column in columns:
        right = column.startswith(">")
        table.add_column(column.removeprefix(">"), justify="right" if right else "left", no_wrap=right, overflow="fold")
    return table


def print_table(console: Console, title: str, table: Table) -> None:
    """The title on a line of its own, however narrow the table."""
    console.print(f"[bold]{title}[/]", soft_wrap=True)
    console.print(table)
    console.print()


def fidelity_table(fidelity: FidelityReport) -> Table:
    """One row per output of the model; columns for logits and integers only where there are any."""
    discrete = any(item.equal_share is not None for item in fidelity.outputs)
    top = any(item.top1 is not None for item in fidelity.outputs)
    columns = ["output", ">cosine", ">max abs", ">max rel", ">SQNR dB"]
    columns += [">KL", ">top-1"] if top else []
    columns += [">equal"] if discrete else []
    table = plain_table(*columns)
    for item in fidelity.outputs:
        row = [escape(item.output), cosine(item.cosine), small(item.max_abs), small(item.max_rel)]
        row.append("-" if item.sqnr_db is None else f"{item.sqnr_db:.1f}")
        if top:
            row += [small(item.kl), "-" if item.top1 is None else f"{item.top1:.3f}"]
        if discrete:
            row.append("-" if item.equal_share is None else f"{item.equal_share:.4f}")
        table.add_row(*row)
    return table


def latency_table(rows: Sequence[LatencyRow], names: tuple[str, str]) -> Table:
    """One row per timing shape."""
    table = plain_table("input", f">{names[0]} ms", f">{names[1]} ms", ">ratio", ">spread")
    for row in rows:
        spread = "-" if row.spread is None else f"{100 * row.spread:.0f} %"
        cells = (milliseconds(row.original_ms), milliseconds(row.optimized_ms), ratio(row.ratio), spread)
        table.add_row(escape(row.shape), *cells)
    return table
