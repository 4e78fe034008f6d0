"""What a residual block does, judged by its operators and their dataflow."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import onnx_ir as ir

from graphopt.analysis.dataflow import CONTRIB, DataFlow, Kind

#: Fused attention operators and the input that holds the values attended to (None: always the block's own).
FUSED_ATTENTION: dict[tuple[str, str], int | None] = {
    ("", "Attention"): 2,
    (CONTRIB, "MultiHeadAttention"): 2,
    (CONTRIB, "DecoderMaskedMultiHeadAttention"): 2,
    (CONTRIB, "GroupQueryAttention"): None,
    (CONTRIB, "Attention"): None,
    (CONTRIB, "QAttention"): None,
    (CONTRIB, "LongformerAttention"): None,
    (CONTRIB, "PackedAttention"): None,
    (CONTRIB, "PackedMultiHeadAttention"): 2,
    (CONTRIB, "DecoderAttention"): None,
}
PRODUCTS = {"MatMul", "FusedMatMul", "TransposeMatMul", "Einsum"}
CONVOLUTIONS = {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "NhwcConv", "DeformConv"}
RECURRENT = {"LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"}
_EXPERTS = {"MoE", "QMoE"}
#: Operators that may stand between a softmax and the product with the values.
_CARRIERS = {
    *("Where", "Cast", "Dropout", "Identity", "Reshape", "Transpose", "Expand", "Unsqueeze", "Squeeze"),
    *("QuantizeLinear", "DequantizeLinear", "Mul", "Div", "Slice"),
}
_MAX_CARRIERS = 12
#: Operators that differ between exports of one layer without a difference in what it does.
_LAYOUT = {"Identity", "Cast", "Dropout", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"}


def role_of(nodes: Collection[ir.Node], flow: DataFlow) -> str:
    """One of attention, cross-attention, convolution, recurrent, mixture of experts, feed-forward."""
    inside = set(nodes)
    attention = [own for node in nodes if (own := _attends_to_own_values(node, inside, flow)) is not None]
    if attention:
        return "attention" if any(attention) else "cross-attention"
    kinds = {node.op_type for node in nodes}
    for role, ops in (("recurrent", RECURRENT), ("mixture of experts", _EXPERTS)):
        if kinds & ops:
            return role
    linear = any(flow.bears_weight[flow.position[n]] and n.op_type not in CONVOLUTIONS for n in nodes)
    wide = any(n.op_type in CONVOLUTIONS and _is_wide(n) for n in nodes)
    return "convolution" if wide or (kinds & CONVOLUTIONS and not linear) else "feed-forward"


def _is_wide(node: ir.Node) -> bool:
    """Whether a convolution looks at more than one position (1x1 ones are linear layers)."""
    weight = node.inputs[3] if node.op_type == "QLinearConv" else node.inputs[1]
    shape = weight.const_value.shape if weight is not None and weight.const_value is not None else None
    return shape is None or any(size != 1 for size in list(shape)[2:])


def _attends_to_own_values(node: ir.Node, inside: set[ir.Node], flow: DataFlow) -> bool | None:
    """None: ``node`` is no attention. Otherwise whether the values it attends to are made in its own block."""
    key = (node.domain, node.op_type)
    if key in FUSED_ATTENTION:
        index = FUSED_ATTENTION[key]
        values = node.inputs[index] if index is not None and index < len(node.inputs) else None
        return values is None or values.producer() in inside
    if node.op_type not in PRODUCTS or flow.bears_weight[flow.position[node]] or len(node.inputs) != 2:
        return None
    for side in (0, 1):
        if attention_softmax(node.inputs[side]) is not None:
            values = node.inputs[1 - side]
            return values is not None and values.producer() in inside
    return None


def attention_softmax(value: ir.Value | None) -> ir.Node | None:
    """The softmax that ``value`` comes from, possibly masked, scaled or laid out anew on the way."""
    for _ in range(_MAX_CARRIERS):
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type == "Softmax":
            return node
        if node.op_type not in _CARRIERS:
            return None
        value = node.inputs[-1] if node.op_type == "Where" and _is_constant(node.inputs[1]) else node.inputs[0]
        if node.op_type == "Where" and value is node.inputs[0]:
            value = node.inputs[1]
    return None


def _is_constant(value: ir.Value | None) -> bool:
    """Whether ``value`` holds no activation: absent, an initializer, or a Constant node's output."""
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and (node.op_type in ("Constant", "ConstantOfShape") or all(map(_is_leaf, node.inputs)))


def _is_leaf(value: ir.Value | None) -> bool:
    if value is None or value.is_initializer():
        return True
    node = value.producer()
    return node is not None and node.op_type == "Constant"


def signature(nodes: Iterable[ir.Node], flow: DataFlow) -> tuple[str, str]:
    """Two structural hashes, as sorted text: (operators, operators with the shapes of their weights)."""
    operators, exact = [], []
    for node in nodes:
        if node.op_type in _LAYOUT:
            continue
        operators.append(f"{node.domain}:{node.op_type}")
        shapes = [_weight_shape(v) for v in node.inputs if v is not None and flow.kind(v) is Kind.CONSTANT]
        exact.append(f"{node.domain}:{node.op_type}{[s for s in shapes if s]}")
    return ";".join(sorted(operators)), ";".join(sorted(exact))


def _weight_shape(value: ir.Value) -> tuple[object, ...]:
    shape = value.const_value.shape if value.const_value is not None else value.shape
    return tuple(str(dim) for dim in shape) if shape is not None else ()
