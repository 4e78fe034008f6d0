"""What kind of fact each value of one graph carries: a constant, a shape, plain data, or trunk activations.

The trunk is everything downstream of a weight-bearing operator (MatMul, Gemm, Conv, embedding lookup, RNN, fused
attention ...), cut at Shape and Size. Masks, position ids and shape arithmetic stay outside it.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.editing import bodies

CONTRIB = "com.microsoft"

#: Input positions at which each operator takes its weights. A node bears weight when one of these is a constant.
WEIGHT_INPUTS: dict[str, tuple[int, ...]] = {
    "MatMul": (0, 1),
    "Gemm": (0, 1),
    "Conv": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "Einsum": (0, 1, 2, 3),
    "Gather": (0,),
    "GatherND": (0,),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "MatMulInteger": (0, 1),
    "ConvInteger": (1,),
    "QLinearMatMul": (0, 3),
    "QLinearConv": (3,),
    "FusedMatMul": (0, 1),
    "TransposeMatMul": (0, 1),
    "GemmFastGelu": (1,),
    "FusedGemm": (0, 1),
    "FusedConv": (1,),
    "NhwcFusedConv": (1,),
    "NhwcConv": (1,),
    "QGemm": (3,),
    "MatMulIntegerToFloat": (0, 1),
    "DynamicQuantizeMatMul": (1,),
    "DynamicQuantizeLSTM": (1, 2),
    "MatMulNBits": (1,),
    "MatMulBnb4": (1,),
    "MatMulFpQ4": (1,),
    "GatherBlockQuantized": (0,),
    "Attention": (1,),
    "QAttention": (1,),
    "LongformerAttention": (1,),
    "DecoderAttention": (2, 3),
    "EmbedLayerNormalization": (2, 3, 4),
    "MoE": (2, 4, 6),
    "QMoE": (2, 5, 8),
}
LOOKUPS = {"Gather", "GatherND", "GatherBlockQuantized", "EmbedLayerNormalization"}
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}
_SHAPE_READERS = {"Shape", "Size"}
_MAX_CHAIN = 64  #: steps that the type of a constant is traced back
INDEX_TYPES = {ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL, ir.DataType.STRING}


class Kind(enum.IntEnum):
    """What a value carries."""

    CONSTANT = 0  #: an initializer, or computed from constants alone
    SHAPE = 1  #: computed from shapes and constants alone
    DATA = 2  #: depends on graph inputs, but on no weights
    TRUNK = 3  #: activations


@dataclass
class DataFlow:
    """The kinds of one graph's values, and each node's reads, in graph order (which ONNX requires to be sorted)."""

    graph: ir.Graph
    nodes: list[ir.Node] = field(default_factory=list)
    position: dict[ir.Node, int] = field(default_factory=dict)
    kinds: dict[ir.Value, Kind] = field(default_factory=dict)
    bears_weight: list[bool] = field(default_factory=list)
    captured: dict[ir.Node, tuple[ir.Value, ...]] = field(default_factory=dict)

    def kind(self, value: ir.Value) -> Kind:
        found = self.kinds.get(value)
        if found is not None:
            return found
        return Kind.CONSTANT if value.is_initializer() and not value.is_graph_input() else Kind.DATA

    def reads(self, node: ir.Node) -> Iterator[ir.Value]:
        """Values ``node`` reads, those its nested bodies take from this graph included."""
        for value in node.inputs:
            if value is not None:
                yield value
        yield from self.captured.get(node, ())


def trace(graph: ir.Graph, captured: dict[ir.Node, tuple[ir.Value, ...]]) -> DataFlow:
    """Classify every value of ``graph``; ``captured`` as from ``captures``."""
    flow = DataFlow(graph, captured=captured)
    for value in graph.inputs:
        # An initializer that is also an input is a default the caller may override; in old files every weight is one.
        flow.kinds[value] = Kind.CONSTANT if value.is_initializer() else Kind.DATA
    for value in graph.initializers.values():
        flow.kinds[value] = Kind.CONSTANT
    for position, node in enumerate(graph):
        flow.nodes.append(node)
        flow.position[node] = position
        kinds = [flow.kind(value) for value in flow.reads(node)]
        bears = _bears_weight(node, flow)
        flow.bears_weight.append(bears)
        kind = max(kinds, default=Kind.CONSTANT)
        if node.op_type in _RANDOM:
            kind = Kind.DATA
        if bears:
            kind = Kind.TRUNK
        elif node.op_type in _SHAPE_READERS and not node.domain:
            kind = min(kind, Kind.SHAPE)
        for out in node.outputs:
            flow.kinds[out] = kind
    return flow


def _bears_weight(node: ir.Node, flow: DataFlow) -> bool:
    positions = WEIGHT_INPUTS.get(node.op_type)
    if positions is None or node.domain not in ("", CONTRIB):
        return False
    if node.op_type == "Attention" and not node.domain:
        return False  # the ai.onnx operator has no weights of its own
    present = [node.inputs[i] for i in positions if i < len(node.inputs)]
    weights = [v for v in present if v is not None and flow.kind(v) is Kind.CONSTANT and _is_numeric(v)]
    if not weights or (node.op_type not in LOOKUPS and len(weights) == len(node.inputs)):
        return False
    if node.op_type in LOOKUPS:
        # A table of rows, read at places that depend on the input; a scalar picked from a list of sizes is neither.
        indices = [v for v in node.inputs if v is not None and v not in weights]
        return any(flow.kind(v) is not Kind.CONSTANT for v in indices) and _rank(weights[0]) != 1
    return any(flow.kind(v) is not Kind.CONSTANT for v in flow.reads(node))


def _is_numeric(value: ir.Value) -> bool:
    """False for indices, flags and strings; a constant of unknown type is judged by what it is computed from."""
    for _ in range(_MAX_CHAIN):
        dtype = value.dtype if value.const_value is None else value.const_value.dtype
        node = value.producer()
        if dtype is not None or node is None:
            return dtype not in INDEX_TYPES
        if node.op_type == "DequantizeLinear":
            return True
        if node.op_type == "Cast":
            return ir.DataType(node.attributes["to"].as_int()) not in INDEX_TYPES
        if node.op_type == "Constant":
            return _constant_is_numeric(node)
        source = node.inputs[0] if node.inputs else None
        if source is None:
            return True
        value = source
    return True


def _constant_is_numeric(node: ir.Node) -> bool:
    if "value" in node.attributes:
        return node.attributes["value"].as_tensor().dtype not in INDEX_TYPES
    return "value_float" in node.attributes or "value_floats" in node.attributes


def _rank(value: ir.Value) -> int | None:
    if value.const_value is not None:
        return len(value.const_value.shape)
    return len(value.shape) if value.shape is not None else None


def nested_graphs(model: ir.Model) -> list[tuple[ir.Graph, ir.Node | None]]:
    """The main graph and every body with the node that owns it, outer before inner."""
    found: list[tuple[ir.Graph, ir.Node | None]] = [(model.graph, None)]
    for graph, _ in found:
        for node in graph:
            found.extend((body, node) for body in bodies(node))
    return found


def captures(graphs: list[tuple[ir.Graph, ir.Node | None]]) -> dict[ir.Node, tuple[ir.Value, ...]]:
    """For each node with bodies, the values that those bodies (at any depth) read from the graphs around them."""
    taken: dict[ir.Node, dict[ir.Value, None]] = {}
    for graph, owner in reversed(graphs):
        if owner is None:
            continue
        inside = set(graph.inputs) | set(graph.initializers.values())
        inside.update(out for node in graph for out in node.outputs)
        outer = taken.setdefault(owner, {})
        for node in graph:
            for value in (*node.inputs, *taken.get(node, ())):
                if value is not None and value not in inside:
                    outer[value] = None
        for value in graph.outputs:
            if value not in inside:
                outer[value] = None
    return {node: tuple(values) for node, values in taken.items() if values}
