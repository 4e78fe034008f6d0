"""Where the integers of shape operands come from, and which of them cannot be repaired after a removal.

A size read by Shape may be computed with before it lands in a Reshape, Expand, Slice ... . Slicing writes constants
into such operands, so every static size that ends there is repairable. One that ends anywhere else is part of the
numerics, and its axis keeps its members.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, find, freeze, leaves
from graphopt.analysis.rules.context import Facts, SizeOperand, ops

#: Ops that compute sizes from sizes; those that only move elements read sizes from their first input alone.
MOVES = ops("Cast Gather Identity Reshape Slice Split Squeeze Unsqueeze")
ELEMENTWISE = ops("Abs Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Neg Not Or Sub Where")
COMPUTES = ELEMENTWISE | ops("Concat ReduceMax ReduceMin ReduceProd ReduceSum")
Sources = frozenset[Atom]
NOWHERE: Sources = frozenset()


def settle_sizes(nodes: Iterable[ir.Node], facts: Facts) -> None:
    """Record the sources of every computed size operand, and freeze the axes whose sizes cannot be repaired.

    ``nodes`` are those of all scopes: a size may be read outside a body and used inside. One that is handed over as
    a value (carried through a Loop, returned by a branch) is not followed.
    """
    trace = _Trace(facts)
    slots: dict[tuple[ir.Node, int], list[SizeOperand]] = {}
    for size in facts.sizes:
        if isinstance(size, SizeOperand) and size.index < len(size.node.inputs):
            slots.setdefault((size.node, size.index), []).append(size)
    for (node, index), listed in slots.items():
        operand = node.inputs[index]
        if operand is not None:
            _settle_operand(node, operand, listed, facts, trace)
    for node in nodes:
        for value in node.outputs:
            sources = trace.elements(value)
            if sources and (ends := _ends(value, slots)):
                for axis in sources:
                    freeze(axis, f"its size is computed with, {ends}")


def _settle_operand(node: ir.Node, operand: ir.Value, listed: list[SizeOperand], facts: Facts, trace: _Trace) -> None:
    contents = facts.shapes.contents(operand)
    count = 0 if contents[0] is None else contents[0].size
    written = {size.element for size in listed}
    for element in range(count):
        if element not in written:
            _freeze_all(trace.element(operand, element), f"its size is computed with by {_label(node)}")
    inferred = 0
    for size in listed:
        sources = trace.element(operand, size.element)
        if sources:
            facts.sources[size] = sources
        numbers = [None if c is None else int(c.reshape(-1)[size.element]) for c in contents]
        if None in numbers:
            _freeze_all((size.axis, *sources), f"its size is an input's to {_label(node)}")
            continue
        if numbers == list(find(size.axis).size):
            if find(size.axis).static or not (sources or _units(size.axis)):
                continue
            # A dynamic size that units are part of: only Reshape can find it out by itself, and only one of them.
            taken = any(c is None or bool(np.any(c == -1)) for c in contents)
            inferred += 1
            if node.op_type != "Reshape" or taken or inferred > 1:
                _freeze_all((size.axis, *sources), f"its size is computed for {_label(node)}")
        elif sources and not adapts(node, numbers):
            _freeze_all(sources, f"its size is computed with by {_label(node)}")


def adapts(node: ir.Node, numbers: Iterable[int | None]) -> bool:
    """Whether an element that differs from the size it stands for says "the same", "the rest" or "from the end"."""
    meant = {"Reshape": (0, -1), "Expand": (1,)}.get(node.op_type, ())
    if node.op_type in ("Slice", "Gather"):
        return all(n is not None and n < 0 for n in numbers)
    return all(n in meant for n in numbers)


def _units(axis: Atom) -> bool:
    return any(leaf.static and not leaf.trivial for leaf in leaves(axis))


def _freeze_all(axes: Iterable[Atom], reason: str) -> None:
    for axis in axes:
        freeze(axis, reason)


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"


def _ends(value: ir.Value, slots: dict[tuple[ir.Node, int], list[SizeOperand]]) -> str:
    """Where a size leaves the arithmetic of sizes other than into a shape operand; empty when nowhere."""
    if value.is_graph_output():
        return "graph output"
    for reader, index in value.uses():
        if (reader, index) in slots or reader.op_type in ("Shape", "Size"):
            continue
        if not _carries(reader, index):
            return f"by {_label(reader)}"
    return ""


def _carries(node: ir.Node, index: int) -> bool:
    if node.domain:
        return False
    if node.op_type == "Cast":
        return not ir.DataType(node.attributes["to"].as_int()).is_floating_point()
    return node.op_type in COMPUTES or (node.op_type in MOVES and index == 0)


class _Trace:
    """Which static axes a size, or one element of a vector of sizes, is computed from."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self._values: dict[ir.Value, Sources] = {}

    def value(self, value: ir.Value | None) -> Sources:
        """Sources of any element, following producers without recursion (chains may be long)."""
        stack = [value] if value is not None else []
        while stack:
            current = stack[-1]
            if current in self._values:
                stack.pop()
                continue
            node = current.producer()
            inputs = self._carried(node) if node is not None else []
            missing = [v for v in inputs if v not in self._values]
            if missing:
                stack.extend(missing)
                continue
            self._values[current] = NOWHERE.union(self._read(node), *(self._values[v] for v in inputs))
            stack.pop()
        return self._values[value] if value is not None else NOWHERE

    def element(self, value: ir.Value | None, element: int) -> Sources:
        """Sources of one element (row-major); all of the value's where an op computes rather than moves."""
        while value is not None and self.value(value):
            node = value.producer()
            if node is None:
                break
            if node.op_type == "Shape" and not node.domain:
                axes = self._axes(node)
                return _static(axes[element : element + 1])
            if node.op_type in ELEMENTWISE:
                return self._elementwise(node, value, element)
            step = self._back(node, value, element)
            if step is None:
                return self.value(value)
            value, element = step
        return NOWHERE

    def elements(self, value: ir.Value) -> Sources:
        """Sources of what ``value`` really holds: a size that a Gather left out is not among them."""
        length = self._length(value)
        if length < 0 or not self.value(value):
            return self.value(value)
        return NOWHERE.union(*(self.element(value, i) for i in range(length)))

    def _elementwise(self, node: ir.Node, value: ir.Value, element: int) -> Sources:
        """What the operands' elements at this place are computed from; vectors of one broadcast."""
        lengths = {self._length(v) for v in (value, *node.inputs) if v is not None}
        if len(lengths - {1}) > 1 or -1 in lengths:
            return self.value(value)
        return NOWHERE.union(*(self.element(v, element if self._length(v) > 1 else 0) for v in node.inputs))

    def _back(self, node: ir.Node, value: ir.Value, element: int) -> tuple[ir.Value | None, int] | None:
        """The input element that an output element is a copy of; None where it is computed."""
        first = node.inputs[0] if node.inputs else None
        if node.op_type in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return first, element
        if node.op_type == "Concat":
            for part in node.inputs:
                length = self._length(part)
                if length < 0:
                    return None
                if element < length:
                    return part, element
                element -= length
            return None
        if node.op_type == "Gather":
            picked = self._constant(node, 1)
            length = self._length(first)
            if picked is None or length < 0 or element >= picked.size:
                return None
            return first, int(picked.reshape(-1)[element]) % length
        if node.op_type == "Split":
            lengths = [self._length(o) for o in node.outputs[: node.outputs.index(value)]]
            return (first, sum(lengths) + element) if min(lengths, default=0) >= 0 else None
        if node.op_type == "Slice":
            operands = [self._constant(node, i) for i in range(1, len(node.inputs))]
            length = self._length(first)
            if length < 0 or len(operands) < 2 or any(o is None or o.size != 1 for o in operands):
                return None
            starts, ends, *rest = (int(o.reshape(-1)[0]) for o in operands if o is not None)
            kept = range(length)[slice(starts, ends, rest[1] if len(rest) > 1 else 1)]
            return (first, kept[element]) if element < len(kept) else None
        return None

    def _carried(self, node: ir.Node) -> list[ir.Value]:
        return [v for i, v in enumerate(node.inputs) if v is not None and _carries(node, i)]

    def _read(self, node: ir.Node | None) -> Sources:
        if node is None or node.domain or node.op_type not in ("Shape", "Size"):
            return NOWHERE
        return _static(self._axes(node))

    def _axes(self, node: ir.Node) -> list[Atom]:
        """Axes that a Shape lists, or a Size multiplies."""
        value = node.inputs[0]
        if value is None or not self.facts.shapes.known(value):
            return []
        if value.const_value is not None and value.is_initializer() and not value.is_graph_input():
            axes = self.facts.uses.setdefault((node, 0), self.facts.fresh(value))
        else:
            axes = self.facts.axes_of(value) or []
        bounds = {name: node.attributes[name].as_int() for name in ("start", "end") if name in node.attributes}
        return axes[bounds.get("start", 0) : bounds.get("end", len(axes))]

    def _length(self, value: ir.Value | None) -> int:
        """Elements of a vector (or scalar) of sizes; -1 where that is not fixed."""
        if value is None or not self.facts.shapes.known(value):
            return -1
        dims = self.facts.shapes.dims(value)
        return 1 if not dims else dims[0] if len(dims) == 1 and dims[0] is not None else -1

    def _constant(self, node: ir.Node, index: int) -> np.ndarray | None:
        operand = node.inputs[index]
        return self.facts.shapes.constant(operand) if operand is not None and operand.name else None


def _static(axes: Iterable[Atom]) -> Sources:
    """Axes that hold units: only those can change size by a removal."""
    return frozenset(axis for axis in axes if _units(axis))
