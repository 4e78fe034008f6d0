"""``graphopt sensitivity``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from graphopt.cli import options
from graphopt.errors import UsageError

EXAMPLE = "Example: graphopt sensitivity model.onnx --data inputs.npz --kinds int8,prune --plot loss.svg"


def sensitivity(
    model: options.Model,
    kinds: Annotated[
        str, options.option("--kinds", metavar="LIST", help="Of int8 (default), int4, float16, prune.")
    ] = "int8",
    mode: Annotated[
        str, options.option("--mode", metavar="NAME", help="int8: dynamic (default) or static.")
    ] = "dynamic",
    ratio: Annotated[float, options.option("--ratio", metavar="X", help="Share of units that is pruned (0.5).")] = 0.5,
    samples: Annotated[int, options.option("--samples", metavar="N", help="Held-out inputs (128).", min=1)] = 128,
    data: options.Data = None,
    tokenizer: options.Tokenizer = None,
    limit: options.Limit = None,
    metric: Annotated[
        str | None, options.option("--metric", metavar="SPEC", help="module:function, higher is better; slower.")
    ] = None,
    state: Annotated[
        Path | None, options.option("--state", metavar="FILE", help="Keep results here, and go on from them.")
    ] = None,
    plot: Annotated[Path | None, options.option("--plot", metavar="FILE", help="Also draw the losses, as SVG.")] = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    debug: options.Debug = False,
) -> None:
    """Say what the outputs lose when one site alone is quantized or pruned: each weight, each group of units."""
    from graphopt.cli.console import TerminalTalk, print_json, stdout
    from graphopt.pipeline.output import check_report, write_report
    from graphopt.pipeline.sensitivity import sensitivity as run
    from graphopt.report.sensitivity import draw, print_sensitivity

    if plot is not None and plot.suffix.lower() != ".svg":
        raise UsageError(f"--plot {plot}: pictures are SVG; give a name that ends in .svg")
    check_report(plot, model, option="--plot")
    result = run(
        model,
        kinds=[kind.strip() for kind in kinds.split(",") if kind.strip()],
        mode=mode,
        ratio=ratio,
        samples=samples,
        data=data,
        metric=metric,
        state=state,
        talk=TerminalTalk(quiet=quiet, verbose=verbose),
        tokenizer=None if tokenizer is None else str(tokenizer),
        limit=limit,
        provider=provider,
        threads=threads,
        seed=seed,
    )
    if plot is not None:
        write_report(plot, draw(result), option="--plot")
    if json:
        print_json(result.model_dump_json(indent=2, exclude_none=True))
    else:
        print_sensitivity(result, stdout(), verbose=verbose)
