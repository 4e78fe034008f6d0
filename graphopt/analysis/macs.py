"""Multiply-accumulates of each operator as a function of the sizes it works on; operators not listed cost none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from graphopt.analysis.dataflow import CONTRIB

Sizes = tuple[int, ...]


class UnknownSizeError(Exception):
    """A size that a formula needs was not measured."""


@dataclass(frozen=True)
class Operands:
    """One node with the concrete sizes of its values at one assignment of the dynamic dims."""

    node: ir.Node
    size_of: Callable[[ir.Value], Sizes | None]

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and self.node.inputs[index] is not None

    def input(self, index: int) -> Sizes:
        return self._size(self.node.inputs[index] if index < len(self.node.inputs) else None)

    def output(self, index: int = 0) -> Sizes:
        return self._size(self.node.outputs[index] if index < len(self.node.outputs) else None)

    def _size(self, value: ir.Value | None) -> Sizes:
        sizes = self.size_of(value) if value is not None else None
        if sizes is None:
            raise UnknownSizeError(self.node.name)
        return sizes

    def integer(self, name: str, default: int = 0) -> int:
        attr = self.node.attributes.get(name)
        return attr.as_int() if attr is not None else default

    def integers(self, name: str) -> list[int]:
        attr = self.node.attributes.get(name)
        return list(attr.as_ints()) if attr is not None else []


def count_macs(operands: Operands) -> int:
    """Multiply-accumulates of one run of one node. Raises UnknownSizeError when a size it needs is not known."""
    key = (operands.node.domain, operands.node.op_type)
    if key in _UNCOUNTED:
        raise UnknownSizeError(operands.node.name)
    rule = _RULES.get(key)
    return rule(operands) if rule is not None else 0


# -- products ---------------------------------------------------------------------------------------------------------
def _matmul(op: Operands) -> int:
    """Broadcast product: every output element sums over the axis that is contracted."""
    left = op.input(0)
    if op.integer("transA") and len(left) > 1:
        return prod(op.output()) * (left[0] if op.integer("transBatchA") else left[-2])
    return prod(op.output()) * left[-1]


def _gemm(right: int = 1) -> Callable[[Operands], int]:
    def rule(op: Operands) -> int:
        a, b = op.input(0), op.input(right)
        rows, depth = (a[1], a[0]) if op.integer("transA") else (a[0], a[1])
        return rows * depth * (b[0] if op.integer("transB") else b[1])

    return rule


def _block_quantized(op: Operands) -> int:
    """MatMulNBits and relatives: K and N are attributes, the packed weight's own shape says little."""
    return prod(op.input(0)[:-1]) * op.integer("K") * op.integer("N")


def _einsum(op: Operands) -> int:
    """Product of the sizes of all distinct labels; nothing for one operand, which is only laid out anew or summed."""
    attr = op.node.attributes.get("equation")
    terms = attr.as_string().replace(" ", "").split("->")[0].split(",") if attr is not None else []
    if len(terms) < 2:
        return 0
    labels: dict[str, int] = {}
    for i, term in enumerate(terms):
        sizes = op.input(i)
        if "..." in term:
            before, after = term.split("...")
            hidden = sizes[len(before) : len(sizes) - len(after)]
            named = list(zip(before, sizes, strict=False)) + list(
                zip(after, sizes[len(sizes) - len(after) :], strict=True)
            )
            named += [(f"...{len(hidden) - k}", n) for k, n in enumerate(hidden)]
        else:
            named = list(zip(term, sizes, strict=True))
        for label, size in named:
            labels[label] = max(size, labels.get(label, 1))
    return prod(labels.values()) * (len(terms) - 1)


# -- convolutions -----------------------------------------------------------------------------------------------------
def _conv(weight: int = 1) -> Callable[[Operands], int]:
    """Every output element sums over [in/group, kernel...], whatever the layout of the activations."""

    def rule(op: Operands) -> int:
        return prod(op.output()) * prod(op.input(weight)[1:])

    return rule


def _conv_transpose(op: Operands) -> int:
    return prod(op.input(0)) * prod(op.input(1)[1:])


# -- attention --------------------------------------------------------------------------------------------------------
def _attention(op: Operands) -> int:
    """ai.onnx Attention: scores and context, [B, heads, Lq, Lk] times the query and the value width."""
    query, key, value = op.input(0), op.input(1), op.input(2)
    if len(query) == 4:
        batch, heads, length, dim = query
        keys, value_dim = key[2], value[3]
    else:
        batch, length, width = query
        heads, dim = op.integer("q_num_heads"), width // op.integer("q_num_heads")
        keys, value_dim = key[1], value[2] // op.integer("kv_num_heads")
    if op.has(4):
        keys += op.input(4)[2]
    return batch * heads * length * keys * (dim + value_dim)


