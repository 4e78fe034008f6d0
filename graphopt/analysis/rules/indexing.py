"""Ops that pick members by number: the picked axis cannot lose members, unless the numbers are constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.analysis.atoms import Atom, concat, unify
from graphopt.analysis.rules.context import MICROSOFT, SHAPES_NUMBERS, Event, NodeAxes, rule

#: Inputs that hold numbers of members and use them for nothing else than to find the members.
LOOKED_UP = {("", "Gather", 1), ("", "GatherElements", 1), ("", "GatherND", 1), ("", "ScatterElements", 1)}


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
    if _of_bank(node, rows):
        return
    if picked is None or not rows.static or picked.size != 1:
        node.freeze([rows, *out[axis : axis + len(indices)]], "indexed by data")
        return
    size = rows.size[0]
    begin = int(picked.reshape(-1)[0]) % size
    before, one, after = node.atom(begin), node.atom(1), node.atom(size - begin - 1)
    unify(rows, concat([before, one, after]))
    node.bound(1, 0, before, rows)


def _of_bank(node: NodeAxes, rows: Atom) -> bool:
    """Whether ``rows`` are members that competed for the indices: matrices of experts, or rows of a table of them."""
    bank = node.numbered(1)
    if bank is None or rows.size != bank.size:
        return False
    unify(rows, bank)
    if node.is_weight(0):
        node.event(Event.EXPERTS, [bank])
        node.event(Event.WEIGHTED, [bank])
        node.facts.picked.add(node.node.outputs[0])
    return True


@rule("GatherElements", "ScatterElements", "Scatter")
def along_axis(node: NodeAxes) -> None:
    """Indices say where along ``axis``; other axes pass where indices span them, and are cut where they do not.

    The members of ``axis`` that competed for these indices may leave: their numbers are not among them.
    """
    data, indices, out = node.axes(0), node.axes(1), node.out()
    axis = node.attr("axis", 0) % len(data)
    gathers = node.node.op_type == "GatherElements"
    node.same(indices, out if gathers else node.axes(2))
    if not gathers:
        node.same(data, out)
    bank = node.numbered(1)
    for i, (x, y) in enumerate(zip(data, indices, strict=True)):
        if i == axis and bank is not None and x.size == bank.size:
            unify(x, bank)
            node.freeze([y], "indexed")
        elif i == axis or x.size != y.size:
            node.freeze([x, y], "indexed")
        else:
            unify(x, y)


@rule("GatherND", "ScatterND")
@rule("GatherND", domain=MICROSOFT)
def by_tuple(node: NodeAxes) -> None:
    """Tuples in the last axis of the indices number the data's first axes (after ``batch_dims``); the rest passes."""
    data, indices, out = node.axes(0), node.axes(1), node.out()
    batch = int(node.attr("batch_dims", 0))
    depth = indices[-1].size[0]
    if node.node.op_type == "GatherND" and batch + depth == 1 and _of_bank(node, data[0]):  # a Gather of rows
        node.freeze(indices[-1:], "indexed")
    else:
        node.freeze([*data[: batch + depth], *indices], "indexed")
    picked = out if node.node.op_type == "GatherND" else node.axes(2)
    node.same([*indices[:-1], *data[batch + depth :]], picked)
    if picked is not out:
        node.same(data, out)


@rule("TopK")
def best(node: NodeAxes) -> None:
    """Members compete along ``axis``; the others pass.

    A member leaves as if its score were the worst there is, if its number is only used to pick what it stands for.
    """
    axes = node.axes(0)
    axis = node.attr("axis", -1) % len(axes)
    count = node.constant(1)
    picked = node.node.outputs[1] if node.has_out(1) else None
    if count is None or not axes[axis].static or not node.attr("largest", 1) or _misread(picked):
        node.freeze([axes[axis]], "sorted")
    else:
        node.competing(axes[axis], int(count.reshape(-1)[0]), picked)
    for out in (node.out(i) for i in (0, 1) if node.has_out(i)):
        node.freeze([out[axis]], "sorted")
        node.same([a for i, a in enumerate(axes) if i != axis], [a for i, a in enumerate(out) if i != axis])


