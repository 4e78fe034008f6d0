"""MatMul, scale, mask, Softmax, MatMul  ->  the ai.onnx ``Attention`` operator."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import onnx_ir as ir

from graphopt.passes.fusing.mask import MASK_FILL, Fill, MaskShaper
from graphopt.passes.fusing.match import (
    CONTRIB,
    attribute,
    constant,
    dtype_of,
    is_op,
    label,
    maker,
    number,
    only_reader,
    operand,
    permutation,
    readers,
    sides,
)
from graphopt.passes.fusing.work import Sizes, Work

MIN_OPSET = 23
_DEPTH = 16  #: steps from the Softmax back to the product


class _NoMatchError(Exception):
    """Why this Softmax is no attention core that the operator can express."""


@dataclass
class Scores:
    """``scale * q k^T + masks``, read backwards from the Softmax."""

    query: ir.Value  #: [B, h, Lq, d]
    key: ir.Value  #: [B, h, d, Lk], or [B, h, Lk, d] when ``rows``
    rows: bool = False
    scale: float = 1.0
    masks: list[ir.Value | Fill] = field(default_factory=list)


def rewrite(work: Work) -> int:
    """Put the operator in the place of every core found. Returns how many.

    Matches:  ``Softmax(scale * q k^T + masks, axis=-1) v`` with q[B, h, Lq, d], k[B, h, Lk, d], v[B, h, Lk, dv]
              float32, the scale on the product or split over q and k, any number of additive masks and ``Where`` fills,
              and an IsNaN guard after the Softmax.
    Rewrites: ``Attention(q, k, v, mask)`` with the product of the scales; see ``mask`` for why this is exact.
    """
    if work.opset < MIN_OPSET:
        return 0
    shaper = MaskShaper(work)
    count = 0
    for node in work.nodes():
        if not is_op(node, "Softmax") or work.rank(node.outputs[0]) not in (None, 4):
            continue
        try:
            if _rewrite_core(work, node, shaper):
                count += 1
        except _NoMatchError as reason:
            work.decline(label(node), f"this Softmax stays outside the Attention operator: {reason}")
    return count


def _rewrite_core(work: Work, softmax: ir.Node, shaper: MaskShaper) -> bool:
    product = _value_product(softmax)
    if product is None:
        return False  # no attention: a classifier's or a router's Softmax
    context, value = product.outputs[0], product.inputs[1]
    source = softmax.inputs[0]
    if source is None or value is None:
        return False
    scores = Scores(query=source, key=source)
    _read_scores(source, scores, applied=1.0, depth=0)
    if not (math.isfinite(scores.scale) and scores.scale > 0):
        raise _NoMatchError(f"its scale is {scores.scale}")
    sizes = [work.sizes(v) for v in (scores.query, scores.key, value, context)]
    q, k, v, c = (_four(s) for s in sizes)
    if any(dtype_of(x) not in (None, ir.DataType.FLOAT) for x in (scores.query, scores.key, value, context)):
        raise _NoMatchError("only float32 is written this way")
    for (qb, qh, _, qd), (kb, kh, *kk), (vb, vh, vl, _) in zip(q, k, v, strict=True):
        length, width = kk if scores.rows else reversed(kk)
        if (qb, qh) != (kb, kh) or (qb, qh) != (vb, vh) or qd != width or length != vl:
            raise _NoMatchError("query, key and value differ in batch, heads or length")
    mask = shaper.shape(
        product, scores.masks, query_lengths=tuple(s[2] for s in q), key_lengths=tuple(s[2] for s in v), target=c
    )
    if isinstance(mask, str):
        raise _NoMatchError(mask)
    key = scores.key if scores.rows else _key_rows(work, scores.key, product)
    attention = work.emit(
        product,
        "Attention",
        scores.query,
        key,
        value,
        mask,
        like=context,
        hint=f"{label(product)}/attention",
        scale=scores.scale,
    )
    work.change(label(softmax), "MatMul, scale, mask, Softmax, MatMul", "Attention")
    work.replace(context, attention)
    return True


def _four(sizes: Sizes | None) -> Sizes:
    if sizes is None:
        raise _NoMatchError("its sizes are unknown (the model was not run)")
    if len(sizes[0]) != 4:
        raise _NoMatchError(f"its operands have rank {len(sizes[0])}, not 4")
    return sizes


def _value_product(softmax: ir.Node) -> ir.Node | None:
    """The MatMul that weighs the values, past an IsNaN guard; None when the Softmax feeds anything else."""
    if attribute(softmax, "axis", -1) not in (-1, 3):
        return None
    probabilities = softmax.outputs[0]
    guard = _guarded(probabilities)
    if guard is not None:
        probabilities = guard
    node = only_reader(probabilities)
    if (
        node is None
        or not is_op(node, "MatMul")
        or node.inputs[0] is not probabilities
        or node.inputs[1] is probabilities
    ):
        return None
    return node if constant(node.inputs[1]) is None else None


def _guarded(probabilities: ir.Value) -> ir.Value | None:
    """The output of ``Where(IsNaN(p), 0, p)`` when that is all that reads p."""
    found = readers(probabilities)
    if len(found) != 2 or probabilities.is_graph_output():
        return None
    test = next((n for n in found if is_op(n, "IsNaN")), None)
    choice = next((n for n in found if is_op(n, "Where")), None)
    if test is None or choice is None or only_reader(test.outputs[0]) is not choice:
        return None
    condition, yes, no = choice.inputs
    return choice.outputs[0] if condition is test.outputs[0] and number(yes) == 0 and no is probabilities else None


def _read_scores(value: ir.Value, scores: Scores, *, applied: float, depth: int) -> None:
    """Walk back to the product. ``applied`` is the scale between ``value`` and the Softmax."""
    if depth > _DEPTH:
        raise _NoMatchError("no product of query and key within reach")
    node = value.producer()
    if node is None or only_reader(value) is None:
        raise _NoMatchError("its scores are read elsewhere too" if node is not None else "its scores are an input")
    if is_op(node, "MatMul") or is_op(node, "FusedMatMul", domain=CONTRIB):
        _read_product(node, scores, applied)
        return
    if is_op(node, "Mul", "Div"):
        scaled = _by_number(node)
        if scaled is not None:
            _read_scores(scaled[0], scores, applied=applied * scaled[1], depth=depth + 1)
            return
        raise _NoMatchError(
            f"its scores are multiplied by {node.inputs[1].name if node.inputs[1] else '?'!r}, which is no number"
        )
    if applied != 1.0:
        raise _NoMatchError("its mask is scaled together with the product")
    if is_op(node, "Add", "Sum"):
        for inner, mask in sides(node):
            if not _leads_to_product(inner):
                continue
            _read_scores(inner, scores, applied=1.0, depth=depth + 1)
            scores.masks.append(mask)
            return
    if is_op(node, "Where"):
        condition, yes, no = node.inputs
        for kept, other, keeps in ((yes, no, True), (no, yes, False)):
            fill = number(other)
            if kept is None or fill is None or condition is None or not _leads_to_product(kept):
                continue
            if fill > MASK_FILL:
                raise _NoMatchError(
                    f"it fills masked scores with {fill:g}, which is too near to real scores to be added"
                )
            _read_scores(kept, scores, applied=1.0, depth=depth + 1)
            scores.masks.append(Fill(condition, fill, keeps))
            return
    raise _NoMatchError(f"its scores come from {node.op_type}")


def _leads_to_product(value: ir.Value, depth: int = 0) -> bool:
    node = value.producer()
    if node is None or depth > _DEPTH:
        return False
    if is_op(node, "MatMul") or is_op(node, "FusedMatMul", domain=CONTRIB):
        return all(constant(v) is None for v in node.inputs)
    if is_op(node, "Mul", "Div", "Add", "Sum", "Where"):
        return any(v is not None and _leads_to_product(v, depth + 1) for v in node.inputs)
    return False


def _read_product(node: ir.Node, scores: Scores, applied: float) -> None:
    query, key = node.inputs[:2]
    if query is None or key is None or constant(query) is not None or constant(key) is not None:
        raise _NoMatchError("its scores are no product of two activations")
    if node.domain == CONTRIB:
        if any(attribute(node, name, 0) for name in ("transA", "transBatchA", "transBatchB")):
            raise _NoMatchError("FusedMatMul transposes the query or the batch")
        applied *= attribute(node, "alpha", 1.0)
        scores.rows = bool(attribute(node, "transB", 0))
    scores.query, query_scale = _unscaled(query)
    scores.key, key_scale = _unscaled(key)
    scores.scale = applied * query_scale * key_scale


def _unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """``value`` without the numbers it is multiplied by, also through a Transpose that follows them."""
    scale = 1.0
    for _ in range(_DEPTH):
        node = maker(value, "Mul", "Div")
        inner = _by_number(node) if node is not None else None
        if inner is None:
            break
        value, scale = inner[0], scale * inner[1]
    return value, scale


def _by_number(node: ir.Node) -> tuple[ir.Value, float] | None:
    """x and c of ``x * c`` or ``x / (1 / c)``."""
    for inner, factor in sides(node):
        by = number(factor)
        if by is not None and node.op_type == "Mul":
            return inner, by
        if by and factor is node.inputs[1]:
            return inner, 1 / by
    return None


def _key_rows(work: Work, key: ir.Value, anchor: ir.Node) -> ir.Value:
    """[B, h, Lk, d] for key[B, h, d, Lk]: what was there before the exporter transposed it, or transposed back."""
    sizes = work.sizes(key)
    turned = tuple((b, h, n, d) for b, h, d, n in sizes) if sizes is not None else None
    node = key.producer()
    if node is not None and is_op(node, "Transpose") and node.inputs[0] is not None:
        perm = permutation(node)
        if perm == (0, 1, 3, 2):
            return node.inputs[0]
        if perm == (0, 2, 3, 1):
            rows = work.emit(anchor, "Transpose", node.inputs[0], perm=[0, 2, 1, 3], dtype=ir.DataType.FLOAT)
            work.note(rows, turned)
            return rows
    merged = _through_merged_batch(work, node, turned)
    if merged is not None:
        return merged
    rows = work.emit(anchor, "Transpose", key, perm=[0, 1, 3, 2], dtype=ir.DataType.FLOAT)
    work.note(rows, turned)
    return rows


def _through_merged_batch(work: Work, node: ir.Node | None, turned: Sizes | None) -> ir.Value | None:
    """The source of Reshape to [B*h, Lk, d], Transpose of the last two, Reshape to [B, h, d, Lk]."""
    if node is None or not is_op(node, "Reshape") or turned is None:
        return None
    middle = maker(node.inputs[0], "Transpose")
    first = maker(operand(middle, 0), "Reshape") if middle is not None and permutation(middle) == (0, 2, 1) else None
    source = operand(first, 0) if first is not None else None
    if first is None or source is None or work.sizes(source) != turned:
        return None
    return source if work.sizes(first.outputs[0]) == tuple((b * h, n, d) for b, h, n, d in turned) else None
