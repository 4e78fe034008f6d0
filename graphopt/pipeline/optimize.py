"""The whole run: a model and a recipe in, a checked file and a Result out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.model import clone_model, drop_exporter_notes, open_model, source_path
from graphopt.pipeline.finish import finish
from graphopt.pipeline.output import check_output
from graphopt.pipeline.provenance import resolved_recipe
from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.recipe_file import load_recipe
from graphopt.pipeline.registry import discover
from graphopt.pipeline.result import Cause, PassResult, Result, Status
from graphopt.pipeline.setup import begin_with, build_steps, set_up
from graphopt.pipeline.talk import Silent, Talk
from graphopt.pipeline.tasks import Metric
from graphopt.pipeline.transaction import transact
from graphopt.runtime.dataset import Dataset

DEFAULT_PASSES = "fuse"  #: exact: without being asked, nothing is traded

Passes = Recipe | str | Sequence[Any] | Mapping[str, Any] | None


def prepare_recipe(passes: Passes = None, *, recipe: str | Path | None = None, **fields: Any) -> Recipe:
    """The recipe that ``recipe`` names (preset, file, report, model) or an empty one, the given fields set over it.

    Raises UsageError.
    """
    base = load_recipe(recipe) if recipe is not None else Recipe()
    if passes is not None:
        given = Recipe.make(passes)
        base = given if recipe is None else base.override(passes=given.model_dump()["passes"])
    if not base.passes:
        base = base.override(passes=DEFAULT_PASSES)
    return base.override(**fields)


def optimize(
    model: Path | str | ir.Model,
    passes: Passes = None,
    *,
    recipe: str | Path | None = None,
    output: Path | str | None = None,
    original: Path | str | ir.Model | None = None,
    data: str | Path | Dataset | None = None,
    metric: str | Metric | None = None,
    keep_best: bool = False,
    dry_run: bool = False,
    talk: Talk | None = None,
    **fields: Any,
) -> Result:
    """Run passes over a model, each as a transaction checked against the original, and write the result.

    Args:
        model: a file, or an ``onnx_ir.Model`` as ``open_model`` returns it (never edited).
        passes: ``"prune(ratio=0.3),int8"``, a list, a mapping or a Recipe. Default: exact rewrites only.
        recipe: a preset's name, a recipe file, a report or a model that graphopt wrote; ``passes`` and ``fields`` win.
        output: file to write; None keeps the result in memory (``result.model``).
        original: what results are held against and ``heal`` learns from, where ``model`` was made from it before.
        data: inputs as the command line takes them, or a Dataset.
        metric: ``module:function``, or the function; it gets a callable that runs the model and returns a score.
        keep_best: write what was accepted even when something the recipe asked for failed.
        dry_run: plan and apply without running or writing anything.
        fields: any field of Recipe, GuardSettings or Targets, e.g. ``min_cosine=0.98, provider="cuda", seed=1``.

    Returns a Result; a guard that refuses is ``result.passed == False``, not an exception.
    Raises UsageError, ModelError, MissingDependencyError.
    """
    started = time.perf_counter()
    talk = talk or Silent()
    known = None if original is None or isinstance(original, ir.Model) else str(original)
    named = {"data": _name_of(data), "metric": _name_of(metric), "original": known}
    plan = prepare_recipe(passes, recipe=recipe, **{**fields, **{k: v for k, v in named.items() if v is not None}})
    registry = discover()
    for problem in registry.problems:
        talk.warn(problem)
    steps = build_steps(plan, registry, talk)
    source = source_path(model) if isinstance(model, ir.Model) else Path(model)
    opened = clone_model(model) if isinstance(model, ir.Model) else open_model(model)
    if not plan.keep_notes:
        drop_exporter_notes(opened)  # before they are copied again and again
    target = None if output is None or dry_run else Path(output)
    if target is not None:
        check_output(target, opened, source)
    reference, at = _reference(original if isinstance(original, ir.Model) else plan.original, opened, source)
    setup = set_up(
        reference,
        at,
        plan,
        steps,
        data=data if isinstance(data, Dataset) else None,
        metric=metric if callable(metric) else None,
        dry_run=dry_run,
        talk=talk,
    )
    if reference is not opened:
        begin_with(setup, opened, source)
    with closing(setup.bench.spilled):
        state = setup.state
        results: list[PassResult] = list(setup.done)
        for step in steps[len(results) :]:
            if step.skip is not None:
                results.append(
                    PassResult(
                        name=step.name,
                        status=Status.SKIPPED,
                        reason=step.skip,
                        params=step.params,
                        implicit=step.implicit,
                    )
                )
                continue
            assert step.transform is not None
            talk.step(f"{step.name}: planning, applying" + ("" if dry_run else ", checking"))
            result, state = transact(step.transform, state, setup.bench)
            result.implicit = step.implicit
            talk.info(f"{step.name}: {result.status}{': ' + result.reason if result.reason else ''}")
            results.append(result)
        resolved = resolved_recipe(plan, results, target=setup.target)
        report = Result(
            status="PASSED",
            reasons=_failures(results),
            recipe=resolved,
            passes=results,
            input=setup.input,
            notes=setup.notes,
            dry_run=dry_run,
        )
        report.status = "FAILED" if report.reasons else "PASSED"
        finish(report, state, setup, plan, target=target, keep_best=keep_best, talk=talk)
    report.seconds = time.perf_counter() - started
    return report


def _reference(original: str | ir.Model | None, model: ir.Model, source: Path | None) -> tuple[ir.Model, Path | None]:
    """The model that results are held against, and its file."""
    if original is None:
        return model, source
    if isinstance(original, ir.Model):
        return clone_model(original), source_path(original)
    return open_model(original), Path(original)


def _failures(results: Sequence[PassResult]) -> list[str]:
    """What the recipe asked for and did not get, speed apart: leaving out what does not pay is the pipeline's job."""
    return [
        f"{item.name} was rolled back: {item.reason}"
        for item in results
        if item.status is Status.ROLLED_BACK and item.cause is not Cause.SLOWER and not item.implicit
    ]


def _name_of(given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Path):
        return str(given)
    if isinstance(given, Dataset):
        return given.name
    if callable(given):
        return f"{getattr(given, '__module__', 'unknown')}:{getattr(given, '__qualname__', 'function')}"
    raise UsageError(f"cannot use {type(given).__name__} here; give a path, module:function or a Dataset")
