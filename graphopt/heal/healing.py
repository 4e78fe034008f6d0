"""Heal one model: its weights trained until its outputs are as near to the original's as the budget allows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.autograd import to_torch, write_back
from graphopt.autograd.requirement import require_torch
from graphopt.errors import PassError
from graphopt.heal.lessons import Lesson, gather
from graphopt.heal.taps import Kind, Parts, Tap, attention_taps, output_taps, trunk_taps
from graphopt.heal.teachers import Teachers
from graphopt.model import digest
from graphopt.runtime.inputs import Kind as InputKind
from graphopt.runtime.inputs import input_facts
from graphopt.transform import PassContext

if TYPE_CHECKING:
    from graphopt.autograd import OnnxModule
    from graphopt.heal.objective import Objective
    from graphopt.heal.trainer import Course, Settings

KEPT_BYTES = 2 << 30  #: of inputs and teacher's answers held in memory
HELD_OUT = 256  #: samples that decide which weights are kept
PARITY = 1e-5  #: largest difference between torch and ONNX Runtime, over the scale of the output
PARITY_ROUNDED = 1e-2  #: the root mean square difference where values are rounded on the way: a last bit turns codes
_PARITY_SAMPLES = 8
_ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear"})


@dataclass(frozen=True)
class Lecture:
    """What to train and how; see ``graphopt.passes.heal`` for the meaning of each."""

    settings: Settings
    parts: Parts = field(default_factory=Parts)
    outputs: Mapping[str, Kind] = field(default_factory=dict)
    teachers: Sequence[Path] = ()
    tables: bool = False
    trainable: Collection[str] | None = None  #: names of the weights to train, instead of those that are by themselves
    samples: int | None = None
    checkpoint: Path | None = None
    resume: bool = False


@dataclass(frozen=True)
class Healed:
    """What came of it."""

    course: Course
    changed: Sequence[str]  #: names of the weights that training changed
    taps: Sequence[Tap]
    samples: int
    notes: Sequence[str]  #: what was asked for and is not there to learn from


def heal(model: ir.Model, ctx: PassContext, lecture: Lecture) -> Healed:
    """Train ``model`` in place against ``ctx.original`` on the calibration split.

    The weights that end in it are those with the least loss on the selection split; without any that beat the ones it
    had, it keeps them.

    Raises PassError when torch and ONNX Runtime disagree on the model, before training or after; UsageError for a
    teacher of another interface, or samples that cannot be told apart where some are to be selected; ModelError for an
    operator that cannot be trained through; MissingDependencyError without torch.
    """
    require_torch()
    from graphopt.heal.depth import LayerDropout
    from graphopt.heal.objective import Objective
    from graphopt.heal.trainer import Trainer

    settings = lecture.settings
    notes: list[str] = []
    teachers = Teachers(ctx, model, lecture.teachers, lecture.outputs)
    taps = [*teachers.outputs, *_on_the_way(ctx.original, model, lecture.parts, notes)]
    depth = LayerDropout(model, settings.layer_dropout, settings.seed) if settings.layer_dropout else None
    if depth is not None and not depth.stacks:
        notes.append("no layer is left out: no residual trunk has two layers that could go")
    chosen = trained(model, tables=lecture.tables) if lecture.trainable is None else lecture.trainable
    module = to_torch(model, trainable=chosen)
    if not module.weights():
        raise PassError("the model has no float weight that could be trained; heal goes before int8")
    check_parity(module, model, ctx)
    lessons, cut = gather(teachers.answers(taps, "calibration", lecture.samples), KEPT_BYTES, settings.batch)
    samples = sum(lesson.rows for lesson in lessons)
    if cut:
        notes.append(f"learned from the first {samples} samples: more do not fit in memory")
    held, _ = gather(teachers.answers(teachers.outputs, "selection", HELD_OUT), KEPT_BYTES)
    objective = Objective(taps, lecture.parts, mask_input(model))
    unfit = len(_fit(objective, module, lessons[0]))
    if unfit:
        notes.append(f"{unfit} hints or maps left out: their values differ from the original's in more than a width")
    if settings.hint_share and not objective.on_the_way:
        notes.append("hint_share: there are no hints, so all steps learn from the outputs")
    trainer = Trainer(module, lessons, held, objective, settings, depth)
    known = settings.budget.steps
    with ctx.progress("heal", known or 0) as bar:

        def report(step: int, total: int, loss: float, held_out: float) -> None:
            bar.tell(total, f"heal: loss {loss:.4f}, held-out {held_out:.4f}")
            bar.advance()

        course = trainer.run(
            report=report,
            path=lecture.checkpoint,
            resume=lecture.resume,
            fingerprint=_fingerprint(model, ctx, lecture, teachers, len(lessons)),
        )
    module.to("cpu")
    changed = write_back(module, model) if course.best else []
    if changed:
        check_parity(module, model, ctx)
    return Healed(course, changed, objective.taps, samples, notes)


def _on_the_way(original: ir.Model, model: ir.Model, parts: Parts, notes: list[str]) -> list[Tap]:
    """Hints and attention maps that both models have."""
    hints = trunk_taps(original, model) if parts.hint else []
    maps, missing = attention_taps(original, model) if parts.attention else ([], 0)
    if missing:
        notes.append(f"attention of {missing} layers cannot be compared: it is inside one operator, or differs in kind")
    elif parts.attention and not maps:
        notes.append("no attention is compared: the models have no layer with attention in common")
    return [*hints, *maps]


def _fit(objective: Objective, module: OnnxModule, lesson: Lesson) -> list[Tap]:
    """Let the objective learn the widths of student and teacher from one lesson; the hints that had to go."""
    import torch

    from graphopt.heal.objective import as_tensors

    with torch.no_grad():
        found = module(dict(lesson.inputs), list(dict.fromkeys(tap.student for tap in objective.taps)))
    return objective.fit(found, as_tensors(lesson.targets))


def trained(model: ir.Model, *, tables: bool) -> Callable[[ir.Value], bool]:
    """Which weights are trained: those that autograd takes by itself, without embedding tables unless wanted.

    A table is most of a small model's weights, and what few of its rows a short training sees move away from the rest.
    """
    from graphopt.autograd import default_trainable

    chosen = default_trainable(model)

    def choice(value: ir.Value) -> bool:
        return value.name in chosen and (tables or not _is_table(value))

    return choice


def _is_table(value: ir.Value) -> bool:
    return any(use.node.op_type == "Gather" and use.idx == 0 and not use.node.domain for use in value.uses())


def mask_input(model: ir.Model) -> str | None:
    """The input [N, L] that tells real positions from padding, where there is exactly one."""
    found = [fact.name for fact in input_facts(model) if fact.kind is InputKind.MASK and len(fact.dims) == 2]
    return found[0] if len(found) == 1 else None


def check_parity(module: OnnxModule, model: ir.Model, ctx: PassContext) -> None:
    """Raise PassError unless torch computes what ONNX Runtime computes, on a few inputs."""
    import torch

    names = [tap.label for tap in output_taps(model, model)]
    rounds = any(node.op_type in _ROUNDING for node in model.graph)
    bound = PARITY_ROUNDED if rounds else PARITY
    for feed, expected in ctx.examples(model, names, split="selection", limit=_PARITY_SAMPLES):
        with torch.no_grad():
            found = module(feed, names)
        for name in names:
            scale = float(np.abs(expected[name]).max(initial=0.0)) or 1.0
            apart = np.abs(found[name].float().numpy() - expected[name])
            far = float(np.sqrt(np.square(apart).mean()) if rounds else apart.max(initial=0.0)) / scale
            if not far <= bound:
                raise PassError(
                    f"torch and ONNX Runtime differ by {far:.1e} of the scale of output {name!r}, where {bound:g} is "
                    "allowed: the model is not trained"
                )


def _fingerprint(model: ir.Model, ctx: PassContext, lecture: Lecture, teachers: Teachers, lessons: int) -> str:
    """Equal for trainings that go through the same steps."""
    models = [digest(each) for each in (model, ctx.original, *teachers.models)]
    what = (models, repr(lecture.settings), repr(lecture.parts))
    weights = lecture.tables if lecture.trainable is None else sorted(lecture.trainable)
    more = (sorted(lecture.outputs.items()), weights, lessons, ctx.seed)
    return hashlib.sha256(repr((what, more)).encode()).hexdigest()
