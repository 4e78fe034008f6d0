"""Fused operators of ONNX Runtime's own  ->  standard ones, which run faster and show their weights to other passes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.passes.fusing.attention import MIN_OPSET
from graphopt.passes.fusing.mask import Fill, MaskShaper
from graphopt.passes.fusing.match import CONTRIB, attribute, constant, dtype_of, label, maker, operand
from graphopt.passes.fusing.work import Sizes, Work

_FLOAT, _INT32, _INT64, _BOOL = ir.DataType.FLOAT, ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL


@dataclass
class _Heads:
    """Query, key and value [B, L, width] of one fused attention."""

    columns: list[ir.Value]
    sizes: Sizes  #: of the output, [B, Lq, width]
    key_lengths: tuple[int, ...]


def rewrite(work: Work) -> int:
    """Take fused embeddings and attentions apart. Returns how many.

    Matches:  contrib ``EmbedLayerNormalization``; contrib ``Attention`` and ``MultiHeadAttention`` without a cache,
              float32, whose mask gives lengths [B], flags [B, Lk] or [B, Lq, Lk], or an additive bias.
    Rewrites: Gather, Add, LayerNormalization; MatMul, Add and the ai.onnx ``Attention``, with the mask value the
              kernel uses.
    """
    if work.opset < MIN_OPSET:
        return 0
    shaper, pads, count = MaskShaper(work), _Pads(work), 0
    for node in work.nodes():
        if node.domain != CONTRIB:
            continue
        if node.op_type == "EmbedLayerNormalization":
            reason = _embedding(work, node)
        elif node.op_type == "Attention":
            reason = _attention(work, node, shaper, pads)
        elif node.op_type == "MultiHeadAttention":
            reason = _multi_head(work, node, shaper, pads)
        else:
            continue
        if reason:
            work.decline(label(node), f"this {node.op_type} stays fused: {reason}")
            continue
        work.change(label(node), node.op_type, "standard operators")
        work.editor.remove_node(node)
        count += 1
    return count


def _embedding(work: Work, node: ir.Node) -> str:
    ids, kinds, words, places, segments, scale, shift, mask, positions = (operand(node, i) for i in range(9))
    if ids is None or words is None or places is None or scale is None or shift is None:
        return "an input is missing"
    if (kinds is None) != (segments is None):
        return "it has segment ids without a table, or a table without ids"
    out, index = node.outputs[0], operand_output(node, 1)
    if len(node.outputs) > 2 and node.outputs[2].uses():
        return "the sum of its embeddings is read"
    ids = _wide(ids)
    total = work.emit(node, "Gather", words, ids, axis=0, like=out)
    if positions is not None:
        place = work.emit(node, "Gather", places, _wide(positions), axis=0, dtype=_FLOAT)
    else:
        length = work.emit(node, "Shape", ids, start=1, end=2, dtype=_INT64)
        zero = work.weight("zero", np.zeros(1, np.int64))
        place = work.emit(node, "Slice", places, zero, length, zero, dtype=_FLOAT)
    total = work.emit(node, "Add", total, place, like=out)
    if kinds is not None and segments is not None:
        segment = work.emit(node, "Gather", segments, _wide(kinds), axis=0, like=out)
        total = work.emit(node, "Add", total, segment, like=out)
    epsilon = attribute(node, "epsilon", 1e-12)
    norm = work.emit(node, "LayerNormalization", total, scale, shift, like=out, axis=-1, epsilon=epsilon)
    if index is not None and (index.uses() or index.is_graph_output()):
        work.replace(index, _count_ones(work, node, mask, ids))
    work.replace(out, norm)
    return ""


def operand_output(node: ir.Node, index: int) -> ir.Value | None:
    """Output ``index``, or None where it is absent."""
    return node.outputs[index] if index < len(node.outputs) and node.outputs[index].name else None


def _wide(ids: ir.Value) -> ir.Value:
    """The int64 ids behind a Cast to int32."""
    cast = maker(ids, "Cast")
    source = operand(cast, 0) if cast is not None else None
    return source if source is not None and dtype_of(source) is _INT64 else ids


def _count_ones(work: Work, node: ir.Node, mask: ir.Value | None, ids: ir.Value) -> ir.Value:
    """[B]: how many entries of the mask are 1, as the kernel counts them; 0 without a mask."""
    axis = work.weight("axis", np.array([1], np.int64))
    if mask is None:
        none = work.emit(node, "Sub", ids, ids, dtype=_INT64)
        ones = work.emit(node, "Cast", none, to=int(_INT32), dtype=_INT32)
    else:
        kind = dtype_of(mask) or _INT32
        one = work.weight("one", np.ones((), kind.numpy()))
        ones = work.emit(node, "Cast", work.emit(node, "Equal", mask, one, dtype=_BOOL), to=int(_INT32), dtype=_INT32)
    return work.emit(node, "ReduceSum", ones, axis, keepdims=0, dtype=_INT32)


def _attention(work: Work, node: ir.Node, shaper: MaskShaper, pads: _Pads) -> str:
    source, weights, bias, index, past, added = (operand(node, i) for i in range(6))
    packed = constant(weights)
    shift = constant(bias) if bias is not None else None
    sizes, source_sizes = work.sizes(node.outputs[0]), work.sizes(source)
    if source is None or packed is None or (bias is not None and shift is None):
        return "its weights are not constants"
    if packed.dtype is not _FLOAT:
        return f"its weights are {packed.dtype}"
    if past is not None or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "it has a cache"
    if attribute(node, "do_rotary", 0):
        return "it rotates query and key"
    if sizes is None or source_sizes is None:
        return "its sizes are unknown (the model was not run)"
    matrix = np.asarray(packed.numpy())
    width = matrix.shape[1]
    widths = [int(w) for w in attribute(node, "qkv_hidden_sizes", None) or (width // 3,) * 3]
    if len(widths) != 3 or sum(widths) != width:
        return f"its weights have {width} columns for {widths}"
    columns, offset = [], 0
    for name, size in zip(("query", "key", "value"), widths, strict=True):
        span = slice(offset, offset + size)
        offset += size
        weight = work.editor.add_initializer(f"{weights.name}/{name}", matrix[:, span])  # type: ignore[union-attr]
        column = work.emit(node, "MatMul", source, weight, dtype=_FLOAT, hint=f"{label(node)}/{name}")
        if shift is not None:
            part = work.editor.add_initializer(f"{bias.name}/{name}", np.asarray(shift.numpy())[span])  # type: ignore[union-attr]
            column = work.emit(node, "Add", column, part, dtype=_FLOAT, hint=f"{label(node)}/{name}_bias")
        work.note(column, tuple((*s[:2], size) for s in source_sizes))
        columns.append(column)
    lengths = tuple(s[1] for s in source_sizes)
    return _finish(work, node, _Heads(columns, sizes, lengths), (index, added), shaper, pads)


def _multi_head(work: Work, node: ir.Node, shaper: MaskShaper, pads: _Pads) -> str:
    query, key, value, bias, index, added, *past = (operand(node, i) for i in range(8))
    if any(v is not None for v in past) or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return "it has a cache"
    if query is None or key is None or value is None:
        return "its query, key and value come packed"
    sizes = work.sizes(node.outputs[0])
    given = [work.sizes(v) for v in (query, key, value)]
    if sizes is None or any(g is None or len(g[0]) != 3 for g in given):
        return "its query, key and value are not three tensors [batch, length, width]"
    columns, offset = [query, key, value], 0
    if bias is not None:
        shift = constant(bias)
        if shift is None:
            return "its bias is not a constant"
        for i, (name, measured) in enumerate(zip(("query", "key", "value"), given, strict=True)):
            assert measured is not None
            size = measured[0][-1]
            part = work.editor.add_initializer(f"{bias.name}/{name}", np.asarray(shift.numpy())[offset : offset + size])
            columns[i] = work.emit(node, "Add", columns[i], part, like=columns[i], hint=f"{label(node)}/{name}_bias")
            offset += size
    assert given[1] is not None
    lengths = tuple(s[1] for s in given[1])
    return _finish(work, node, _Heads(columns, sizes, lengths), (index, added), shaper, pads)


def _finish(
    work: Work,
    node: ir.Node,
    heads: _Heads,
    masks: tuple[ir.Value | None, ir.Value | None],
    shaper: MaskShaper,
    pads: _Pads,
) -> str:
    """The standard operator on ``heads``; ``masks`` are the flags or lengths, and the additive bias."""
    count, scale = int(attribute(node, "num_heads", 1)), float(attribute(node, "scale", 0.0))
    index, added = masks
    wanted: list[ir.Value | Fill] = []
    if index is not None:
        pad = pads.of(node, index, float(attribute(node, "mask_filter_value", -10000.0)), heads)
        if isinstance(pad, str):
            return pad
        wanted.append(pad)
    if added is not None:
        wanted.append(added)
    queries = tuple(s[1] for s in heads.sizes)
    target = tuple((b, count, q, k) for (b, q, _), k in zip(heads.sizes, heads.key_lengths, strict=True))
    mask = shaper.shape(node, wanted, query_lengths=queries, key_lengths=heads.key_lengths, target=target)
    if isinstance(mask, str):
        return mask
    attributes: dict[str, Any] = {"q_num_heads": count, "kv_num_heads": count}
    if scale:
        attributes["scale"] = scale
    if attribute(node, "unidirectional", 0):
        attributes["is_causal"] = 1
    inputs = heads.columns if mask is None else [*heads.columns, mask]
    out = work.emit(node, "Attention", *inputs, like=node.outputs[0], hint=f"{label(node)}/attention", **attributes)
    work.replace(node.outputs[0], out)
    return ""


class _Pads:
    """Additive masks for the flags or lengths that the fused kernels take; layers share one."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._made: dict[tuple[int, float], ir.Value] = {}

    def of(self, node: ir.Node, index: ir.Value, fill: float, heads: _Heads) -> ir.Value | str:
        """[B, 1, 1 or Lq, Lk], ``fill`` where a key is masked."""
        key = (id(index), fill)
        if key in self._made:
            return self._made[key]
        work, sizes = self._work, self._work.sizes(index)
        batches = tuple(s[0] for s in heads.sizes)
        if sizes is None:
            return "the sizes of its mask are unknown"
        if all(s == (b,) for s, b in zip(sizes, batches, strict=True)):
            keep = self._within(node, index, heads)
        elif len(sizes[0]) in (2, 3) and all(
            s[0] == b and s[-1] == k for s, b, k in zip(sizes, batches, heads.key_lengths, strict=True)
        ):
            zero = work.weight("zero", np.zeros((), (dtype_of(index) or _INT32).numpy()))
            keep = work.emit(node, "Greater", index, zero, dtype=_BOOL)
            axes = [1, 2] if len(sizes[0]) == 2 else [1]
            keep = work.emit(node, "Unsqueeze", keep, work.weight("axes", np.array(axes, np.int64)), dtype=_BOOL)
            work.note(keep, tuple((s[0], 1, s[-2] if len(s) == 3 else 1, s[-1]) for s in sizes))
        else:
            return f"its mask has the shape {list(sizes[0])}"
        zero, low = (work.weight(n, np.array(v, np.float32)) for n, v in (("zero", 0.0), ("mask_fill", fill)))
        self._made[key] = work.emit(node, "Where", keep, zero, low, dtype=_FLOAT)
        work.note(self._made[key], work.sizes(keep))
        return self._made[key]

    def _within(self, node: ir.Node, lengths: ir.Value, heads: _Heads) -> ir.Value:
        """Positions below each row's length."""
        work = self._work
        kind = dtype_of(lengths) or _INT32
        axis = work.weight("axis", np.zeros((), np.int64))
        count = work.emit(node, "Shape", heads.columns[1], start=1, end=2, dtype=_INT64)
        end = work.emit(
            node, "Cast", work.emit(node, "Gather", count, axis, axis=0, dtype=_INT64), to=int(kind), dtype=kind
        )
        zero, one = (work.weight(n, np.array(v, kind.numpy())) for n, v in (("zero", 0), ("one", 1)))
        places = work.emit(node, "Range", zero, end, one, dtype=kind)
        axes = work.weight("axes", np.array([1, 2, 3], np.int64))
        keep = work.emit(node, "Less", places, work.emit(node, "Unsqueeze", lengths, axes, dtype=kind), dtype=_BOOL)
        work.note(keep, tuple((s[0], 1, 1, k) for s, k in zip(heads.sizes, heads.key_lengths, strict=True)))
        return keep
