"""Which values of teacher and student are compared, and as what."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.errors import PassError
from graphopt.runtime.metrics import looks_like_logits

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_SOFTMAX = ("Softmax", "LogSoftmax")


class Kind(enum.StrEnum):
    """What a value is, and so which loss it gets."""

    LOGITS = "logits"
    EMBEDDING = "embedding"
    NUMBERS = "numbers"


@dataclass(frozen=True, slots=True)
class Tap:
    """A value that the student should have like the teacher."""

    label: str
    teacher: str
    student: str
    kind: Kind


def output_taps(teacher: ir.Model, student: ir.Model, kinds: dict[str, Kind] | None = None) -> list[Tap]:
    """One tap for each float output; ``kinds`` overrides what an output is taken for, by its name.

    An output of Softmax or LogSoftmax in both models is compared before it, as logits. What is called like logits is
    logits; other outputs with a last axis of known size are embeddings.

    Raises PassError when no output is float.
    """
    taps = []
    for mine, other in zip(teacher.graph.outputs, student.graph.outputs, strict=True):
        if mine.dtype not in _FLOATS:
            continue
        name = mine.name or ""
        before = _logits(mine), _logits(other)
        if before[0] is not None and before[1] is not None:
            tap = Tap(name, before[0], before[1], Kind.LOGITS)
        else:
            tap = Tap(name, name, name, _kind(mine))
        if kinds and name in kinds:
            tap = Tap(name, name, name, kinds[name])
        taps.append(tap)
    if not taps:
        raise PassError("no output of the model is float, so there is nothing to learn from")
    return taps


def _logits(output: ir.Value) -> str | None:
    """The value before a final softmax over the last axis."""
    node = output.producer()
    if node is None or node.op_type not in _SOFTMAX or node.domain or node.inputs[0] is None:
        return None
    axis = node.attributes.get_int("axis", -1)
    rank = len(output.shape) if output.shape is not None else None
    last = axis == -1 or (rank is not None and axis == rank - 1)
    return node.inputs[0].name if last else None


def _kind(output: ir.Value) -> Kind:
    if output.shape is None or len(output.shape) < 2 or output.shape[-1] == 1:
        return Kind.NUMBERS
    return Kind.LOGITS if looks_like_logits(output.name or "") else Kind.EMBEDDING


def teacher_names(taps: Sequence[Tap]) -> list[str]:
    """The teacher's values that have to be kept."""
    return list(dict.fromkeys(tap.teacher for tap in taps))
