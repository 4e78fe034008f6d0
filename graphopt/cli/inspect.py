"""``graphopt inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from graphopt.cli import options
from graphopt.errors import UsageError

EXAMPLE = "Example: graphopt inspect model.onnx --size batch=1 --size sequence=128"


def inspect(
    model: options.Model,
    size: Annotated[
        list[str] | None, options.option("--size", metavar="DIM=N", help="Count work at this size; repeatable.")
    ] = None,
    no_time: Annotated[bool, options.flag("--no-time", help="Do not measure time.")] = False,
    plot: Annotated[
        Path | None, options.option("--plot", metavar="FILE", help="Also draw the structure, as SVG.")
    ] = None,
    provider: options.Provider = None,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    debug: options.Debug = False,
) -> None:
    """Show layers, groups that can be pruned, groups that cannot and why, and where parameters, work and time go.

    The model is shown as passes see it: after cleanup.
    """
    from graphopt.cli.console import TerminalTalk, print_json, stdout
    from graphopt.pipeline.inspect import inspect_model
    from graphopt.pipeline.output import check_report, write_report
    from graphopt.report.overview import print_overview

    if plot is not None and plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot {plot}: pictures are SVG; give a name that ends in .svg")
    check_report(plot, model, option="--plot")
    sizes = _sizes(size or [])
    overview = inspect_model(
        model, provider=provider or "cpu", sizes=sizes, measure_time=not no_time, talk=TerminalTalk()
    )
    if plot is not None:
        from graphopt.report.plot import draw

        write_report(plot, draw(overview), option="--plot")
    if json:
        print_json(overview.model_dump_json(indent=2, exclude_none=True))
    else:
        print_overview(overview, stdout(), verbose=verbose)


def _sizes(spelled: list[str]) -> dict[str, int]:
    sizes = {}
    for item in spelled:
        name, _, number = item.rpartition("=")
        if not name or not number.isdigit() or int(number) < 1:
            raise UsageError(f"--size {item!r}: expected DIM=N with N of at least 1, e.g. --size sequence=128")
        sizes[name] = int(number)
    return sizes
