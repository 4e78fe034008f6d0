"""``graphopt inspect``."""

from __future__ import annotations

from graphopt.cli import options

EXAMPLE = "Example: graphopt inspect model.onnx"


def inspect(
    model: options.Model,
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

    overview = inspect_model(model, provider=provider or "cpu")
    if json:
        print_json(overview.model_dump_json(indent=2, exclude_none=True))
    else:
        print_overview(overview, stdout(), verbose=verbose)
