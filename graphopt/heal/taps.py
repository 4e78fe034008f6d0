"""Which values of teacher and student are compared, as what, and how much each kind of comparison counts."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.analysis.blocks import Layer
from graphopt.analysis.roles import PRODUCTS, attention_softmax
from graphopt.analysis.view import GraphView
from graphopt.errors import PassError
from graphopt.runtime.metrics import looks_like_logits

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_SOFTMAX = ("Softmax", "LogSoftmax")


class Kind(enum.StrEnum):
    """What a value is, and so which loss it gets."""

    LOGITS = "logits"
    EMBEDDING = "embedding"
    NUMBERS = "numbers"
    HINT = "hint"  #: on the way, not an output
    ATTENTION = "attention"  #: on the way: where each position looks, [B, heads, Q, K]

    @property
    def on_the_way(self) -> bool:
        """Whether it steers training without saying how good a student is."""
        return self in (Kind.HINT, Kind.ATTENTION)


@dataclass(frozen=True, slots=True)
class Tap:
    """A value that the student should have like the teacher."""

    label: str
    teacher: str
    student: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Parts:
    """Weights of the parts of a loss."""

    temperature: float = 2.0  #: of the softened distributions, on logits
    alpha: float = 0.0  #: share of the plain squared error beside the softened one, on logits
    relational: float = 1.0  #: of the similarities between samples, on embeddings
    hint: float = 1.0  #: of all hints together
    attention: float = 0.0  #: of all attention maps together


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
        before = _before_softmax(mine), _before_softmax(other)
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


def trunk_taps(teacher: ir.Model, student: ir.Model) -> list[Tap]:
    """What goes into each layer that both models have (by the name of what comes out), first layers of trunks apart.

    Where layers were dropped, the one behind the gap is to be given what all of them together made. Romero et al., 2015
    (arXiv:1412.6550) call these hints; TinyBERT (arXiv:1909.10351) has one for each of its layers.
    """
    inputs = {
        (a.input.name or "", b.input.name or "") for a, b in _common_layers(teacher, student) if a.index * b.index
    }
    return [Tap(after, before, after, Kind.HINT) for before, after in sorted(inputs)]


def attention_taps(teacher: ir.Model, student: ir.Model) -> tuple[list[Tap], int]:
    """One tap for each softmax over keys in a layer that both models have, and in how many layers there is none to tap.

    The teacher is tapped behind its softmax, whose values are small enough to keep many, the student before it. What
    can not be tapped is inside one operator (``Attention`` and its kin), or the layers attend another number of times.
    TinyBERT (arXiv:1909.10351) compares attention in each of its layers.
    """
    taps, missing = [], 0
    for theirs, mine in _common_layers(teacher, student):
        wanted, own = _maps(theirs), _maps(mine)
        if len(wanted) == len(own):
            taps += [Tap(a, a, b, Kind.ATTENTION) for (_, a), (b, _) in zip(wanted, own, strict=True)]
        attends = any("attention" in block.role for block in (*theirs.blocks, *mine.blocks))
        missing += attends and (not own or len(wanted) != len(own))
    return taps, missing


def _maps(layer: Layer) -> list[tuple[str, str]]:
    """What goes into each softmax over keys, and what comes out of it, in graph order."""
    found: dict[tuple[str, str], None] = {}
    for node in layer.nodes:
        if node.op_type in PRODUCTS:
            for value in node.inputs:
                softmax = attention_softmax(value)
                before = _before_softmax(softmax.outputs[0]) if softmax is not None else None
                if softmax is not None and before is not None:
                    found[before, softmax.outputs[0].name or ""] = None
    return list(found)


def _common_layers(teacher: ir.Model, student: ir.Model) -> list[tuple[Layer, Layer]]:
    """The layers of the main graph whose output has a name in both, in the student's order."""
    known, mine = ({layer.output.name: layer for layer in _layers(model)} for model in (teacher, student))
    return [(known[name], layer) for name, layer in mine.items() if name in known]


def _layers(model: ir.Model) -> list[Layer]:
    trunks = [trunk for trunk in GraphView(model).structure.trunks if trunk.graph is model.graph and not trunk.nested]
    return [layer for trunk in trunks for layer in trunk.layers]


def _before_softmax(value: ir.Value) -> str | None:
    """The value before a softmax over the last axis that makes ``value``."""
    node = value.producer()
    if node is None or node.op_type not in _SOFTMAX or node.domain or node.inputs[0] is None:
        return None
    axis = node.attributes.get_int("axis", -1)
    rank = len(value.shape) if value.shape is not None else None
    last = axis == -1 or (rank is not None and axis == rank - 1)
    return node.inputs[0].name if last else None


def _kind(output: ir.Value) -> Kind:
    if output.shape is None or len(output.shape) < 2 or output.shape[-1] == 1:
        return Kind.NUMBERS
    return Kind.LOGITS if looks_like_logits(output.name or "") else Kind.EMBEDDING


def teacher_names(taps: Sequence[Tap]) -> list[str]:
    """The teacher's values that have to be kept."""
    return list(dict.fromkeys(tap.teacher for tap in taps))
