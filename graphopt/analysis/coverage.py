"""How much of each weight, and of each node's work, belongs to some groups; and where a frozen group is held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, keep_mask, leaves
from graphopt.analysis.axes import AxisAnalysis, Group, is_weight
from graphopt.editing import bodies


@dataclass(frozen=True)
class Coverage:
    """Shares from 0 to 1; what is in several groups counts once."""

    weights: dict[str, float]  #: by weight name: the share of its elements that belong to some unit
    nodes: dict[ir.Node, float]  #: the same over all weights of a main-graph node, bodies' included: its share of work


def cover(axes: AxisAnalysis, groups: Iterable[Group], owners: Mapping[ir.Node, ir.Node]) -> Coverage:
    """What ``groups`` touch; ``owners`` as ``outermost`` has them.

    A node that a weight reaches through constant arithmetic is touched like the weight.
    """
    masks: dict[tuple[ir.Node, int], dict[int, np.ndarray]] = {}
    for group in groups:
        for touch in group.touches:
            if is_weight(touch.value):
                found = masks.setdefault((touch.node, touch.index), {})
                units = ~keep_mask(touch.expression, {group.leaf: np.arange(group.size)})
                found[touch.axis] = found[touch.axis] | units if touch.axis in found else units
    weights: dict[str, float] = {}
    touched: dict[ir.Node, float] = {}
    for (node, index), by_axis in masks.items():
        value = node.inputs[index]
        assert value is not None and value.const_value is not None
        share = 1 - prod(1 - float(mask.mean()) for mask in by_axis.values())
        name = value.name or ""
        weights[name] = max(weights.get(name, 0.0), share)
        owner = owners[node]
        touched[owner] = touched.get(owner, 0.0) + share * value.const_value.size
    nodes = {node: elements / _elements(node) for node, elements in touched.items()}
    _forward(nodes, axes.facts.constants, owners)
    return Coverage(weights, nodes)


@dataclass(frozen=True, slots=True)
class Hold:
    """Where a frozen group is held: one reason, and the axis that it concerns."""

    reason: str
    op: str | None = None
    node: str | None = None
    operand: str | None = None  #: "input 0", "output 0", "graph input" or "graph output"
    value: str | None = None
    axis: int | None = None

    @property
    def kind(self) -> str:
        """The reason without the name of the node that it is about."""
        return self.reason.replace(f" {self.node!r}", "") if self.node else self.reason


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of a node, or of the graph, and the value there."""

    label: str  #: what reasons call the node
    node: ir.Node | None
    operand: str
    value: ir.Value

    def hold(self, reason: str, axis: int) -> Hold:
        op, name = (self.node.op_type, self.node.name) if self.node is not None else (None, None)
        return Hold(reason, op, name, self.operand, self.value.name, axis)


def find_holds(axes: AxisAnalysis) -> dict[Group, tuple[Hold, ...]]:
    """For every frozen group, each of its reasons with the operand and the axis behind it, where that can be told."""
    held = {group.leaf: group for group in axes.groups if not group.prunable}
    found: dict[tuple[Group, str], Hold] = {}
    for value_axes, ports in _axes(axes):
        for number, axis in enumerate(value_axes):
            for group in {held[leaf] for leaf in leaves(axis) if leaf in held}:
                for port in ports:
                    for reason in group.reasons:
                        if port.label in reason:
                            found.setdefault((group, reason), port.hold(reason, number))
    return {group: tuple(found.get((group, r)) or Hold(r) for r in group.reasons) for group in held.values()}


def _axes(axes: AxisAnalysis) -> Iterator[tuple[Sequence[Atom], list[Port]]]:
    """The axes of every value, and the ports it is at; each use of an initializer has axes of its own."""
    for value, found in axes.facts.outputs.items():
        yield found, list(_ports(value))
    for (node, index), found in axes.facts.uses.items():
        read = node.inputs[index]
        if read is not None:
            yield found, [Port(_label(node), node, f"input {index}", read)]


def _ports(value: ir.Value) -> Iterator[Port]:
    if value.is_graph_input():
        yield Port(f"graph input {value.name!r}", None, "graph input", value)
    if value.is_graph_output():
        yield Port(f"graph output {value.name!r}", None, "graph output", value)
    for use in value.uses():
        yield Port(_label(use.node), use.node, f"input {use.idx}", value)
    maker = value.producer()
    if maker is not None:
        yield Port(_label(maker), maker, f"output {value.index()}", value)


def _label(node: ir.Node) -> str:
    return f"{node.op_type} {node.name!r}"


def outermost(model: ir.Model) -> dict[ir.Node, ir.Node]:
    """For each node, the node of the main graph that it is inside of, or is."""
    return {inner: node for node in model.graph for inner in with_bodies(node)}


def with_bodies(node: ir.Node) -> Iterator[ir.Node]:
    """``node`` and everything in its bodies."""
    pending = [node]
    for current in pending:
        yield current
        pending.extend(inner for body in bodies(current) for inner in body)


def _elements(node: ir.Node) -> int:
    """Elements of all weights that ``node`` and the nodes in its bodies read."""
    values = (value for inner in with_bodies(node) for value in inner.inputs)
    tensors = (v.const_value for v in values if v is not None and v.is_initializer() and is_weight(v))
    return sum(tensor.size for tensor in tensors if tensor is not None)


def _forward(nodes: dict[ir.Node, float], constants: set[ir.Value], owners: Mapping[ir.Node, ir.Node]) -> None:
    """Hand the share of a node that only computes constants on to what reads them."""
    pending = list(nodes)
    for node in pending:
        for out in node.outputs:
            if out in constants:
                for reader in (owners[use.node] for use in out.uses()):
                    if nodes.get(reader, 0.0) < nodes[node]:
                        nodes[reader] = nodes[node]
                        pending.append(reader)
