"""What each node costs: parameters, bytes of weights, and multiply-accumulates at measured sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import onnx_ir as ir

from graphopt.analysis.blocks import Structure, find_structure
from graphopt.analysis.cost_roles import RoleFinder
from graphopt.analysis.dataflow import INDEX_TYPES, Kind, captures, nested_graphs, trace
from graphopt.analysis.macs import Operands, Sizes, UnknownSizeError, count_macs
from graphopt.editing import bodies

#: Inputs that hold scales and zero points: bytes of the file, but not parameters.
_QUANTIZATION_INPUTS: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "MatMulInteger": (2, 3),
    "ConvInteger": (2, 3),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QGemm": (1, 2, 4, 5, 7, 8),
    "QAttention": (3, 4, 6, 7),
    "DynamicQuantizeMatMul": (2, 3),
    "MatMulIntegerToFloat": (2, 3, 4, 5),
    "MatMulNBits": (2, 3),
    "GatherBlockQuantized": (2, 3),
}


class MeasuredSizes(Protocol):
    """What the counting needs of a ``ShapeTable``."""

    @property
    def assignments(self) -> tuple[Mapping[str, int], ...]: ...

    def sizes(self, value: ir.Value | str) -> tuple[Sizes, ...]: ...


@dataclass(frozen=True, slots=True)
class NodeCost:
    """The cost of one node. Weights it shares with other nodes are in full here, and once in any sum."""

    node: ir.Node
    role: str
    parameters: int  #: elements of the weights it reads; not indices, single numbers, scales or zero points
    bytes: int  #: of all constants it reads
    macs: tuple[int | None, ...]  #: at each assignment; None where a size is unknown; a body counts as run once
    constants: tuple[Constant, ...]


@dataclass(frozen=True, slots=True)
class Constant:
    """One stored tensor, identified by ``key``."""

    key: int
    elements: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Cost:
    """A sum over nodes, shared weights counted once."""

    nodes: int
    parameters: int
    bytes: int
    macs: tuple[int, ...]  #: at each assignment, nodes of unknown size left out


@dataclass(frozen=True)
class CostTable:
    """Costs by node, in graph order, constant arithmetic left out."""

    assignments: tuple[Mapping[str, int], ...]  #: sizes of the dynamic dims that ``macs`` are counted at
    nodes: tuple[NodeCost, ...]

    @cached_property
    def _by_node(self) -> dict[ir.Node, NodeCost]:
        return {cost.node: cost for cost in self.nodes}

    def of(self, node: ir.Node) -> NodeCost | None:
        """The cost of ``node``; None for one that computes constants or shapes only."""
        return self._by_node.get(node)

    @cached_property
    def total(self) -> Cost:
        return self._sum(self.nodes, set())

    @cached_property
    def by_role(self) -> dict[str, Cost]:
        """Sums by role, most parameters first; a weight shared between roles counts where it is read first."""
        return self._grouped(lambda cost: cost.role)

    @cached_property
    def by_op(self) -> dict[str, Cost]:
        """Sums by operator ("MatMul", "com.microsoft.Attention"), most parameters first."""
        return self._grouped(lambda cost: f"{cost.node.domain}.{cost.node.op_type}".lstrip("."))

    @property
    def unknown(self) -> tuple[str, ...]:
        """Names of the nodes whose multiply-accumulates could not be counted."""
        return tuple(cost.node.name or "" for cost in self.nodes if None in cost.macs)

    def _grouped(self, key: Callable[[NodeCost], str]) -> dict[str, Cost]:
        members: dict[str, list[NodeCost]] = {}
        first: dict[int, str] = {}
        for cost in self.nodes:
            group = key(cost)
            members.setdefault(group, []).append(cost)
            for constant in cost.constants:
                first.setdefault(constant.key, group)
        sums = {}
        for group, costs in members.items():
            elsewhere = {k for cost in costs for k in (c.key for c in cost.constants) if first[k] != group}
            sums[group] = self._sum(costs, elsewhere)
        return dict(
            sorted(sums.items(), key=lambda item: (-item[1].parameters, -max(item[1].macs, default=0), item[0]))
        )

    def _sum(self, costs: Iterable[NodeCost], seen: set[int]) -> Cost:
        nodes = parameters = size = 0
        macs = [0] * len(self.assignments)
        for cost in costs:
            nodes += 1
            for constant in cost.constants:
                if constant.key not in seen:
                    seen.add(constant.key)
                    parameters += constant.elements
                    size += constant.bytes
            macs = [total + (own or 0) for total, own in zip(macs, cost.macs, strict=True)]
        return Cost(nodes, parameters, size, tuple(macs))


def count_cost(model: ir.Model, shapes: MeasuredSizes, *, structure: Structure | None = None) -> CostTable:
    """Count every node of ``model``, nested bodies included, at each of the assignments of ``shapes``.

    A weight that reaches its reader through constant arithmetic (a DequantizeLinear, a Transpose) is the reader's.
    ``structure`` saves finding the residual blocks again.
    """
    graphs = nested_graphs(model)
    captured = captures(graphs)
    flows = [trace(graph, captured) for graph, _ in graphs]
    roles = RoleFinder(structure if structure is not None else find_structure(model))
    constants = _Constants()
    costs = []
    for flow in flows:
        for node in flow.nodes:
            kinds = {flow.kind(out) for out in node.outputs}
            if kinds and max(kinds) >= Kind.DATA:
                reads = constants.read_by(node)
                costs.append(
                    NodeCost(
                        node,
                        roles.role(node, flow),
                        sum(c.elements for c in reads),
                        sum(c.bytes for c in reads),
                        tuple(_macs(node, shapes, i) for i in range(len(shapes.assignments))),
                        reads,
                    )
                )
    return CostTable(shapes.assignments, tuple(costs))


def _macs(node: ir.Node, shapes: MeasuredSizes, assignment: int) -> int | None:
    def size_of(value: ir.Value) -> Sizes | None:
        try:
            return shapes.sizes(value)[assignment]
        except KeyError:  # a nested body's value, perhaps with sizes declared in the file
            shape = value.const_value.shape if value.const_value is not None else value.shape
            if shape is None:
                return None
            sizes = tuple(size for size in shape if isinstance(size, int))
            return sizes if len(sizes) == len(shape) else None

    try:
        return count_macs(Operands(node, size_of))
    except UnknownSizeError:
        return None


class _Constants:
    """The stored tensors behind each node's inputs."""

    def __init__(self) -> None:
        self._known: dict[ir.Value, bool] = {}

    def read_by(self, node: ir.Node) -> tuple[Constant, ...]:
        found: dict[int, Constant] = {}
        for constant in self._stored(node):
            known = found.get(constant.key)
            if known is None or constant.elements > known.elements:
                found[constant.key] = constant
        return tuple(found.values())

    def _stored(self, reader: ir.Node) -> Iterator[Constant]:
        scale = reader.op_type == "Mul" and any(map(_is_measured_scale, reader.inputs))
        pending = [(reader, value, i, scale) for i, value in enumerate(reader.inputs)]
        seen = set()
        while pending:
            node, value, index, auxiliary = pending.pop()
            auxiliary = auxiliary or index in _QUANTIZATION_INPUTS.get(node.op_type, ())
            if value is None or (value, auxiliary) in seen:
                continue
            seen.add((value, auxiliary))
            tensor = _tensor(value)
            producer = value.producer()
            if tensor is not None:
                yield Constant(id(tensor), 0 if auxiliary else _elements(tensor, node), tensor.nbytes)
            elif producer is not None and self._constant(value):
                pending.extend((producer, v, i, auxiliary) for i, v in enumerate(producer.inputs))

    def _constant(self, value: ir.Value) -> bool:
        """Whether ``value`` is computed from stored tensors alone."""
        pending = [value]
        while pending:
            current = pending[-1]
            producer = current.producer()
            if current in self._known:
                pending.pop()
            elif _tensor(current) is not None:
                self._known[current] = True
            elif producer is None or not producer.inputs or _has_body(producer):
                self._known[current] = False
            else:
                open_inputs = [v for v in producer.inputs if v is not None and v not in self._known]
                if any(not self._known.get(v, True) for v in producer.inputs if v is not None):
                    self._known[current] = False
                elif open_inputs:
                    pending.append(open_inputs[0])
                else:
                    self._known[current] = True
        return self._known[value]


def _is_measured_scale(value: ir.Value | None) -> bool:
    """Whether ``value`` is the scale that a dynamic quantization measures; what multiplies it is the weight's scale."""
    node = value.producer() if value is not None else None
    return node is not None and value is not None and node.op_type == "DynamicQuantizeLinear" and value.index() == 1


def _has_body(node: ir.Node) -> bool:
    return bool(bodies(node))


def _tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor stored for ``value``: an initializer's, or a Constant node's."""
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor()
    return None


def _elements(tensor: ir.TensorProtocol, reader: ir.Node) -> int:
    """Parameters that ``reader`` finds in ``tensor``, unpacked; indices and single numbers are none."""
    if tensor.dtype in INDEX_TYPES or tensor.size <= 1:
        return 0
    bits = reader.attributes.get("bits")
    packed = reader.op_type in ("MatMulNBits", "GatherBlockQuantized") and tensor.dtype is ir.DataType.UINT8
    return tensor.size * 8 // bits.as_int() if packed and bits is not None else tensor.size