def _misread(numbers: ir.Value | None) -> bool:
    """Whether anything does more with numbers of members than to look the members up."""
    pending = [numbers] if numbers is not None else []
    for value in pending:
        if value.is_graph_output():
            return True
        for reader, index in value.uses():
            if reader.domain == "" and reader.op_type in SHAPES_NUMBERS and index == 0:
                pending.extend(reader.outputs)
            elif (reader.domain, reader.op_type, index) not in LOOKED_UP:
                return True
    return False


@rule("Compress")
def compress(node: NodeAxes) -> None:
    """A condition picks along ``axis``, or among all elements."""
    axes, out = node.axes(0), node.out()
    node.freeze(node.axes(1), "indexed")
    if "axis" not in node.node.attributes:
        node.freeze([*axes, *out], "indexed")
        return
    axis = node.attr("axis") % len(axes)
    for i, (x, y) in enumerate(zip(axes, out, strict=True)):
        if i == axis:
            node.freeze([x, y], "indexed")
        else:
            unify(x, y)


@rule("OneHot")
def one_hot(node: NodeAxes) -> None:
    """Classes are numbered on a new axis; the indices' axes pass."""
    indices, out = node.axes(0), list(node.out())
    axis = node.attr("axis", -1) % len(out)
    node.freeze([out.pop(axis), *node.axes(2)], "numbered")
    node.same(indices, out)
    node.ignore(1)


@rule("ReverseSequence")
def reverse(node: NodeAxes) -> None:
    """Steps change places, batch by batch; the others pass."""
    axes = node.axes(0)
    node.same(axes, node.out())
    node.freeze(axes[:2], "reordered")
    node.ignore(1)


@rule("TorchEmbedding", domain=MICROSOFT)
def torch_embedding(node: NodeAxes) -> None:
    """Rows of ``[R, D]`` by number."""
    table, indices, out = node.axes(0), node.axes(1), node.out()
    node.freeze([table[0]], "indexed by data")
    node.same([*indices, table[1]], out)
    node.ignore(2, 3)


@rule("RelativePositionBias", domain=MICROSOFT)
def relative_position_bias(node: NodeAxes) -> None:
    """A table ``[buckets, heads]`` -> ``[1, heads, queries, keys]``."""
    table, out = node.axes(0), node.out()
    node.freeze([table[0], *out[2:]], "indexed by position")
    unify(table[1], out[1])
    node.ignore(1, 2)


@rule("GatherBlockQuantized", domain=MICROSOFT)
def block_quantized(node: NodeAxes) -> None:
    """Rows of a table whose columns are packed and scaled in blocks."""
    for i in range(len(node.node.inputs)):
        if node.has(i):
            node.freeze(node.axes(i), "indexed")
    node.freeze(node.out(), "indexed")


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
    """Reduced axes are mixed, since a removed member would change the result even when it is zero; the others pass.

    A mean is what exporters spell a LayerNormalization with: it divides by however many members there are.
    """
    axes = node.axes(0)
    gone = reduced_axes(node, len(axes))
    if node.node.op_type == "ReduceMean":
        node.normalised([axes[i] for i in gone], _square_root(node), "reduced")
    else:
        node.freeze([axes[i] for i in gone], "reduced")
        node.event(Event.NORMALIZED, [axes[i] for i in gone])
    out = list(node.out())
    if node.attr("keepdims", 1):
        out = [a for i, a in enumerate(out) if i not in gone]
    node.same([a for i, a in enumerate(axes) if i not in gone], out)


def _square_root(node: NodeAxes) -> ir.Value | None:
    """What a Pow or a product with itself made the reduced squares from."""
    maker = node.value(0).producer()
    if maker is None or maker.op_type not in ("Pow", "Mul"):
        return None
    root, other = maker.inputs
    return root if maker.op_type == "Pow" or root is other else None
