"""Whole attentions as one op: heads are carried, positions are mixed, head widths are contracted or freed."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.analysis.atoms import Atom, concat, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule


def _split_heads(node: NodeAxes, axes: Sequence[Atom], heads: Atom) -> Atom:
    """Relate ``[B, S, heads * dim]`` or ``[B, heads, S, dim]`` to ``heads``; returns the width of one head."""
    if len(axes) == 4:
        unify(axes[1], heads)
        return axes[3]
    width = axes[-1]
    dim = node.atom(width.size[0] // heads.size[0])
    unify(node.product(heads, dim), width)
    return dim


def _positions(axes: Sequence[Atom]) -> list[Atom]:
    return [axes[2]] if len(axes) == 4 else [axes[1]]


def _finish(node: NodeAxes, heads: Sequence[Atom], query: Atom, value: Atom, *, inputs: tuple[int, ...]) -> None:
    """``inputs`` hold the queries and keys, whose product sums over ``query``."""
    node.summed(query, *inputs)
    node.event(Event.HEADS, heads)
    node.event(Event.SCORES, [query])
    node.event(Event.CONTEXT, [value])
    if not node.attr("scale", 0.0):
        node.freeze([query], "the default scale is its square root, used")


def _scores_like(node: NodeAxes, index: int, heads: Atom) -> None:
    """A mask or bias ``[..., heads or 1, queries, keys]`` added to the scores."""
    if node.has(index):
        axes = node.axes(index)
        node.freeze(axes[-2:], "normalised")
        if len(axes) > 2 and not axes[-3].trivial:
            unify(axes[-3], heads)


@rule("Attention", domain=MICROSOFT)
def packed_attention(node: NodeAxes) -> None:
    """``X[B, S, D]``, packed weights ``[D, q + k + v]``, bias ``[q + k + v]`` -> ``[B, S, v]``, heads first."""
    x, w, out = node.axes(0), node.axes(1), node.out()
    heads = node.atom(int(node.attr("num_heads")))
    sizes = node.attr("qkv_hidden_sizes") or [w[1].size[0] // 3] * 3
    dims = [node.atom(int(n) // heads.size[0]) for n in sizes]
    unify(dims[0], dims[1])
    packed = [node.product(heads, d) for d in dims]
    unify(x[-1], w[0])
    unify(concat(packed), w[1])
    if node.has(2):
        unify(node.axes(2)[0], w[1])
    unify(packed[2], out[-1])
    unify(x[0], out[0])
    node.freeze(x[1:2], "attended over")
    unify(x[1], out[1])
    node.event(Event.WEIGHTED, [w[0]])
    node.size_attribute("num_heads", heads)
    for i, part in enumerate(packed):
        node.size_attribute("qkv_hidden_sizes", part, i)
    node.ignore(3, 6)
    if node.has(4):  # past [2, B, heads, S, dim]
        unify(node.axes(4)[2], heads)
    if node.has_out(1):
        unify(node.out(1)[2], heads)
    if node.attr("do_rotary", 0):
        node.freeze([dims[0]], "rotated")
    _scores_like(node, 5, heads)
    _finish(node, [heads], dims[0], dims[2], inputs=(1,))


@rule("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(node: NodeAxes) -> None:
    """Query ``[B, S, heads * dim]``, keys and values likewise or already split; packed forms share one operand."""
    heads = node.atom(int(node.attr("num_heads")))
    q, out = node.axes(0), node.out()
    node.size_attribute("num_heads", heads)
    if len(q) == 5:  # [B, S, heads, 3, dim]
        unify(q[2], heads)
        query = value = q[4]
    else:
        query = _split_heads(node, q, heads)
        if not node.has(1):
            raise LookupError(f"{node.label}: no keys")
        k = node.axes(1)
        if len(k) == 5:  # packed [B, S, heads, 2, dim]
            unify(k[2], heads)
            unify(k[4], query)
            value = query
        else:
            unify(_split_heads(node, k, heads), query)
            node.freeze(_positions(k), "attended over")
            v = node.axes(2)
            value = _split_heads(node, v, heads)
            node.freeze(_positions(v), "attended over")
    unify(node.product(heads, value), out[-1])
    node.same(q[:2], out[:2])
    if node.has(3):  # bias [q + k + v]
        wide = node.product(heads, query)
        unify(node.axes(3)[0], concat([wide, wide, node.product(heads, value)]))
    node.ignore(4, 8, 9)
    _scores_like(node, 5, heads)
    _caches(node, {6: query, 7: value}, {1: query, 2: value}, heads)
    _finish(node, [heads], query, value, inputs=(0, 1))


def _caches(node: NodeAxes, inputs: dict[int, Atom], outputs: dict[int, Atom], heads: Atom) -> None:
    """Past and present keys and values ``[B, heads, S, dim]``."""
    found = [(node.axes(i), dim) for i, dim in inputs.items() if node.has(i)]
    found += [(node.out(i), dim) for i, dim in outputs.items() if node.has_out(i)]
    for axes, dim in found:
        if len(axes) == 4:
            unify(axes[1], heads)
            unify(axes[3], dim)


@rule("GroupQueryAttention", domain=MICROSOFT)
def group_query_attention(node: NodeAxes) -> None:
    """Queries ``[B, S, kv * group * dim]`` share keys and values ``[B, S, kv * dim]``; packed or apart."""
    kv = node.atom(int(node.attr("kv_num_heads")))
    group = node.atom(int(node.attr("num_heads")) // kv.size[0])
    heads = node.product(kv, group)
    q, out = node.axes(0), node.out()
    if node.has(1) and node.has(2):
        dim = _split_heads(node, q, heads)
        for i in (1, 2):
            unify(_split_heads(node, node.axes(i), kv), dim)
    else:
        dim = node.atom(q[-1].size[0] // (heads.size[0] + 2 * kv.size[0]))
        single = node.product(kv, dim)
        unify(q[-1], concat([node.product(heads, dim), single, single]))
    unify(node.product(heads, dim), out[-1])
    node.same(q[:2], out[:2])
    node.size_attribute("num_heads", heads)
    node.size_attribute("kv_num_heads", kv)
    _caches(node, {3: dim, 4: dim}, {1: dim, 2: dim}, kv)
    if node.attr("do_rotary", 0):
        node.freeze([dim], "rotated")
    node.ignore(5, 6, 7, 8, 9)
    _scores_like(node, 10, heads)
    for i in range(11, len(node.node.inputs)):
        if node.has(i):  # head sinks [heads] and what later versions add
            node.freeze(node.axes(i), "read")
    _finish(node, [kv, group], dim, dim, inputs=(0, 1))


@rule("Attention")
def standard_attention(node: NodeAxes) -> None:
    """ai.onnx Attention: ``[B, heads, S, dim]``, or ``[B, S, heads * dim]`` with head counts as attributes."""
    q, k, v, out = node.axes(0), node.axes(1), node.axes(2), node.out()
    count_q = q[1].size[0] if len(q) == 4 else int(node.attr("q_num_heads"))
    count_kv = k[1].size[0] if len(k) == 4 else int(node.attr("kv_num_heads"))
    kv, group = node.atom(count_kv), node.atom(count_q // count_kv)
    heads = node.product(kv, group)
    query = _split_heads(node, q, heads)
    unify(_split_heads(node, k, kv), query)
    value = _split_heads(node, v, kv)
    unify(q[0], out[0])
    if len(out) == 4:
        unify(out[1], heads)
        unify(out[3], value)
        unify(q[2], out[2])
    else:
        unify(out[-1], node.product(heads, value))
        unify(q[1], out[1])
    if len(q) == 3:
        node.size_attribute("q_num_heads", heads)
        node.size_attribute("kv_num_heads", kv)
    node.freeze([*_positions(k), *_positions(v)], "attended over")
    _scores_like(node, 3, heads)
    _caches(node, {4: query, 5: value}, {1: query, 2: value}, kv)
    node.ignore(6)
    if node.has_out(3):
        unify(node.out(3)[1], heads)
        node.freeze(node.out(3)[2:], "normalised")
    _finish(node, [kv, group], query, value, inputs=(0, 1))


@rule("RotaryEmbedding")
@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding(node: NodeAxes) -> None:
    """Pairs of a head's members are rotated together, by tables the op indexes; heads pass."""
    x, out = node.axes(0), node.out()
    node.same(x, out)
    count = int(node.attr("num_heads", 0))
    if len(x) == 4:
        node.freeze(x[3:], "rotated")
    elif count:
        heads = node.atom(count)
        node.freeze([_split_heads(node, x, heads)], "rotated")
        node.size_attribute("num_heads", heads)
    else:
        node.freeze(x[-1:], "rotated")
    for i in range(1, len(node.node.inputs)):
        if node.has(i):
            node.freeze(node.axes(i), "rotated")
