"""Quantization-aware training: a static int8 draft healed as int8 computes, and written again from what was learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.autograd.writeback import set_weights, weight_places
from graphopt.editing import GraphEditor
from graphopt.errors import ModelError, PassError
from graphopt.heal.config import TrainingConfig
from graphopt.heal.healing import Healed, heal, trained
from graphopt.model import clone_model
from graphopt.quantization.drafting import Draft, Drafter
from graphopt.quantization.simulating import Simulation, simulate
from graphopt.quantization.writer import Int8Writer
from graphopt.transform import Declined


@dataclass(frozen=True)
class Trained:
    """A draft that was trained, if that brought it nearer to the original, and the model that it is to be written in.

    ``pinned`` are the fields of the training with which a replay does the same.
    """

    draft: Draft
    model: ir.Model
    pinned: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)


def train_draft(drafter: Drafter, draft: Draft, config: TrainingConfig) -> Trained:
    """``draft``, which is static, trained; where the guard refuses that, the draft that it accepts untrained, trained.

    Training starts from what the draft computes, its corrected biases included, and goes against ``ctx.original``. What
    comes of it is kept when the integer model itself is nearer to the original on the selection split than the draft's.

    Raises MissingDependencyError without torch, UsageError for a checkpoint that cannot be used.
    """
    found = _trained(drafter, draft, config)
    if not found.draft.sites or drafter.ctx.acceptable(Int8Writer.written(found.model, found.draft.choices)):
        return found
    smaller = drafter.draft("static")
    if smaller.max_error == found.draft.max_error:
        return found
    return _trained(drafter, smaller, _elsewhere(config))


def _elsewhere(config: TrainingConfig) -> TrainingConfig:
    """The same with a checkpoint of its own: two trainings have two states."""
    if config.checkpoint is None:
        return config
    path = f"{config.checkpoint}.guarded"
    return config.model_copy(update={"checkpoint": path, "resume": config.resume and Path(path).exists()})


def _trained(drafter: Drafter, draft: Draft, config: TrainingConfig) -> Trained:
    model, ctx = drafter.model, drafter.ctx
    simulation = simulate(model, draft.sites, draft.choices)
    if not simulation.sites:
        return _untrained(draft, model, "no product has a static range, so there is nothing to train")
    lecture = config.lecture(ctx, trainable=trainable(simulation))
    try:
        healed = heal(simulation.model, ctx, lecture)
    except (ModelError, PassError) as error:
        return _untrained(draft, model, str(error))
    pinned = config.pinned(lecture, healed.course.steps)
    if not healed.changed:
        reason = f"{healed.course.steps} steps did not get it nearer to the original"
        return replace(_untrained(draft, model, reason), pinned=pinned)
    choices, behind = simulation.learned(), floats(simulation, healed.changed)
    before, after = ctx.divergences([Int8Writer.written(model, draft.choices), Int8Writer.written(behind, choices)])
    if after >= before:
        reason = f"trained it is {after:.2e} from the original (1 - cosine, held-out inputs), untrained {before:.2e}"
        return replace(_untrained(draft, model, reason), pinned=pinned)
    note = f"qat: {_told(healed)}; 1 - cosine to the original {before:.2e} -> {after:.2e}"
    return Trained(replace(draft, choices=choices), behind, pinned, [note, *healed.notes])


def _untrained(draft: Draft, model: ir.Model, reason: str) -> Trained:
    return Trained(draft, model, declined=[Declined("qat", reason)])


def _told(healed: Healed) -> str:
    course = healed.course
    loss = f"held-out loss {course.before:.4f} -> {course.after:.4f}"
    return f"best of {course.steps} steps: {course.best}, on {healed.samples} samples; {loss}"


def trainable(simulation: Simulation) -> set[str]:
    """What int8 stores in another form, and what ``heal`` trains of the rest; codes that are not simulated rest."""
    stored = {site.weight.name for site in simulation.coded}
    chosen, present = trained(simulation.source, tables=False), weight_places(simulation.model)
    kept = {name for name, value in weight_places(simulation.source).items() if name in present and chosen(value)}
    return simulation.names | (kept - stored)


def floats(simulation: Simulation, changed: Sequence[str]) -> ir.Model:
    """The float model with what training made of the parameters that int8 leaves in float."""
    from graphopt.autograd.parameters import weight_tensor

    model, now = clone_model(simulation.source), weight_places(simulation.model)
    kept = [name for name in changed if name not in simulation.names]
    set_weights(model, {name: np.asarray(weight_tensor(now[name]).numpy()) for name in kept})
    editor, nodes = GraphEditor(model), {node.name: node for node in model.graph}
    for (name, index), array in simulation.ungained().items():
        value = nodes[name].inputs[index]
        assert value is not None
        editor.set_initializer(value, array, uses=[(nodes[name], index)])
    return model
