"""Heal one model: its weights trained until its outputs are as near to the original's as the budget allows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.autograd import to_torch, write_back
from graphopt.autograd.requirement import require_torch
from graphopt.errors import PassError
from graphopt.heal.lessons import Arrays, Lesson, gather
from graphopt.heal.taps import Kind, Parts, Tap, output_taps, teacher_names, trunk_taps
from graphopt.model import digest
from graphopt.runtime.inputs import Kind as InputKind
from graphopt.runtime.inputs import input_facts
from graphopt.runtime.provider import cpu_flags
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
    unfit: int  #: hints that were left out: their values differ in more than a width
    samples: int
    cut: bool  #: there were more inputs than fit in memory


def heal(model: ir.Model, ctx: PassContext, lecture: Lecture) -> Healed:
    """Train ``model`` in place against ``ctx.original`` on the calibration split.

    The weights that end in it are those with the least loss on the selection split; without any that beat the ones it
    had, it keeps them.

    Raises PassError when torch and ONNX Runtime disagree on the model, before training or after; ModelError for an
    operator that cannot be trained through; MissingDependencyError without torch.
    """
    require_torch()
    from graphopt.heal.objective import Objective
    from graphopt.heal.trainer import Trainer

    taps = output_taps(ctx.original, model, dict(lecture.outputs))
    hints = trunk_taps(ctx.original, model) if lecture.parts.hint else []
    chosen = trained(model, tables=lecture.tables) if lecture.trainable is None else lecture.trainable
    module = to_torch(model, trainable=chosen)
    if not module.weights():
        raise PassError("the model has no float weight that could be trained; heal goes before int8")
    check_parity(module, model, ctx)
    lessons, cut = gather(_answers(ctx, [*taps, *hints], "calibration", lecture.samples), KEPT_BYTES)
    held, _ = gather(_answers(ctx, taps, "selection", HELD_OUT), KEPT_BYTES)
    objective = Objective([*taps, *hints], lecture.parts, mask_input(model))
    unfit = len(_fit(objective, module, lessons[0]))
    trainer = Trainer(module, lessons, held, objective, lecture.settings)
    known = lecture.settings.budget.steps
    with ctx.progress("heal", known or 0) as bar:

        def report(step: int, total: int, loss: float, held_out: float) -> None:
            bar.tell(total, f"heal: loss {loss:.4f}, held-out {held_out:.4f}")
            bar.advance()

        course = trainer.run(
            report=report,
            path=lecture.checkpoint,
            resume=lecture.resume,
            fingerprint=_fingerprint(model, ctx, lecture, len(lessons)),
        )
    module.to("cpu")
    changed = write_back(module, model) if course.best else []
    if changed:
        check_parity(module, model, ctx)
    return Healed(course, changed, objective.taps, unfit, sum(lesson.rows for lesson in lessons), cut)


def _answers(
    ctx: PassContext, taps: Sequence[Tap], split: str, limit: int | None
) -> Iterator[tuple[Arrays, dict[str, np.ndarray]]]:
    """Inputs and what the teacher makes of them; hints in half precision, for they are many and need not be met."""
    hints = {tap.teacher for tap in taps if tap.kind is Kind.HINT} - {
        tap.teacher for tap in taps if tap.kind != Kind.HINT
    }
    for feed, answers in ctx.examples(ctx.original, teacher_names(taps), split=split, limit=limit):
        yield feed, {name: _halved(array) if name in hints else array for name, array in answers.items()}


def _halved(array: np.ndarray) -> np.ndarray:
    """As float16, unless something in it is too large for that."""
    return array.astype(np.float16) if np.abs(array).max(initial=0.0) < np.finfo(np.float16).max else array


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


def fast_bfloat16(device: str) -> bool:
    """Whether products in bfloat16 are faster there than in float32."""
    return device.startswith("cuda") or bool({"avx512_bf16", "amx_bf16"} & set(cpu_flags()))


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


def _fingerprint(model: ir.Model, ctx: PassContext, lecture: Lecture, lessons: int) -> str:
    """Equal for trainings that go through the same steps."""
    what = (digest(model), digest(ctx.original), repr(lecture.settings), repr(lecture.parts))
    weights = lecture.tables if lecture.trainable is None else sorted(lecture.trainable)
    more = (sorted(lecture.outputs.items()), weights, lessons, ctx.seed)
    return hashlib.sha256(repr((what, more)).encode()).hexdigest()
