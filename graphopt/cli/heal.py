"""``graphopt heal``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options

EXAMPLE = "Example: graphopt heal small.onnx --original model.onnx --data inputs.npz --budget 5m"


def heal(
    model: options.Model,
    original: Annotated[
        Path, options.option("--original", metavar="FILE", help="The file MODEL was made from: the teacher.")
    ],
    output: Annotated[
        Path | None, options.option("--output", "-o", metavar="FILE", help="Default: MODEL's stem + .healed.onnx.")
    ] = None,
    budget: Annotated[
        str, options.option("--budget", metavar="TIME", help="5m (default), 90s, 1h or 300steps.")
    ] = "5m",
    data: options.Data = None,
    tokenizer: options.Tokenizer = None,
    limit: options.Limit = None,
    learning_rate: Annotated[
        float | None, options.option("--learning-rate", metavar="X", help="Peak of AdamW's rate (2e-4).")
    ] = None,
    teachers: Annotated[
        list[Path] | None, options.option("--teacher", metavar="FILE", help="Answers beside the original; repeatable.")
    ] = None,
    more: Annotated[
        str | None, options.option("--set", metavar="KEY=VALUE,...", help="Others of: graphopt passes heal.")
    ] = None,
    resume: Annotated[bool, options.flag("--resume", help="Go on where an interrupted run stopped.")] = False,
    metric: Annotated[
        str | None, options.option("--metric", metavar="SPEC", help="module:function, higher is better.")
    ] = None,
    device: Annotated[
        str | None, options.option("--device", metavar="NAME", help="cpu or cuda; default: the provider's.")
    ] = None,
    provider: options.Provider = None,
    threads: options.Threads = None,
    seed: options.Seed = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    debug: options.Debug = False,
) -> None:
    """Train MODEL's weights until its outputs are near the original's again; nothing but weights changes.

    The state goes to OUTPUT.ckpt every half minute and on Ctrl-C; --resume ends as an uninterrupted run would have.
    """
    from graphopt.cli.console import TerminalTalk, print_json, stdout
    from graphopt.pipeline import optimize as pipeline
    from graphopt.pipeline.expression import parse_parameters
    from graphopt.report.terminal import print_result

    target = output if output is not None else model.with_name(f"{model.stem}.healed.onnx")
    checkpoint = target.with_name(target.name + ".ckpt")
    parameters = {
        "budget": budget,
        "checkpoint": str(checkpoint),
        "resume": resume,
        **({"learning_rate": learning_rate} if learning_rate is not None else {}),
        **({"device": device} if device is not None else {}),
        **({"teachers": [str(file) for file in teachers]} if teachers else {}),
        **(parse_parameters("heal", more) if more is not None else {}),
    }
    result = pipeline.optimize(
        model,
        [{"heal": parameters}],
        output=target,
        original=original,
        data=data,
        tokenizer=None if tokenizer is None else str(tokenizer),
        limit=limit,
        metric=metric,
        min_cosine=-1.0,  # heal takes only what is nearer than MODEL, however far MODEL was
        provider=provider,
        threads=threads,
        seed=seed,
        cleanup=False,
        talk=TerminalTalk(quiet=quiet, verbose=verbose),
    )
    if json:
        print_json(result.to_json())
    else:
        print_result(result, stdout(), verbose=verbose)
    if not result.passed:
        raise typer.Exit(1)
    checkpoint.unlink(missing_ok=True)
