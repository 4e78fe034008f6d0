"""Models that do not run as they are: cleanup may repair them, and then the repaired one is the reference."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.model import model_sizes
from graphopt.pipeline.attempt import Edited, RejectedError, attempt
from graphopt.pipeline.inputs import Inputs
from graphopt.pipeline.job import CLEANUP, BuiltStep, Setup
from graphopt.pipeline.result import PassResult, Site, Status
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.talk import Talk
from graphopt.pipeline.transaction import Bench, State

Assemble = Callable[[ir.Model], tuple[Bench, Inputs]]


def why_not(runs: ModelRuns) -> str:
    """Empty when the model loads and runs."""
    try:
        for name in runs.inputs.probes:
            runs.probe(name)
    except GraphoptError as error:
        if error.exit_code == 4:
            raise
        return str(error)
    return ""


def repair(setup: Setup, assemble: Assemble, steps: list[BuiltStep], reason: str, label: str, talk: Talk) -> None:
    """Let ``cleanup`` turn a model that does not run into one that does; that one becomes the reference.

    Raises ModelError when there is no cleanup in front, or it does not help.
    """
    reason = reason.removeprefix(f"ONNX Runtime cannot run {label}: ")
    hint = f"{label}: ONNX Runtime cannot run this model here ({reason}); --no-validate optimises it without running it"
    talk.step("the model does not run as it is; trying to repair it")
    repaired = _cleaned(setup, steps)
    if isinstance(repaired, str):
        raise ModelError(f"{hint}; {repaired}")
    bench, inputs = assemble(repaired.model)
    if why_not(bench.original):
        raise ModelError(hint)
    _adopt(setup, steps[0], repaired, bench, inputs, f"does not run in ONNX Runtime ({reason})")


def widen(setup: Setup, assemble: Assemble, steps: list[BuiltStep], talk: Talk) -> None:
    """The same for a model that runs at some shapes only: the repaired one is the reference where it runs at more."""
    where = ", ".join(setup.inputs.unrunnable)
    talk.step(f"the model does not run at {where}; trying to repair it")
    repaired = _cleaned(setup, steps)
    if not isinstance(repaired, str):
        bench, inputs = assemble(repaired.model)
        if not why_not(bench.original) and len(inputs.unrunnable) < len(setup.inputs.unrunnable):
            _adopt(setup, steps[0], repaired, bench, inputs, f"does not run in ONNX Runtime at {where}")
            return
    setup.notes.append(f"the input model itself does not run at {where}: not compared there")


def _cleaned(setup: Setup, steps: list[BuiltStep]) -> Edited | str:
    """What the first step makes of the model when that is ``cleanup`` and changes something, else why not."""
    first = steps[0] if steps else None
    if first is None or first.transform is None or first.name != CLEANUP:
        return "cleanup might repair it, but is not the first step"
    try:
        edited = attempt(first.transform, setup.state.model, setup.digest, setup.bench.interface, setup.bench.context)
    except RejectedError as rejected:
        return f"cleanup could not repair it ({rejected.reason})"
    return "cleanup found nothing to repair" if edited.plan.empty else edited


def _adopt(setup: Setup, step: BuiltStep, repaired: Edited, bench: Bench, inputs: Inputs, what: str) -> None:
    """Make the repaired model the reference, and the step that repaired it done."""
    assert step.transform is not None
    bench.interface = setup.bench.interface
    setup.bench, setup.inputs = bench, inputs
    sizes = model_sizes(repaired.model)
    setup.state = State(repaired.model, repaired.digest, bench.original, sizes)
    setup.notes.append(
        f"the input {what}; cleanup repaired it, and the repaired model is the reference for all figures"
    )
    setup.done.append(
        PassResult(
            name=step.name,
            status=Status.APPLIED,
            fidelity_class=str(step.transform.fidelity),
            implicit=step.implicit,
            params=step.transform.config.model_dump(mode="json", exclude_defaults=True),
            resolved=step.transform.config.model_dump(mode="json"),
            changes=[Site(site=c.site, before=c.before, after=c.after, saves=c.saves) for c in repaired.plan.changes],
            notes=[*repaired.plan.notes, "repaired: the model now runs"],
            bytes_before=setup.input.weight_bytes,
            bytes_after=sizes.bytes,
            parameters_before=setup.input.parameters,
            parameters_after=sizes.parameters,
        )
    )
