"""What stands before the first pass: the steps, a reference that runs, inputs, guard and context."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.model import signature
from graphopt.pipeline.attempt import RejectedError, attempt
from graphopt.pipeline.context import PipelineContext
from graphopt.pipeline.facts import model_facts, parameter_count, stored_files
from graphopt.pipeline.guard import Guard
from graphopt.pipeline.inputs import Inputs
from graphopt.pipeline.recipe import Recipe
from graphopt.pipeline.registry import AnyPass, Registry
from graphopt.pipeline.result import ModelFacts, PassResult, Site, Status
from graphopt.pipeline.runs import ModelRuns, RunOptions
from graphopt.pipeline.talk import Talk
from graphopt.pipeline.tasks import Metric, load_metric
from graphopt.pipeline.timing import Stopwatch
from graphopt.pipeline.transaction import Bench, State
from graphopt.runtime.dataset import Dataset
from graphopt.runtime.provider import default_target, resolve_provider
from graphopt.transform import Fidelity

CLEANUP = "cleanup"


@dataclass(frozen=True, slots=True)
class BuiltStep:
    """One step of the recipe, with its pass unless it is left out."""

    name: str
    params: dict[str, Any]
    transform: AnyPass | None
    skip: str | None = None
    implicit: bool = False


@dataclass
class Setup:
    """Everything the loop needs."""

    state: State
    bench: Bench
    input: ModelFacts
    target: str
    inputs: Inputs
    digest: str  #: of the input file's model
    done: list[PassResult] = field(default_factory=list)  #: steps already taken to get a reference that runs
    notes: list[str] = field(default_factory=list)


def build_steps(recipe: Recipe, registry: Registry, talk: Talk) -> list[BuiltStep]:
    """All steps of the recipe, ``cleanup`` in front unless named or switched off. Raises UsageError before any work."""
    steps = []
    if recipe.cleanup and all(step.name != CLEANUP for step in recipe.passes) and CLEANUP in registry.names:
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
    target = recipe.target or default_target(recipe.provider)
    validate = recipe.guard.validate_runs and not dry_run
    wanted = metric or (load_metric(recipe.guard.metric) if recipe.guard.metric else None)
    options = RunOptions(recipe.provider, recipe.threads)
    label = str(source) if source is not None else f"model {model.graph.name!r}"
    facts = model_facts(model, source, stored_files(model, source) if source is not None else None)

    def assemble(reference: ir.Model) -> tuple[Bench, Inputs]:
        runs_inputs = Inputs(
            reference,
            data if data is not None else recipe.data,
            tokenizer=recipe.tokenizer,
            limit=recipe.limit,
            seed=recipe.seed,
            session=lambda: runs.session,
        )
        runs = ModelRuns(reference, runs_inputs, options, label=label)
        guard = Guard(recipe.guard, runs, wanted)
        stopwatch = Stopwatch(runs, seed=recipe.seed)

        def acceptable(candidate: ir.Model) -> bool:
            judged = ModelRuns(candidate, runs_inputs, options, label="a candidate")
            return guard.judge(
                judged, before=runs, promise=Fidelity.LOSSY, loosest=Fidelity.LOSSY, split="selection"
            ).ok

        context = PipelineContext(
            runs,
            target=target,
            seed=recipe.seed,
            has_data=not runs_inputs.synthetic,
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
    state = State(model, before, bench.original)
    setup = Setup(state, bench, facts, target, inputs, before)
    if inputs.dataset.note:
        setup.notes.append(inputs.dataset.note) if not inputs.synthetic else None
    if not validate:
        return setup
    reason = _why_not(bench.original)
    if reason:
        _repair(setup, assemble, steps, reason, label, talk)
    _read_data(setup)
    if wanted is not None:
        talk.step("scoring the original")
        setup.bench.guard.reference_score()
    return setup


def _why_not(runs: ModelRuns) -> str:
    """Empty when the model loads and runs."""
    try:
        for name in runs.inputs.probes:
            runs.probe(name)
    except GraphoptError as error:
        if error.exit_code == 4:
            raise
        return str(error)
    return ""


def _repair(setup: Setup, assemble: Any, steps: list[BuiltStep], reason: str, label: str, talk: Talk) -> None:
    """Let ``cleanup`` turn a model that does not run into one that does; that one becomes the reference.

    Raises ModelError when there is no cleanup in front, or it does not help.
    """
    hint = f"{label}: ONNX Runtime cannot run this model here ({reason}); --no-validate optimises it without running it"
    first = steps[0] if steps else None
    if first is None or first.transform is None or first.name != CLEANUP:
        raise ModelError(hint)
    talk.step("the model does not run as it is; trying to repair it")
    model = setup.state.model
    try:
        edited = attempt(first.transform, model, setup.digest, setup.bench.interface, setup.bench.context)
    except RejectedError as rejected:
        raise ModelError(f"{hint}; cleanup could not repair it ({rejected.reason})") from rejected
    bench, inputs = assemble(edited.model)
    if edited.plan.empty or _why_not(bench.original):
        raise ModelError(hint)
    bench.interface = setup.bench.interface
    setup.bench, setup.inputs = bench, inputs
    setup.state = State(edited.model, edited.digest, bench.original)
    setup.notes.append(
        f"the input does not run in ONNX Runtime ({reason}); cleanup repaired it, and the repaired model is the "
        "reference for all figures"
    )
    setup.done.append(
        PassResult(
            name=first.name,
            status=Status.APPLIED,
            fidelity_class=str(first.transform.fidelity),
            implicit=first.implicit,
            params=first.transform.config.model_dump(mode="json", exclude_defaults=True),
            resolved=first.transform.config.model_dump(mode="json"),
            changes=[Site(site=c.site, before=c.before, after=c.after, saves=c.saves) for c in edited.plan.changes],
            notes=[*edited.plan.notes, "repaired: the model now runs"],
            bytes_before=setup.input.weight_bytes,
            bytes_after=model_facts(edited.model).weight_bytes,
            parameters_before=setup.input.parameters,
            parameters_after=parameter_count(edited.model),
        )
    )


def _read_data(setup: Setup) -> None:
    """Read the guard's inputs once: faults in the data show now, and the original's answers are kept."""
    splits = setup.inputs.splits
    if splits.note:
        setup.notes.append(splits.note)
    for _ in setup.bench.original.pairs("guard"):
        pass
