"""``graphopt bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options

EXAMPLE = "Example: graphopt bench model.onnx small.onnx --threads 1"


def bench(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL", help="ONNX files; ratios refer to the first.", show_default=False),
    ],
    data: options.Data = None,
    tokenizer: options.Tokenizer = None,
    rounds: Annotated[
        int, options.option("--rounds", metavar="N", help="Interleaved rounds per input (30).", min=1)
    ] = 30,
    provider: options.Provider = None,
    threads: options.Threads = None,
    seed: options.Seed = None,
    json: options.Json = False,
    debug: options.Debug = False,
) -> None:
    """Measure latency: interleaved rounds, medians, and ratios to the first model in the same rounds."""
    from graphopt.cli.console import print_json, stdout
    from graphopt.pipeline.bench import bench as run
    from graphopt.report.comparison import print_bench

    result = run(
        models,
        data=data,
        tokenizer=None if tokenizer is None else str(tokenizer),
        rounds=rounds,
        provider=provider or "cpu",
        threads=threads,
        seed=seed or 0,
    )
    if json:
        print_json(result.model_dump_json(indent=2, exclude_none=True))
    else:
        print_bench(result, stdout())
