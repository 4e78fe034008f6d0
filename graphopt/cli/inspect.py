"""``graphopt inspect``."""

from __future__ import annotations

from typing import Annotated

from graphopt.cli import options
from graphopt.errors import UsageError

EXAMPLE = "Example: graphopt inspect model.onnx --size batch=1 --size sequence=128"


def inspect(
    model: options.Model,
    size: Annotated[
        list[str] | None, options.option("--size", metavar="DIM=N", help="Count work at this size; repeatable.")
    ] = None,
    provider: options.Provider = None,
    json: options.Json = False,
    verbose: options.Verbose = 0,
    debug: options.Debug = False,
) -> None:
    """Show layers, groups that can be pruned, groups that cannot and why, parameters and work by role.

    The model is shown as passes see it: after cleanup.
    """
    from graphopt.cli.console import print_json, stdout
    from graphopt.pipeline.overview import inspect_model
    from graphopt.report.overview import print_overview

    overview = inspect_model(model, provider=provider or "cpu", sizes=_sizes(size or []))
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
