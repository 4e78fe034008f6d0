"""What a rule sees of one node, and the table the rules register in."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, freeze, product, unify
from graphopt.analysis.shapes import ShapeTable

MICROSOFT = "com.microsoft"


def ops(names: str) -> frozenset[str]:
    """A set of op types, as one writes them in a sentence."""
    return frozenset(names.split())


#: What exporters put between a Softmax and the product with the values.
ROW_KEEPING = frozenset({"Cast", "DequantizeLinear", "Dropout", "Identity", "QuantizeLinear", "Reshape", "Where"})


#: What numbers of members pass through on their way to a Gather, unchanged.
SHAPES_NUMBERS = frozenset({"Cast", "Expand", "Flatten", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


class Event(enum.StrEnum):
    """What happens to an axis at a node; decides the role of a group."""

    HEADS = "heads"  #: carried through an attention's softmax
    SCORES = "query-key"  #: contracted between two activations that make attention scores
    CONTEXT = "value"  #: free axis of the values that attention averages
    EXPERTS = "experts"  #: tells apart the matrices of a bank that each token picks from
    NORMALIZED = "normalized"
    CONVOLVED = "convolved"  #: contracted with a convolution's weight
    FILTERED = "filtered"  #: made by a convolution's weight
    RECURRENT = "recurrent"  #: hidden units of an LSTM, GRU or RNN
    WEIGHTED = "weighted"  #: contracted with a weight
    WINDOW = "window"  #: how far a kernel reaches: no class of units
    PACKED = "packed"  #: gates, directions: tensors of their own laid side by side, no class of units either


@dataclass(frozen=True, slots=True)
class SizeOperand:
    """Element ``element`` of a node's shape-like input equals the size of ``axis``.

    ``within`` is the axis that a negative number counts back from the end of.
    """

    node: ir.Node
    index: int
    element: int
    axis: Atom
    within: Atom | None = None


@dataclass(frozen=True, slots=True)
class SizeAttribute:
    """A node's integer attribute (or its ``element``, for a list) equals the size of ``axis``."""

    node: ir.Node
    name: str
    element: int | None
    axis: Atom


@dataclass(frozen=True, slots=True)
class Summed:
    """Members of ``axis`` are added up (or share a range) at ``node``: each must be zero in one of ``inputs`` to go.

    Or in one of ``outputs``, for an axis that never leaves the node.
    """

    node: ir.Node
    axis: Atom
    inputs: tuple[int, ...]
    outputs: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Statistic:
    """``node`` takes something over ``axis`` (a mean and a variance, a softmax), of the members that there are."""

    node: ir.Node
    axis: Atom
    scaled: ir.Value | None = None  #: the activation whose mean square is divided by, where there is one
    least: int = 1  #: members that there must be
    numbers: ir.Value | None = None  #: an output that holds numbers of members
    competing: bool = False  #: members have scores: one leaves as if its score were minus infinity, not zero


@dataclass(slots=True)
class Facts:
    """Everything the rules of one graph collect."""

    shapes: ShapeTable
    opset: int = 13  #: version of the standard operators that the model imports
    outputs: dict[ir.Value, list[Atom]] = field(default_factory=dict)  #: axes of values that are no initializers
    uses: dict[tuple[ir.Node, int], list[Atom]] = field(default_factory=dict)  #: each use of an initializer is its own
    sizes: list[SizeOperand | SizeAttribute] = field(default_factory=list)
    sources: dict[SizeOperand, frozenset[Atom]] = field(default_factory=dict)  #: axes a computed size is read from
    summed: list[Summed] = field(default_factory=list)
    numbers: dict[ir.Value, Atom] = field(default_factory=dict)  #: indices, and the axis whose members they number
    picked: set[ir.Value] = field(default_factory=set)  #: weights that were picked by numbers, for each token its own
    statistics: list[Statistic] = field(default_factory=list)
    events: list[tuple[Event, Atom, ir.Node]] = field(default_factory=list)
    constants: set[ir.Value] = field(default_factory=set)  #: values computed from initializers alone
    unknown: dict[str, int] = field(default_factory=dict)  #: op types without a rule, with their number of nodes

    def axes_of(self, value: ir.Value) -> list[Atom] | None:
        """Axes of an activation, made on first sight; None where no shape was recorded."""
        if value not in self.outputs:
            if not self.shapes.known(value):
                return None
            self.outputs[value] = self.fresh(value)
        return self.outputs[value]

    def fresh(self, value: ir.Value) -> list[Atom]:
        return [Atom(tuple(sizes)) for sizes in zip(*self.shapes.sizes(value), strict=True)]


