"""Masks that are put together by index arithmetic  ->  what each element is, written down directly.

An exporter that vectorises a mask function writes ``mask[b, k]`` as a gather by two ranges, adds comparisons that
always hold, and computes every shape on the way: thirty operators for one Unsqueeze. Here an element of the result is
followed back, with the axes of the result as symbols, to the elements of the tensors that it depends on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from graphopt.passes.fusing.expressions import (
    ELEMENTWISE,
    TRUE,
    Apply,
    Axis,
    Element,
    Expression,
    LengthOf,
    Number,
    OpaqueError,
    is_natural,
    operators,
)
from graphopt.passes.fusing.match import attribute, dtype_of, maker, number, operand, permutation, small
from graphopt.passes.fusing.work import Sizes, Work
from graphopt.passes.fusing.writing import Writer

_DEPTH = 60
_VIEWS = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity")


def simplified(work: Work, anchor: ir.Node, value: ir.Value, length: LengthOf) -> ir.Value | None:
    """A value of the same rank that broadcasts to ``value`` and is equal to it; None where nothing is gained.

    ``length`` gives the length of an axis of which the sizes at both assignments are known.
    """
    sizes = work.sizes(value)
    if sizes is None:
        return None
    reader = _Reader(work, sizes)
    index = tuple(Number(0) if all(s[i] == 1 for s in sizes) else Axis(i) for i in range(len(sizes[0])))
    try:
        expression = reader.element(value, index, 0)
        if operators(expression) >= reader.visited:
            return None
        return Writer(work, anchor, sizes, length).write(expression)
    except OpaqueError:
        return None


@dataclass
class _Reader:
    work: Work
    result: Sizes
    visited: int = 0
    _seen: set[ir.Node] = field(default_factory=set)

    def element(self, value: ir.Value, index: tuple[Expression, ...], depth: int) -> Expression:
        """The element of ``value`` at ``index``."""
        array, node = small(value), value.producer()
        if array is not None and array.size == 1:
            return Number(float(array.reshape(-1)[0]))
        if node is None or node.domain or depth > _DEPTH or node.op_type not in self._rules:
            return Element(value, index)
        try:
            found = self._rules[node.op_type](self, node, index, depth + 1)
        except OpaqueError:
            return Element(value, index)
        if node not in self._seen:
            self._seen.add(node)
            self.visited += 1
        return found

    def _sizes(self, value: ir.Value | None) -> Sizes:
        sizes = self.work.sizes(value)
        if sizes is None:
            raise OpaqueError
        return sizes

    def _broadcast(self, value: ir.Value, index: tuple[Expression, ...]) -> tuple[Expression, ...]:
        """``index`` of a result that ``value`` is broadcast to, as an index of ``value``."""
        sizes = self._sizes(value)
        rank = len(sizes[0])
        own = index[len(index) - rank :] if rank else ()
        return tuple(Number(0) if all(s[i] == 1 for s in sizes) else at for i, at in enumerate(own))

    def _elementwise(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        arguments = []
        for value in node.inputs:
            if value is None:
                raise OpaqueError
            arguments.append(self.element(value, self._broadcast(value, index), depth))
        return self._reduced(Apply(node.op_type, tuple(arguments), attribute(node, "to", 0)), node)

    def _reduced(self, found: Apply, node: ir.Node) -> Expression:
        """``found`` without what does not matter."""
        if found.op_type == "Identity":
            return found.arguments[0]
        if found.op_type == "Cast":
            same = dtype_of(node.inputs[0]) == ir.DataType(found.to)
            indexing = isinstance(found.arguments[0], Axis | Number) and ir.DataType(found.to).is_integer()
            return found.arguments[0] if same or indexing else found
        if len(found.arguments) != 2:
            return found
        a, b = found.arguments
        if found.op_type == "And" and TRUE in (a, b):
            return b if a == TRUE else a
        if found.op_type == "GreaterOrEqual" and b == Number(0) and is_natural(a):
            return TRUE
        if found.op_type == "LessOrEqual" and a == Number(0) and is_natural(b):
            return TRUE
        return found

    def _view(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        """Through reshapes, to the nearest source with the same sizes but for ones."""
        sizes, value = self._sizes(node.outputs[0]), operand(node, 0)
        inner = [at for i, at in enumerate(index) if any(s[i] != 1 for s in sizes)]
        seen = [node]
        for _ in range(_DEPTH):
            if value is None:
                break
            source = self._sizes(value)
            kept = [i for i in range(len(source[0])) if any(s[i] != 1 for s in source)]
            if _without_ones(sizes) == _without_ones(source) and len(kept) == len(inner):
                places = dict(zip(kept, inner, strict=True))
                self._visit(seen)
                return self.element(value, tuple(places.get(i, Number(0)) for i in range(len(source[0]))), depth)
            if len(inner) == 1 and len(kept) == 2:
                pair = self._unflattened(inner[0], source, kept)
                if pair is not None:
                    self._visit(seen)
                    return self.element(value, tuple(pair.get(i, Number(0)) for i in range(len(source[0]))), depth)
            before = maker(value, *_VIEWS)
            if before is None:
                break
            seen.append(before)
            value = operand(before, 0)
        raise OpaqueError

    def _visit(self, nodes: list[ir.Node]) -> None:
        self.visited += len(set(nodes) - self._seen) - 1
        self._seen.update(nodes[1:])

    def _unflattened(self, at: Expression, source: Sizes, kept: list[int]) -> dict[int, Expression] | None:
        """Row and column of ``row * width + column``, where the column stays below the width."""
        if not isinstance(at, Apply) or at.op_type != "Add":
            return None
        width = tuple(s[kept[1]] for s in source)
        for product, column in (at.arguments, at.arguments[::-1]):
            if not isinstance(product, Apply) or product.op_type != "Mul" or not isinstance(column, Axis):
                continue
            if tuple(s[column.number] for s in self.result) != width:
                continue
            for row, by in (product.arguments, product.arguments[::-1]):
                if isinstance(row, Axis) and self._contents(by) == width:
                    return {kept[0]: row, kept[1]: column}
        return None

    def _contents(self, expression: Expression) -> tuple[int, ...] | None:
        """What a single integer was at each assignment."""
        if isinstance(expression, Number):
            return (int(expression.value),) * len(self.result)
        if not isinstance(expression, Element):
            return None
        arrays = self.work.numbers(expression.tensor)
        at = [e.value for e in expression.index if isinstance(e, Number)]
        if arrays is None or len(at) != len(expression.index):
            return None
        return tuple(int(a[tuple(int(i) for i in at)]) for a in arrays)

    def _range(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        if number(node.inputs[0]) != 0 or number(node.inputs[2]) != 1:
            raise OpaqueError
        return index[0]

    def _expand(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        source = operand(node, 0)
        if source is None:
            raise OpaqueError
        return self.element(source, self._broadcast(source, index), depth)

    def _transpose(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        perm, source = permutation(node), operand(node, 0)
        if perm is None or source is None:
            raise OpaqueError
        back = dict(zip(perm, index, strict=True))
        return self.element(source, tuple(back[i] for i in range(len(perm))), depth)

    def _concat(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        axis = attribute(node, "axis", 0) % len(index)
        at, start = index[axis], 0
        if not isinstance(at, Number):
            raise OpaqueError
        for value in node.inputs:
            widths = {s[axis] for s in self._sizes(value)}
            if len(widths) != 1 or value is None:
                raise OpaqueError
            width = widths.pop()
            if start <= at.value < start + width:
                return self.element(value, (*index[:axis], Number(at.value - start), *index[axis + 1 :]), depth)
            start += width
        raise OpaqueError

    def _gather(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        data, indices = node.inputs[:2]
        if data is None or indices is None:
            raise OpaqueError
        axis = attribute(node, "axis", 0) % len(self._sizes(data)[0])
        rank = len(self._sizes(indices)[0])
        at = self.element(indices, index[axis : axis + rank], depth)
        if not is_natural(at):
            raise OpaqueError  # counted from the end
        return self.element(data, (*index[:axis], at, *index[axis + rank :]), depth)

    def _gather_nd(self, node: ir.Node, index: tuple[Expression, ...], depth: int) -> Expression:
        data, indices = node.inputs[:2]
        if data is None or indices is None or attribute(node, "batch_dims", 0):
            raise OpaqueError
        sizes = self._sizes(indices)
        depths = {s[-1] for s in sizes}
        if len(depths) != 1:
            raise OpaqueError
        lead = len(sizes[0]) - 1
        places = tuple(self.element(indices, (*index[:lead], Number(i)), depth) for i in range(depths.pop()))
        if not all(is_natural(p) for p in places):
            raise OpaqueError
        return self.element(data, (*places, *index[lead:]), depth)

    _rules: ClassVar[dict[str, Callable[[_Reader, ir.Node, tuple[Expression, ...], int], Expression]]] = {
        **dict.fromkeys(ELEMENTWISE, _elementwise),
        **dict.fromkeys(_VIEWS, _view),
        "Range": _range,
        "Expand": _expand,
        "Transpose": _transpose,
        "Concat": _concat,
        "Gather": _gather,
        "GatherND": _gather_nd,
    }


def _without_ones(sizes: Sizes) -> list[list[int]]:
    return [[n for n in s if n != 1] for s in sizes]
