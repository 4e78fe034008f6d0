"""``graphopt optimize``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphopt.cli import options

EXAMPLE = "Example: graphopt optimize model.onnx --passes 'prune(ratio=0.25),fuse,int8' --data inputs.npz -o small.onnx"


def optimize(
    model: options.Model,
    output: Annotated[
        Path | None, options.option("--output", "-o", metavar="FILE", help="Default: MODEL's stem + .opt.onnx.")
    ] = None,
    passes: Annotated[
        str | None, options.option("--passes", "-p", metavar="LIST", help="'prune(ratio=0.3),int8'; default fuse.")
    ] = None,
    recipe: Annotated[
        str | None, options.option("--recipe", "-r", metavar="NAME", help="Preset, YAML, JSON, report or model.")
    ] = None,
    original: options.Original = None,
    data: options.Data = None,
    tokenizer: options.Tokenizer = None,
    limit: options.Limit = None,
    metric: Annotated[
        str | None, options.option("--metric", metavar="SPEC", help="module:function, higher is better.")
    ] = None,
    min_cosine: Annotated[
        float | None, options.option("--min-cosine", metavar="X", help="Least mean cosine per output (0.95).")
    ] = None,
    max_drop: Annotated[
        float | None, options.option("--max-drop", metavar="X", help="Most the metric may fall (1 % of it).")
    ] = None,
    provider: options.Provider = None,
    for_target: Annotated[
        str | None,
        options.option("--target", metavar="NAME", help="qnn, tensorrt, ... (this machine)."),
    ] = None,
    threads: options.Threads = None,
    seed: options.Seed = None,
    no_validate: Annotated[bool, options.flag("--no-validate", help="Do not run the models.")] = False,
    no_cleanup: Annotated[bool, options.flag("--no-cleanup", help="Do not run cleanup first.")] = False,
    keep_best: Annotated[bool, options.flag("--keep-best", help="Write the safe part even on failure.")] = False,
    keep_slower: Annotated[bool, options.flag("--keep-slower", help="Keep passes that slow the model.")] = False,
    keep_notes: Annotated[bool, options.flag("--keep-notes", help="Keep the exporter's debugging notes.")] = False,
    dry_run: Annotated[bool, options.flag("--dry-run", help="Show the plan, write nothing.")] = False,
    report: Annotated[
        Path | None, options.option("--report", metavar="FILE", help="Also write the result as JSON.")
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
    debug: options.Debug = False,
) -> None:
    """Run passes over MODEL, each checked against the original, and write the result.

    Exit codes: 0 ok, 1 guard or target failed, 2 usage, 3 bad model, 4 something is not installed.
    """
    from graphopt.cli.console import TerminalTalk, print_json, stdout
    from graphopt.pipeline import optimize as pipeline
    from graphopt.pipeline.output import check_report, default_output, write_report
    from graphopt.report.terminal import print_result

    target = None if dry_run else (output if output is not None else default_output(model))
    check_report(report, model, target)
    plan = pipeline.prepare_recipe(
        passes,
        recipe=recipe,
        original=None if original is None else str(original),
        data=data,
        tokenizer=None if tokenizer is None else str(tokenizer),
        limit=limit,
        metric=metric,
        min_cosine=min_cosine,
        max_drop=max_drop,
        provider=provider,
        target=for_target,
        threads=threads,
        seed=seed,
        cleanup=False if no_cleanup else None,
        validate_runs=False if no_validate else None,
        keep_slower=True if keep_slower else None,
        keep_notes=True if keep_notes else None,
    )
    result = pipeline.optimize(
        model,
        plan,
        output=target,
        keep_best=keep_best,
        dry_run=dry_run,
        talk=TerminalTalk(quiet=quiet, verbose=verbose),
    )
    if report is not None:
        write_report(report, result.to_json())
    if json:
        print_json(result.to_json())
    else:
        print_result(result, stdout(), verbose=verbose)
    if debug:
        for item in result.passes:
            if item.traceback:
                typer.echo(f"{item.name}:\n{item.traceback}", err=True)
    if not result.passed:
        raise typer.Exit(1)