class NodeAxes:
    """One node's axes and attributes, and the verbs a rule relates them with."""

    def __init__(self, node: ir.Node, facts: Facts) -> None:
        self.node = node
        self.facts = facts
        self.touched: set[int] = set()
        self.count = len(facts.shapes.assignments)

    @property
    def label(self) -> str:
        return f"{self.node.op_type} {self.node.name!r}"

    # -- reading --------------------------------------------------------------------------------------------------
    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def value(self, index: int) -> ir.Value:
        value = self.node.inputs[index]
        if value is None:
            raise IndexError(f"{self.label} has no input {index}")
        return value

    def axes(self, index: int) -> list[Atom]:
        """Axes of input ``index``; raises LookupError where its shape is unknown, which freezes the node."""
        value = self.value(index)
        self.touched.add(index)
        if value.const_value is not None and value.is_initializer() and not value.is_graph_input():
            return self.facts.uses.setdefault((self.node, index), self.facts.fresh(value))
        found = self.facts.axes_of(value)
        if found is None:
            raise LookupError(f"{self.label}: the shape of input {index} is unknown")
        return found

    def out(self, index: int = 0) -> list[Atom]:
        """Axes of output ``index``."""
        found = self.facts.axes_of(self.node.outputs[index])
        if found is None:
            raise LookupError(f"{self.label}: the shape of output {index} is unknown")
        return found

    def has_out(self, index: int) -> bool:
        """Whether the output exists and is read by anybody (unread outputs have no recorded shape)."""
        outputs = self.node.outputs
        return index < len(outputs) and bool(outputs[index].name) and self.facts.shapes.known(outputs[index])

    @property
    def opset(self) -> int:
        """Version of the standard operators that the node is of."""
        return self.node.version or self.facts.opset

    def attr(self, name: str, default: Any = None) -> Any:
        found = self.node.attributes.get(name)
        return default if found is None or found.value is None else found.value

    def constant(self, index: int) -> np.ndarray | None:
        """Contents of a small integer input that do not depend on the dynamic dims; the input is then accounted for."""
        if not self.has(index):
            return None
        self.touched.add(index)
        return self.facts.shapes.constant(self.value(index))

    def is_weight(self, index: int) -> bool:
        """Whether the input is computed from initializers alone."""
        return self.has(index) and self.value(index) in self.facts.constants

    def holds_weights(self, index: int) -> bool:
        """Whether the input is a weight, or weights that were picked for each token."""
        value: ir.Value | None = self.value(index)
        while value is not None and value not in self.facts.picked:
            maker = value.producer()
            value = maker.inputs[0] if maker is not None and maker.op_type in SHAPES_NUMBERS else None
        return value is not None or self.is_weight(index)

    def averages(self) -> bool:
        """Whether the first operand holds attention probabilities: a Softmax reaches it through ops that keep rows."""
        frontier = self.node.inputs[:1]
        for _ in range(8):
            makers = [maker for v in frontier if v is not None and (maker := v.producer()) is not None]
            if any(maker.op_type in ("Softmax", "QLinearSoftmax") for maker in makers):
                return True
            frontier = tuple(v for maker in makers if maker.op_type in ROW_KEEPING for v in maker.inputs)
        return False

    # -- relating -------------------------------------------------------------------------------------------------
    def same(self, a: Sequence[Atom], b: Sequence[Atom]) -> None:
        """Equal axes, pairwise."""
        for x, y in zip(a, b, strict=True):
            unify(x, y)

    def broadcast(self, operands: Iterable[Sequence[Atom]], result: Sequence[Atom]) -> None:
        """Numpy broadcasting: axes are matched from the right; axes of size one stretch and are not related."""
        for operand in operands:
            for axis, target in zip(reversed(operand), reversed(result), strict=False):
                if not axis.trivial:
                    unify(axis, target)

    def freeze(self, axes: Iterable[Atom], why: str) -> None:
        """Members of these axes cannot be removed one by one."""
        for axis in axes:
            if not axis.trivial:
                freeze(axis, f"{why} by {self.label}")

    def normalised(self, axes: Iterable[Atom], scaled: ir.Value | None, why: str = "normalised") -> None:
        """One statistic is taken over all members of these axes: the mean square of ``scaled``, if that is a value.

        Members of a single axis can leave if it may become that of the members that stay: the op is the same at every
        width. Several axes at once keep their members, and so do positions (dynamic axes).
        """
        real = [axis for axis in axes if not axis.trivial]
        self.event(Event.NORMALIZED, real)
        if len(real) != 1 or not real[0].static:
            self.freeze(real, why)
            return
        freeze(real[0], f"{why} by {self.label}", statistic=True)
        self.facts.statistics.append(Statistic(self.node, real[0], scaled))

    def competing(self, axis: Atom, least: int = 1, numbers: ir.Value | None = None) -> None:
        """Members have scores, of which minus infinity has no effect: each can leave as long as ``least`` stay.

        ``numbers`` is the output that tells which were picked; nothing but ``numbered`` may read it.
        """
        self.facts.statistics.append(Statistic(self.node, axis, least=least, numbers=numbers, competing=True))
        if numbers is not None:
            self.facts.numbers[numbers] = axis

    def numbered(self, index: int) -> Atom | None:
        """The axis whose members an input numbers, if they were picked by scores and have only changed their shape."""
        value: ir.Value | None = self.value(index)
        while value is not None and value not in self.facts.numbers:
            maker = value.producer()
            value = maker.inputs[0] if maker is not None and maker.op_type in SHAPES_NUMBERS else None
        return self.facts.numbers[value] if value is not None else None

    def ignore(self, *indices: int) -> None:
        """These inputs carry no axes worth relating (shape operands, scalars)."""
        self.touched.update(indices)

    def event(self, kind: Event, axes: Iterable[Atom]) -> None:
        self.facts.events.extend((kind, axis, self.node) for axis in axes)

    def summed(self, axis: Atom, *inputs: int) -> None:
        """Members of ``axis`` are added up over these inputs' product."""
        self.facts.summed.append(Summed(self.node, axis, inputs))

    def vanishes(self, axis: Atom, *outputs: int) -> None:
        """Members of ``axis`` share a range inside the node: each must be zero in these outputs to go."""
        self.facts.summed.append(Summed(self.node, axis, (), outputs))

    def product(self, *parts: Atom) -> Atom:
        return product(parts, self.count)

    def atom(self, size: int) -> Atom:
        """A new static atom."""
        return Atom((size,) * self.count)

    def size_operand(self, index: int, axes: Sequence[Atom]) -> None:
        """Input ``index`` spells out the sizes of ``axes``."""
        self.touched.add(index)
        self.facts.sizes.extend(SizeOperand(self.node, index, i, axis) for i, axis in enumerate(axes))

    def bound(self, index: int, element: int, axis: Atom, within: Atom) -> None:
        """Element ``element`` of input ``index`` is a place in ``within``: right behind ``axis``, its front part."""
        self.touched.add(index)
        self.facts.sizes.append(SizeOperand(self.node, index, element, axis, within))

    def size_attribute(self, name: str, axis: Atom, element: int | None = None) -> None:
        self.facts.sizes.append(SizeAttribute(self.node, name, element, axis))


Rule = Callable[[NodeAxes], None]
RULES: dict[tuple[str, str], Rule] = {}


def rule(*op_types: str, domain: str = "") -> Callable[[Rule], Rule]:
    """Register one rule for several op types of a domain."""

    def register(function: Rule) -> Rule:
        for op_type in op_types:
            RULES[domain, op_type] = function
        return function

    return register
