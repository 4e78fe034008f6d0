"""Biases inside attention that cancel or can be added later  ->  none there, which saves two additions a layer.

Why the rewrite is exact. The key's bias adds one number, ``q . b``, to all scores of a query's row, and a Softmax does
not change when all its inputs move alike. The value's bias comes out of the weighted sum as it went in, because the
weights of a row add up to one; so it can be added after the output projection. Two exceptions: a fully masked row,
which the operator answers with zeros, so that the value's bias only moves where the mask cannot mask a whole row; and
masks such as -10000, which round the scores of a fully masked row to a thousandth, so that other sums would show.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.match import (
    attribute,
    constant,
    dtype_of,
    is_op,
    label,
    maker,
    number,
    only_reader,
    operand,
    sides,
    small,
)
from graphopt.passes.fusing.work import Work

_EMPTY = -3e38  #: an entry above this is not read as "masked" by the operator
_SWALLOWS = -1e30  #: an entry below this leaves nothing of a score
_NEAR = 1e3  #: entries up to this leave a score its digits; what lies between rounds fully masked rows
_DEPTH = 8


def rewrite(work: Work) -> int:
    """Leave the key's bias out and move the value's. Returns how many biases.

    Matches:  ``Attention`` on [B, L, h * d] without a cache or a soft cap, with a mask of known entries, whose key is
              ``MatMul + bias[h * d]``; and whose value is ``MatMul + bias[h * d]`` where only a MatMul by a constant
              takes the output in.
    Rewrites: key = MatMul; value = MatMul and ``bias @ W`` added to the bias of that last MatMul.
    """
    count = 0
    for node in work.nodes():
        if (
            not is_op(node, "Attention")
            or any(v is not None for v in node.inputs[4:])
            or attribute(node, "softcap", 0.0)
        ):
            continue
        if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
            continue
        if attribute(node, "q_num_heads", None) is None:
            continue
        key, entries = _biased(node.inputs[1]), _entries(operand(node, 3))
        if key is not None and _exact(entries):
            node.replace_input_with(1, key[0])
            work.change(label(node), "MatMul + bias as the key", "MatMul as the key")
            count += 1
        count += _move_value_bias(work, node)
    return count


def _biased(value: ir.Value | None) -> tuple[ir.Value, np.ndarray] | None:
    """The product and the bias vector of ``MatMul + bias``."""
    node = maker(value, "Add", "Sum")
    for product, bias in sides(node) if node is not None else ():
        vector, source = small(bias), maker(product, "MatMul")
        if vector is None or source is None or vector.dtype != np.float32 or constant(operand(source, 1)) is None:
            continue
        if vector.size > 1 and vector.size == vector.shape[-1]:
            return product, vector.reshape(-1)
    return None


def _move_value_bias(work: Work, node: ir.Node) -> int:
    value = _biased(node.inputs[2])
    if value is None or attribute(node, "q_num_heads", 0) != attribute(node, "kv_num_heads", 0):
        return 0
    product = only_reader(node.outputs[0])
    if product is None or not is_op(product, "MatMul") or product.inputs[0] is not node.outputs[0]:
        return 0
    weight = constant(product.inputs[1])
    if weight is None or weight.dtype is not ir.DataType.FLOAT or weight.numpy().shape[:-1] != value[1].shape:
        return 0
    entries = _entries(operand(node, 3))
    if not _exact(entries) or entries is None or entries[0] < _EMPTY:
        return 0
    if operand(node, 3) is not None and attribute(node, "is_causal", 0):
        return 0
    moved = value[1].astype(np.float64) @ np.asarray(weight.numpy()).astype(np.float64)
    if not _add_bias(work, product, moved):
        return 0
    node.replace_input_with(2, value[0])
    work.change(f"{label(node)} value", "MatMul + bias as the value", "the bias after the output projection")
    return 1


def _add_bias(work: Work, product: ir.Node, moved: np.ndarray) -> bool:
    out = product.outputs[0]
    addition = only_reader(out)
    if addition is not None and is_op(addition, "Add", "Sum"):
        for mine, bias in sides(addition):
            vector = small(bias)
            if mine is out and vector is not None and vector.dtype == np.float32 and vector.shape[-1:] == moved.shape:
                total = (vector.astype(np.float64) + moved).astype(np.float32)
                index = next(i for i, v in enumerate(addition.inputs) if v is bias)
                addition.replace_input_with(index, work.editor.add_initializer(f"{bias.name}/with_value_bias", total))
                return True
    return False


def _entries(mask: ir.Value | None, depth: int = 0) -> tuple[float, float] | None:
    """The extremes of the entries that are not near 0, as far as the graph says; (0, 0) without a mask."""
    if mask is None:
        return 0.0, 0.0
    if dtype_of(mask) is ir.DataType.BOOL:
        return -np.inf, -np.inf
    array, node = small(mask), mask.producer()
    if array is not None:
        return _extremes([float(v) for v in array.reshape(-1)])
    if node is None or depth > _DEPTH or node.domain:
        return None
    if node.op_type in ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Identity"):
        return _entries(node.inputs[0], depth + 1)
    if node.op_type == "Where":
        numbers = [number(v) for v in node.inputs[1:]]
        return _extremes([n for n in numbers if n is not None]) if None not in numbers else None
    return None


def _exact(entries: tuple[float, float] | None) -> bool:
    """Whether the mask leaves scores their digits, or nothing of them."""
    return entries is not None and (entries == (0, 0) or entries[1] < _SWALLOWS)


def _extremes(values: list[float]) -> tuple[float, float] | None:
    """The lowest and the highest of the values beyond ``_NEAR``; None when there are values that are no numbers."""
    far = [v for v in values if not abs(v) <= _NEAR]
    if any(np.isnan(v) or v > 0 for v in far):
        return None
    return (min(far), max(far)) if far else (0.0, 0.0)
