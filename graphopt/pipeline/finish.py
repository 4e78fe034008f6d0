"""What stands after the last pass: sign, write beside the target, run, compare, time, move into place."""

from __future__ import annotations

from pathlib import Path

from graphopt.errors import GraphoptError
from graphopt.model import save_model
from graphopt.pipeline.facts import environment, model_facts
from graphopt.pipeline.job import Setup
from graphopt.pipeline.output import publish, staged
from graphopt.pipeline.provenance import sign
from graphopt.pipeline.recipe import Recipe, Targets
from graphopt.pipeline.result import DataSource, Result
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.talk import Talk
from graphopt.pipeline.transaction import State
from graphopt.runtime.memory import peak_memory
from graphopt.transform import Fidelity


def finish(
    report: Result, state: State, setup: Setup, recipe: Recipe, *, target: Path | None, keep_best: bool, talk: Talk
) -> None:
    """Complete ``report``, and write the file when everything passed or ``keep_best`` asks for the rest."""
    signed = state.model  # private to this run
    if state.digest != setup.digest:  # an unchanged model must not grow, nor lose what it says of its own making
        sign(signed, input_digest=setup.digest, resolved=report.recipe, passes=report.passes)
    report.attach(signed)
    _describe_inputs(report, setup)
    state.runs.close()
    if target is None:
        report.output = model_facts(signed, known=state.digest, sizes=state.sizes)
        _measure(report, ModelRuns(signed, setup.inputs, setup.bench.original.sessions), state, setup, talk)
        _check_targets(report, recipe.targets, setup)
    else:
        _write(report, state, setup, recipe.targets, target, keep_best=keep_best, talk=talk)
    validated = setup.bench.validate
    providers = setup.bench.original.sessions.used_providers if validated else []
    report.environment = environment(providers, recipe.threads)
    report.peak_memory_bytes = peak_memory()


def _write(
    report: Result, state: State, setup: Setup, targets: Targets, target: Path, *, keep_best: bool, talk: Talk
) -> None:
    talk.step(f"writing {target}" + (" and running it" if setup.bench.validate else ""))
    with staged(target) as draft:
        files = save_model(report.model, draft)
        report.output = model_facts(report.model, None, files, known=state.digest, sizes=state.sizes)
        _measure(
            report, ModelRuns(draft, setup.inputs, setup.bench.original.sessions, label=str(target)), state, setup, talk
        )
        _check_targets(report, targets, setup)
        if report.passed or keep_best:
            publish(files, target)
            report.output.path = str(target)
        else:
            report.notes.append("nothing was written; --keep-best writes what passed")


def _measure(report: Result, final: ModelRuns, state: State, setup: Setup, talk: Talk) -> None:
    """Compare the final file with the original once more, and time both."""
    if not setup.bench.validate:
        report.notes.append("not validated: no model was run" if not report.dry_run else "dry run: nothing was run")
        return
    bench = setup.bench
    try:
        # The writer must change nothing: exact against the last accepted model, whatever that is worth.
        verdict = bench.guard.judge(final, before=state.runs, promise=Fidelity.EXACT, loosest=state.loosest)
    except GraphoptError as error:
        _fail(report, f"the result does not run: {error}")
        return
    report.fidelity = verdict.fidelity
    if not verdict.ok:
        _fail(report, f"the result failed its last check: {verdict.reason}")
        return
    talk.step("timing the result against the original")
    report.latency, report.latency_ratio, _ = bench.stopwatch.final(bench.original, final)


def _check_targets(report: Result, targets: Targets, setup: Setup) -> None:
    assert report.output is not None
    size = report.output.file_bytes or report.output.weight_bytes
    if targets.max_megabytes is not None and size > targets.max_megabytes * 1e6 and not report.dry_run:
        _fail(report, f"target missed: {size / 1e6:.2f} MB, at most {targets.max_megabytes:g} MB wanted")
    ratio = report.latency_ratio
    if targets.max_latency_ratio is not None and not setup.bench.context.native:
        wanted = f"latency of at most {targets.max_latency_ratio:g} x"
        report.notes.append(f"not judged: {wanted}, which is for {setup.target} and was measured on another machine")
    elif targets.max_latency_ratio is not None and ratio is not None and ratio > targets.max_latency_ratio:
        _fail(report, f"target missed: latency {ratio:.2f} x, at most {targets.max_latency_ratio:g} x wanted")


def _describe_inputs(report: Result, setup: Setup) -> None:
    dataset = setup.inputs.dataset
    validated = setup.bench.validate
    report.data = DataSource(
        name=dataset.name,
        synthetic=dataset.synthetic,
        samples=dataset.samples,
        guard_samples=setup.inputs.splits.guard.samples if validated else None,
    )


def _fail(report: Result, reason: str) -> None:
    report.status = "FAILED"
    report.reasons.append(reason)
