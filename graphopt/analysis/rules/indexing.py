"""Ops that pick members by number: the picked axis cannot lose members, unless the numbers are constants."""

from __future__ import annotations

import numpy as np

from graphopt.analysis.atoms import concat, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule


@rule("Gather")
def gather(node: NodeAxes) -> None:
    """``[..., R, ...]`` and indices ``[I...]`` -> ``[..., I..., ...]``; one constant index cuts R like a Slice."""
    data = node.axes(0)
    axis = node.attr("axis", 0) % len(data)
    picked, indices = node.constant(1), node.axes(1)
    out = node.out()
    node.same(data[:axis], out[:axis])
    node.same(data[axis + 1 :], out[axis + len(indices) :])
    node.same(indices, out[axis : axis + len(indices)])
    rows = data[axis]
    if picked is None or not rows.static or picked.size != 1:
        node.freeze([rows, *out[axis : axis + len(indices)]], "indexed by data")
        return
    size = rows.size[0]
    begin = int(picked.reshape(-1)[0]) % size
    before, one, after = node.atom(begin), node.atom(1), node.atom(size - begin - 1)
    unify(rows, concat([before, one, after]))
    node.bound(1, 0, before, rows)


@rule("GatherElements", "GatherND", "ScatterElements", "ScatterND", "Compress", "OneHot", "TopK", "ReverseSequence")
@rule("GatherBlockQuantized", domain=MICROSOFT)
def picked(node: NodeAxes) -> None:
    """Members are told apart by their number on every axis involved."""
    for i in range(len(node.node.inputs)):
        if node.has(i):
            node.freeze(node.axes(i), "indexed")
    for i in range(len(node.node.outputs)):
        if node.has_out(i):
            node.freeze(node.out(i), "indexed")


@rule("ArgMax", "ArgMin")
def argument(node: NodeAxes) -> None:
    """The searched axis is numbered; the others pass."""
    axes = node.axes(0)
    axis = node.attr("axis", 0) % len(axes)
    others = [a for i, a in enumerate(axes) if i != axis]
    node.freeze([axes[axis]], "searched")
    out = list(node.out())
    if node.attr("keepdims", 1):
        del out[axis]
    node.same(others, out)


def reduced_axes(node: NodeAxes, rank: int) -> list[int]:
    """Axes of a Reduce op, from the attribute (old opsets) or the second input; all of them by default."""
    if "axes" in node.node.attributes:
        named = np.asarray(node.attr("axes"))
    elif node.has(1):
        found = node.constant(1)
        if found is None:
            return list(range(rank))
        named = found
    else:
        named = np.empty(0, dtype=np.int64)
    if named.size == 0:
        return [] if node.attr("noop_with_empty_axes", 0) else list(range(rank))
    return sorted(int(a) % rank for a in named.reshape(-1))


@rule(
    *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean"),
    *("ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare"),
)
def reduce(node: NodeAxes) -> None:
    """Reduced axes are mixed, since a removed member would change the result even when it is zero; the others pass."""
    axes = node.axes(0)
    gone = reduced_axes(node, len(axes))
    node.freeze([axes[i] for i in gone], "reduced")
    node.event(Event.NORMALIZED, [axes[i] for i in gone])
    out = list(node.out())
    if node.attr("keepdims", 1):
        out = [a for i, a in enumerate(out) if i not in gone]
    node.same([a for i, a in enumerate(axes) if i not in gone], out)
