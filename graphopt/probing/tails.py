"""The part of a changed model that differs from the original: everything before the first change is computed once.

Values that cross that point are read off a run of the original, and the rest is run on them. What comes out is what
the whole changed model puts out, because the part in front of the change is the same, node by node; only where
ONNX Runtime fuses nodes on both sides of the cut are sums rounded in another order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import attribute_bytes, bodies, replace_input
from graphopt.precision.types import ElementTypes


@dataclass(frozen=True, eq=False, slots=True)
class Tail:
    """A model on the values that cross the cut, and which outputs it has; the others are those of the original."""

    model: ir.Model
    reads: tuple[str, ...]
    outputs: tuple[str, ...]


class Trunk:
    """An original, looked at once: where its nodes are, and which values are alive in front of each."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes = list(model.graph)
        self.order = {node.name or "": index for index, node in enumerate(self.nodes)}
        self._types = ElementTypes(model)
        self._made: dict[ir.Value, int] = {value: -1 for value in model.graph.inputs if not value.is_initializer()}
        self._last: dict[ir.Value, int] = {}
        for index, node in enumerate(self.nodes):
            self._made.update(dict.fromkeys(node.outputs, index))
            for value in _reads(node):
                self._last[value] = index
        for value in model.graph.outputs:
            self._last[value] = len(self.nodes)

    def first_difference(self, variant: ir.Model) -> int:
        """Position of the first node that ``variant`` does not have, or has with other inputs, weights or attributes.

        The number of nodes where there is none.
        """
        others = {node.name or "": node for node in variant.graph}
        for index, node in enumerate(self.nodes):
            other = others.get(node.name or "")
            if other is None or not _same(node, other):
                return index
        return len(self.nodes)

    def alive(self, cuts: Iterable[int]) -> dict[int, list[ir.Value]]:
        """For each position, what is computed or fed before it and read at or after it."""
        born: dict[int, list[ir.Value]] = {}
        for value, position in self._made.items():
            if self._last.get(value, -1) > position:
                born.setdefault(position, []).append(value)
        found: dict[int, list[ir.Value]] = {}
        live: dict[ir.Value, None] = {}
        position = -1
        for cut in sorted(set(cuts)):
            while position < cut:
                live.update(dict.fromkeys(born.get(position, ())))
                position += 1
            for value in [value for value in live if self._last[value] < cut]:
                del live[value]
            found[cut] = list(live)
        return found

    def tail(self, variant: ir.Model, alive: Sequence[ir.Value]) -> Tail:
        """What is left of ``variant``, which is edited, when the ``alive`` values of this model are given.

        Inputs of the model stay inputs, so whatever the variant reads besides is computed from them as before. A value
        that is no tensor, or of which no type is known, is computed again rather than given.
        """
        graph = variant.graph
        named = {value.name: value for node in graph for value in node.outputs}
        given = []
        outputs = {value.name for value in graph.outputs}
        for value in alive:
            dtype, old = self._types.of(value), named.get(value.name)
            if dtype is None or old is None:
                continue
            name = old.name or ""
            new = ir.Value(name=name, type=ir.TensorType(dtype), shape=value.shape)
            old.name = f"{name}/before"
            for use in list(old.uses()):
                replace_input(use.node, use.idx, new)
            graph.inputs.append(new)
            given.append(name)
        kept = [v for v in graph.outputs if v.name in outputs]
        graph.outputs.clear()
        graph.outputs.extend(kept)
        editor = GraphEditor(variant)
        editor.drop_dead()
        for value in [v for v in graph.inputs if not v.uses() and not v.is_graph_output()]:
            graph.inputs.remove(value)
        read = {value.name for value in graph.inputs}
        return Tail(variant, tuple(n for n in given if n in read), tuple(v.name or "" for v in kept))


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """Every value that a node reads, what its bodies take from outside included."""
    stack = [node]
    while stack:
        current = stack.pop()
        yield from (value for value in current.inputs if value is not None)
        for body in bodies(current):
            yield from body.outputs
            stack.extend(body)


def _same(a: ir.Node, b: ir.Node) -> bool:
    """Whether two nodes compute the same from values of the same names."""
    pairs = [(a, b)]
    while pairs:
        one, two = pairs.pop()
        if (one.domain, one.op_type) != (two.domain, two.op_type) or len(one.inputs) != len(two.inputs):
            return False
        if [v.name for v in one.outputs] != [v.name for v in two.outputs]:
            return False
        for left, right in zip(one.inputs, two.inputs, strict=True):
            if left is None or right is None:
                if left is not right:
                    return False
            elif left.name != right.name or left.const_value is not right.const_value:
                return False
        inner, other = bodies(one), bodies(two)
        if len(inner) != len(other) or _attributes(one) != _attributes(two):
            return False
        for body, twin in zip(inner, other, strict=True):
            if len(body) != len(twin) or [v.name for v in body.outputs] != [v.name for v in twin.outputs]:
                return False
            pairs.extend(zip(body, twin, strict=True))
    return True


def _attributes(node: ir.Node) -> Mapping[str, bytes]:
    graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
    return {name: attribute_bytes(attr) for name, attr in node.attributes.items() if attr.type not in graphs}
