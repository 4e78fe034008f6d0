"""Comparisons and timings as tables."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from graphopt.pipeline.bench import BenchReport
from graphopt.pipeline.compare import Comparison
from graphopt.report.tables import fidelity_table, latency_table, plain_table, print_table
from graphopt.report.units import amount, cosine, megabytes, milliseconds, ratio


def print_comparison(result: Comparison, console: Console) -> None:
    """Sizes, outputs, latency; the last line is the verdict."""
    table = plain_table("", ">file", ">parameters", ">nodes")
    for name, facts in (("first", result.first), ("second", result.second)):
        size = megabytes(facts.file_bytes or facts.weight_bytes)
        table.add_row(f"{name}: {escape(facts.path or '')}", size, amount(facts.parameters), str(facts.nodes))
    print_table(console, "Models", table)
    kind = "synthetic inputs, made up from the graph" if result.data.synthetic else f"{result.data.samples} samples"
    print_table(console, f"Outputs of the second against the first, {kind}", fidelity_table(result.fidelity))
    if result.latency:
        names = ("first", "second")
        print_table(console, "Latency, interleaved", latency_table(result.latency, names))
    for note in result.notes:
        console.print(f"[yellow]note:[/] {escape(note)}", soft_wrap=True)
    colour = "green" if result.passed else "red"
    text = "; ".join(result.reasons) if result.reasons else f"cosine {cosine(result.fidelity.min_cosine)}"
    if result.latency_ratio is not None:
        text += f"; latency {ratio(result.latency_ratio)}"
    console.print(f"[bold {colour}]{result.status}[/] {escape(text)}", soft_wrap=True)


def print_bench(result: BenchReport, console: Console) -> None:
    """One row per model and shape."""
    several = len(result.ratios) > 1
    table = plain_table("model", "input", ">median ms", ">spread ms", *([">ratio"] if several else []))
    for row in sorted(result.rows, key=lambda r: [x.shape for x in result.rows].index(r.shape)):
        cells = [escape(row.model), escape(row.shape), milliseconds(row.median_ms), milliseconds(row.spread_ms)]
        table.add_row(*cells, *([ratio(row.ratio)] if several else []))
    threads = result.environment.threads
    how = f"{threads} thread{'s' if threads != 1 else ''}" if threads else "default threads"
    cpu = result.environment.cpu or result.environment.platform
    print_table(console, f"Latency, {how}, {escape(cpu)}, onnxruntime {result.environment.onnxruntime}", table)
    if several:
        mean = ", ".join(f"{escape(name)} {ratio(value)}" for name, value in result.ratios.items())
        console.print(f"geometric mean of the ratios to the first: {mean}", soft_wrap=True)
