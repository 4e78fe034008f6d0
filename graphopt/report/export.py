"""An export as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.markup import escape

from graphopt.report.units import megabytes, seconds


def export_lines(fields: Mapping[str, Any]) -> Iterator[str]:
    """What was written, how it was checked; the last line is the verdict. ``fields``: an ExportReport as a dict."""
    yield f"{fields['exporter']} opset {fields['opset']}, {megabytes(fields['bytes'])}, {seconds(fields['seconds'])}"
    yield f"inputs {escape(', '.join(fields['inputs']))}; outputs {escape(', '.join(fields['outputs']))}"
    for note in fields["notes"]:
        yield f"[yellow]note:[/] {escape(str(note))}"
    verified = fields["verified"]
    verdict = "[bold green]PASSED[/]" if verified else "[bold yellow]WRITTEN[/], not verified:"
    yield f"{verdict} {escape(str(fields['numerics']))}; written to {escape(str(fields['path']))}"
