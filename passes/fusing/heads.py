"""``Attention`` on transposed heads  ->  ``Attention`` on [B, L, heads * size], which ONNX Runtime reads in strides."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.mask import MaskShaper
from graphopt.passes.fusing.match import is_op, label, maker, operand, permutation, readers
from graphopt.passes.fusing.work import Sizes, Work

_HEADS_FIRST = (0, 2, 1, 3)


def rewrite(work: Work) -> int:
    """Move the operator outside the transposes around it. Returns how many.

    Matches:  ``Attention(q, k, v[, mask])`` with q[B, h, L, d], k and v each ``Transpose(0, 2, 1, 3)`` of [B, L, h,
              d], no past, whose output is only transposed back.
    Rewrites: ``Attention`` on [B, L, h * d] with ``q_num_heads`` and ``kv_num_heads``; reshapes that only split or
              merge heads are dropped.
    """
    count, shaper = 0, MaskShaper(work)
    for node in work.nodes():
        if not is_op(node, "Attention") or len(work.sizes(node.outputs[0]) or ((),)) == 0:
            continue
        if _rank(work, operand(node, 0)) != 4:
            continue
        reason = _lift(work, node, shaper)
        if reason:
            work.decline(label(node), f"this Attention keeps its transposes: {reason}")
        else:
            count += 1
    return count


def _rank(work: Work, value: ir.Value | None) -> int | None:
    return work.rank(value) if value is not None else None


def _lift(work: Work, node: ir.Node, shaper: MaskShaper) -> str:
    if any(v is not None for v in node.inputs[4:]):
        return "it has a cache"
    if any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return "its cache or its scores are read"
    heads: list[tuple[ir.Value, Sizes]] = []
    for value in node.inputs[:3]:
        turned = maker(value, "Transpose")
        source = operand(turned, 0) if turned is not None and permutation(turned) == _HEADS_FIRST else None
        sizes = work.sizes(source)
        if source is None or sizes is None or len(sizes[0]) != 4:
            return f"{value.name if value is not None else '?'!r} is no transpose of [batch, length, heads, size]"
        if any(len({s[axis] for s in sizes}) > 1 for axis in (2, 3)):
            return "the number of heads or their size is dynamic"
        heads.append((source, sizes))
    back = _transposed_back(work, node.outputs[0])
    if back is None:
        return "its output is read before it is transposed back"
    merged = [_merged(work, source, sizes, node) for source, sizes in heads]
    keep: dict[str, Any] = {k: a.value for k, a in node.attributes.items() if k not in ("q_num_heads", "kv_num_heads")}
    keep |= {"q_num_heads": heads[0][1][0][2], "kv_num_heads": heads[1][1][0][2]}
    mask = shaper.plain(node) if operand(node, 3) is not None else None
    inputs = [*merged, mask] if mask is not None else merged
    out = work.emit(node, "Attention", *inputs, dtype=ir.DataType.FLOAT, hint=f"{label(node)}/packed", **keep)
    size = heads[2][1][0][3]
    count = heads[0][1][0][2]
    work.note(out, tuple((s[0], s[1], count * size) for s in heads[0][1]))
    _merge_back(work, back, out, count, size)
    work.change(label(node), "Attention with transposed heads", "Attention on [batch, length, heads * size]")
    return ""


def _merged(work: Work, source: ir.Value, sizes: Sizes, anchor: ir.Node) -> ir.Value:
    """[B, L, h * d] for [B, L, h, d]: what the exporter split, or a reshape."""
    wanted = tuple((b, n, h * d) for b, n, h, d in sizes)
    split = maker(source, "Reshape")
    before = operand(split, 0) if split is not None else None
    if before is not None and work.sizes(before) == wanted:
        return before
    shape = work.weight("merged_heads", np.array([0, 0, wanted[0][2]], np.int64))
    merged = work.emit(anchor, "Reshape", source, shape, dtype=ir.DataType.FLOAT)
    work.note(merged, wanted)
    return merged


def _transposed_back(work: Work, context: ir.Value) -> ir.Value | None:
    """The output of the Transpose that is all that reads ``context``, past reshapes that change nothing."""
    for _ in range(4):
        found = readers(context)
        if len(found) != 1 or context.is_graph_output():
            return None
        node = found[0]
        if is_op(node, "Transpose") and permutation(node) == _HEADS_FIRST:
            return node.outputs[0]
        sizes = work.sizes(context)
        if not is_op(node, "Reshape") or sizes is None or work.sizes(node.outputs[0]) != sizes:
            return None
        context = node.outputs[0]
    return None


def _merge_back(work: Work, back: ir.Value, out: ir.Value, count: int, size: int) -> None:
    """Readers of the merged output read ``out``; other readers of [B, L, h, d] get a reshape."""
    wanted = work.sizes(out)
    for reader in readers(back):
        if is_op(reader, "Reshape") and reader.inputs[0] is back and work.sizes(reader.outputs[0]) == wanted:
            work.replace(reader.outputs[0], out)
            work.editor.remove_node(reader)
    if back.uses() or back.is_graph_output():
        producer = back.producer()
        assert producer is not None
        shape = work.weight("split_heads", np.array([0, 0, count, size], np.int64))
        work.replace(back, work.emit(producer, "Reshape", out, shape, like=back))
