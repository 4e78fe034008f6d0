"""Which part of a network each node belongs to, for tables that say where parameters and time go."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analysis.blocks import Block, Structure
from graphopt.analysis.dataflow import LOOKUPS, DataFlow, Kind
from graphopt.analysis.roles import CONVOLUTIONS, FUSED_ATTENTION, RECURRENT

NORMS = {
    *("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization", "BatchNormalization"),
    *("InstanceNormalization", "GroupNormalization", "GroupNorm", "LpNormalization", "MeanVarianceNormalization"),
    *("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", "SkipGroupNorm"),
}
_ROOTS = {"Sqrt", "Rsqrt", "Reciprocal", "Pow"}
_MAX_STEPS = 12


class RoleFinder:
    """Names each node's part: embedding, norm, attention projections, attention, feed-forward, head, ..."""

    def __init__(self, structure: Structure) -> None:
        self._structure = structure
        self._last: dict[ir.Graph, ir.Node] = {}
        for trunk in structure.trunks:
            self._last[trunk.graph] = trunk.blocks[-1].join
        self._known: dict[ir.Node, str] = {}

    def role(self, node: ir.Node, flow: DataFlow) -> str:
        """The role of ``node``; nodes must be asked for in graph order."""
        self._known[node] = role = self._role(node, flow)
        return role

    def _role(self, node: ir.Node, flow: DataFlow) -> str:
        bears = flow.bears_weight[flow.position[node]]
        if bears and node.op_type in LOOKUPS:
            return "embedding"
        if node.op_type in NORMS or self._scales_a_norm(node, flow):
            return "norm"
        block = self._structure.block_of(node)
        if block is None and bears:
            block = self._destination(node, flow)
        if block is not None:
            if not block.role.endswith("attention"):
                return block.role
            weighted = bears or self._adds_bias(node, flow)
            return "attention projections" if weighted else "attention"
        return self._outside(node, flow, bears)

    def _outside(self, node: ir.Node, flow: DataFlow, bears: bool) -> str:
        """The role of a node in no residual block."""
        if (node.domain, node.op_type) in FUSED_ATTENTION:
            return "attention projections" if bears else "attention"
        if node.op_type in CONVOLUTIONS:
            return "convolution"
        if node.op_type in RECURRENT:
            return "recurrent"
        if bears:
            last = self._last.get(flow.graph)
            if last is None or last not in flow.position:
                return "linear"
            return "head" if flow.position[node] > flow.position[last] else "projection"
        if node.op_type in ("Add", "Sum"):
            if self._adds_bias(node, flow):
                for value in node.inputs:
                    producer = _producer(value)
                    if producer is not None and producer in self._known:
                        return self._known[producer]
            if any(_is_table(value, flow) for value in node.inputs):
                return "embedding"  # learned or fixed positions
        return "other"

    def _destination(self, node: ir.Node, flow: DataFlow) -> Block | None:
        """The attention block that a projection outside it works for: keys and values of another trunk's states."""
        reached = [node]
        for current in reached:
            for out in (out for out in current.outputs if flow.kind(out) is Kind.TRUNK):
                for use in out.uses():
                    block = self._structure.block_of(use.node)
                    if block is not None:
                        return block if out is not block.entry and block.role.endswith("attention") else None
                    if len(reached) < _MAX_STEPS:
                        reached.append(use.node)
        return None

    def _adds_bias(self, node: ir.Node, flow: DataFlow) -> bool:
        return node.op_type in ("Add", "Sum") and any(_is_vector(value, flow) for value in node.inputs)

    def _scales_a_norm(self, node: ir.Node, flow: DataFlow) -> bool:
        """Whether ``node`` is the gain or the bias of a normalisation written out in single operators."""
        if node.op_type not in ("Mul", "Add") or not any(_is_vector(value, flow) for value in node.inputs):
            return False
        source = next((_producer(v) for v in node.inputs if v is not None and flow.kind(v) >= Kind.DATA), None)
        if source is None:
            return False
        if node.op_type == "Add":
            return source.op_type == "Mul" and self._known.get(source) == "norm"
        if source.op_type not in ("Div", "Mul"):
            return False
        return any(
            p is not None and (p.op_type in _ROOTS or _is_inverse_root(p)) for p in map(_producer, source.inputs)
        )


def _producer(value: ir.Value | None) -> ir.Node | None:
    """The node that makes ``value``, casts left out."""
    node = value.producer() if value is not None else None
    while node is not None and node.op_type == "Cast" and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node


def _is_inverse_root(node: ir.Node) -> bool:
    divisor = _producer(node.inputs[1]) if node.op_type == "Div" else None
    return divisor is not None and divisor.op_type in _ROOTS


def _is_vector(value: ir.Value | None, flow: DataFlow) -> bool:
    """Whether ``value`` holds one constant for each member of an axis: a gain or a bias."""
    if value is None or flow.kind(value) is not Kind.CONSTANT:
        return False
    shape = value.const_value.shape if value.const_value is not None else value.shape
    return shape is not None and sum(size != 1 for size in shape) == 1


def _is_table(value: ir.Value | None, flow: DataFlow) -> bool:
    """Whether ``value`` holds constants along several axes, such as one vector for each position."""
    if value is None or flow.kind(value) is not Kind.CONSTANT:
        return False
    shape = value.const_value.shape if value.const_value is not None else value.shape
    return shape is not None and sum(size != 1 for size in shape) > 1
