"""``graphopt compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options

EXAMPLE = "Example: graphopt compare model.onnx small.onnx --data inputs.npz --min-cosine 0.99"


def compare(
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="The reference.", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="The model to judge.", show_default=False)],
    data: options.Data = None,
    tokenizer: options.Tokenizer = None,
    limit: options.Limit = None,
    min_cosine: Annotated[
        float | None, options.option("--min-cosine", metavar="X", help="Least mean cosine per output (0.999).")
    ] = None,
    max_error: Annotated[
        float | None, options.option("--max-error", metavar="X", help="Largest error over an output's scale (0.01).")
    ] = None,
    no_latency: Annotated[bool, options.flag("--no-latency", help="Compare outputs only.")] = False,
    provider: options.Provider = None,
    threads: options.Threads = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Compare two models' outputs and latency on the same inputs; exit 1 beyond the tolerance.

    Giving one of --min-cosine and --max-error switches the other's default off.
    """
    from graphopt.cli.console import TerminalTalk, print_json, stdout
    from graphopt.pipeline.compare import compare as run
    from graphopt.report.comparison import print_comparison

    result = run(
        first,
        second,
        data=data,
        tokenizer=None if tokenizer is None else str(tokenizer),
        limit=limit,
        min_cosine=min_cosine,
        max_error=max_error,
        provider=provider or "cpu",
        threads=threads,
        seed=seed or 0,
        timed=not no_latency,
        talk=TerminalTalk(quiet=quiet),
    )
    if json:
        print_json(result.model_dump_json(indent=2, exclude_none=True))
    else:
        print_comparison(result, stdout())
    if not result.passed:
        raise typer.Exit(1)