def _packed_attention(op: Operands) -> int:
    """com.microsoft Attention, QAttention: the packed projection [B, L, in] x [in, q + k + v], then the attention."""
    batch, length, width = op.input(0)
    columns = op.input(1)[1]
    widths = op.integers("qkv_hidden_sizes") or [columns // 3] * 3
    past = 8 if op.node.op_type == "QAttention" else 4
    keys = length + (op.input(past)[3] if op.has(past) else 0)
    return batch * length * (width * columns + keys * (widths[0] + widths[2]))


def _multi_head_attention(op: Operands) -> int:
    """com.microsoft MultiHeadAttention: [B, L, width] each, or packed [B, L, heads, 3 or 2, dim]."""
    query = op.input(0)
    batch, length = query[:2]
    heads = op.integer("num_heads")
    if len(query) == 5:
        return batch * length * length * 2 * heads * query[4]
    width = query[2]
    key = op.input(1)
    if len(key) == 5:
        keys, value_width = key[1], key[2] * key[4]
    elif len(key) == 4:
        keys, value_width = key[2], heads * op.input(2)[3]
    else:
        keys, value_width = key[1], op.input(2)[2]
    if op.has(6) and len(key) == 3:
        keys += op.input(6)[2]
    return batch * length * keys * (width + value_width)


def _group_query_attention(op: Operands) -> int:
    """com.microsoft GroupQueryAttention: as many query heads as ``num_heads``, whatever they share."""
    batch, length, width = op.input(0)
    heads, shared = op.integer("num_heads"), op.integer("kv_num_heads")
    dim = width // heads if op.has(1) else width // (heads + 2 * shared)
    try:
        keys = op.output(1)[2]  # the present keys: [B, kv heads, all keys, dim]
    except UnknownSizeError:
        keys = length + (op.input(3)[2] if op.has(3) else 0)
    return batch * length * keys * 2 * heads * dim


# -- recurrence and experts -------------------------------------------------------------------------------------------
def _recurrent(op: Operands) -> int:
    """LSTM, GRU, RNN: each step multiplies the input by W [D, gates*H, I] and the state by R [D, gates*H, H]."""
    steps, batch = op.input(0)[:2]
    return steps * batch * (prod(op.input(1)) + prod(op.input(2)))


def _experts(op: Operands) -> int:
    """MoE: each token runs through ``k`` experts; the weights are [experts, ...]."""
    tokens = prod(op.input(0)[:-1])
    return tokens * op.integer("k", 1) * sum(prod(op.input(i)[1:]) for i in (2, 4, 6) if op.has(i))


_RULES: dict[tuple[str, str], Callable[[Operands], int]] = {
    ("", "MatMul"): _matmul,
    ("", "MatMulInteger"): _matmul,
    ("", "QLinearMatMul"): _matmul,
    ("", "Gemm"): _gemm(),
    ("", "Einsum"): _einsum,
    ("", "Conv"): _conv(),
    ("", "ConvInteger"): _conv(),
    ("", "DeformConv"): _conv(),
    ("", "QLinearConv"): _conv(3),
    ("", "ConvTranspose"): _conv_transpose,
    ("", "Attention"): _attention,
    ("", "LSTM"): _recurrent,
    ("", "GRU"): _recurrent,
    ("", "RNN"): _recurrent,
    (CONTRIB, "FusedMatMul"): _matmul,
    (CONTRIB, "TransposeMatMul"): _matmul,
    (CONTRIB, "FusedMatMulActivation"): _matmul,
    (CONTRIB, "MatMulIntegerToFloat"): _matmul,
    (CONTRIB, "DynamicQuantizeMatMul"): _matmul,
    (CONTRIB, "GemmFastGelu"): _matmul,
    (CONTRIB, "FusedGemm"): _gemm(),
    (CONTRIB, "QGemm"): _gemm(3),
    (CONTRIB, "MatMulNBits"): _block_quantized,
    (CONTRIB, "MatMulBnb4"): _block_quantized,
    (CONTRIB, "FusedConv"): _conv(),
    (CONTRIB, "NhwcFusedConv"): _conv(),
    (CONTRIB, "NhwcConv"): _conv(),
    (CONTRIB, "QLinearConv"): _conv(3),
    (CONTRIB, "Attention"): _packed_attention,
    (CONTRIB, "QAttention"): _packed_attention,
    (CONTRIB, "MultiHeadAttention"): _multi_head_attention,
    (CONTRIB, "DecoderMaskedMultiHeadAttention"): _multi_head_attention,
    (CONTRIB, "GroupQueryAttention"): _group_query_attention,
    (CONTRIB, "DynamicQuantizeLSTM"): _recurrent,
    (CONTRIB, "MoE"): _experts,
}

#: Operators that do multiply, by formulas that are not written yet.
_UNCOUNTED = {
    (CONTRIB, op)
    for op in ("QMoE", "LongformerAttention", "DecoderAttention", "PackedAttention", "PackedMultiHeadAttention")
}
