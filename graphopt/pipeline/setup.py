"""What stands before the first pass: the steps, a reference that runs, inputs, guard and context."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.model import interface_fault, model_sizes, signature
from graphopt.pipeline.context import PipelineContext
from graphopt.pipeline.facts import model_facts, stored_files
from graphopt.pipeline.guard import Guard
from graphopt.pipeline.inputs import Inputs
from graphopt.pipeline.job import CLEANUP, BuiltStep, Setup
from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.registry import AnyPass, Registry
from graphopt.pipeline.repair import repair, why_not, widen
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.talk import Talk
from graphopt.pipeline.tasks import Metric, load_metric
from graphopt.pipeline.timing import Stopwatch
from graphopt.pipeline.transaction import Bench, State
from graphopt.quantization.targets import overflows_here
from graphopt.runtime.dataset import Dataset
from graphopt.runtime.provider import default_target, resolve_provider
from graphopt.runtime.sessions import Sessions
from graphopt.transform import Bounds, Fidelity


def build_steps(recipe: Recipe, registry: Registry, talk: Talk) -> list[BuiltStep]:
    """All steps, ``cleanup`` in front unless it is there or switched off. Raises UsageError before any work."""
    steps = []
    first = recipe.passes[0].name if recipe.passes else None
    if recipe.cleanup and first != CLEANUP and CLEANUP in registry.names:
        steps.append(BuiltStep(CLEANUP, {}, registry.build(CLEANUP, {}), implicit=True))
    for step in recipe.passes:
        if step.skip is not None:
            steps.append(BuiltStep(step.name, step.params, None, skip=step.skip))
        else:
            steps.append(BuiltStep(step.name, step.params, registry.build(step.name, step.params)))
    latest: AnyPass | None = None
    for built in steps:
        if built.transform is None:
            continue
        if latest is not None and built.transform.order < latest.order:
            talk.warn(f"{built.name} usually goes before {latest.name}; it runs where the recipe has it")
        latest = built.transform
    return steps


def set_up(
    model: ir.Model,
    source: Path | None,
    recipe: Recipe,
    steps: list[BuiltStep],
    *,
    data: Dataset | None,
    metric: Metric | None,
    dry_run: bool,
    talk: Talk,
) -> Setup:
    """Open the reference, read the data, score the original.

    Raises ModelError when nothing here runs the model, UsageError for bad data or a bad metric.
    """
    resolve_provider(recipe.provider)
    here = default_target(recipe.provider)
    target = recipe.target or here
    native = target == here
    validate = recipe.guard.validate_runs and not dry_run
    wanted = metric or (load_metric(recipe.guard.metric) if recipe.guard.metric else None)
    sessions = Sessions(recipe.provider, recipe.threads, exact=not native and overflows_here(target))
    megabytes = recipe.targets.max_megabytes
    bounds = Bounds(None if megabytes is None else megabytes * 1e6, recipe.targets.max_latency_ratio)
    label = str(source) if source is not None else f"model {model.graph.name!r}"
    sizes = model_sizes(model)
    facts = model_facts(model, source, stored_files(model, source) if source is not None else None, sizes=sizes)

    def assemble(reference: ir.Model) -> tuple[Bench, Inputs]:
        runs_inputs = Inputs(
            reference,
            data if data is not None else recipe.data,
            tokenizer=recipe.tokenizer,
            limit=recipe.limit,
            seed=recipe.seed,
            session=lambda: runs.session,
        )
        runs = ModelRuns(reference, runs_inputs, sessions, label=label)
        guard = Guard(recipe.guard, runs, wanted, talk=talk)
        stopwatch = Stopwatch(runs, seed=recipe.seed, talk=talk)

        def acceptable(candidate: ir.Model, margin: float) -> bool:
            judged = ModelRuns(candidate, runs_inputs, sessions, label="a candidate")
            return guard.judge(
                judged, before=runs, promise=Fidelity.LOSSY, loosest=Fidelity.LOSSY, split="selection", margin=margin
            ).ok

        context = PipelineContext(
            runs,
            target=target,
            native=native,
            seed=recipe.seed,
            has_data=not runs_inputs.synthetic,
            bounds=bounds,
            judge=acceptable,
            stopwatch=stopwatch,
            talk=talk,
        )
        bench = Bench(
            interface=signature(model),
            original=runs,
            context=context,
            guard=guard,
            stopwatch=stopwatch,
            talk=talk,
            validate=validate,
            keep_slower=recipe.guard.keep_slower,
            dry_run=dry_run,
        )
        return bench, runs_inputs

    bench, inputs = assemble(model)
    before = facts.digest
    state = State(model, before, bench.original, sizes)
    setup = Setup(state, bench, facts, target, inputs, before)
    if not native:
        setup.notes.append(f"written for {target}, checked here, on {here}: no latency measured here decides anything")
    if inputs.dataset.note:
        setup.notes.append(inputs.dataset.note) if not inputs.synthetic else None
    if not validate:
        return setup
    reason = why_not(bench.original)
    if reason:
        repair(setup, assemble, steps, reason, label, talk)
    elif inputs.unrunnable:
        widen(setup, assemble, steps, talk)
    _read_data(setup)
    if wanted is not None:
        talk.step("scoring the original")
        setup.bench.guard.reference_score()
    return setup


def begin_with(setup: Setup, model: ir.Model, source: Path | None) -> None:
    """Let the run begin with ``model``, made from the reference before. Raises UsageError for another interface."""
    fault = interface_fault(setup.bench.interface, signature(model))
    if fault:
        raise UsageError(f"{source or 'the model'} is not made from the original: {fault}")
    sizes = model_sizes(model)
    facts = model_facts(model, source, stored_files(model, source) if source is not None else None, sizes=sizes)
    setup.state = State(model, facts.digest, setup.bench.runs(model), sizes, loosest=Fidelity.LOSSY)
    setup.input, setup.digest, setup.done = facts, facts.digest, []


def _read_data(setup: Setup) -> None:
    """Read the guard's inputs once: faults in the data show now, and the original's answers are kept."""
    splits = setup.inputs.splits
    if splits.note:
        setup.notes.append(splits.note)
    for _ in setup.bench.original.pairs("guard"):
        pass
