"""Ops that move elements without computing: products from Reshape and Transpose, sums from Concat, Split and Slice."""

from __future__ import annotations

import numpy as np

from graphopt.analysis.atoms import align, concat, freeze, unify
from graphopt.analysis.rules.context import MICROSOFT, NodeAxes, rule


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
@rule("ExpandDims", domain=MICROSOFT)
def reshape(node: NodeAxes) -> None:
    """Row-major order is kept: the factor lists of the whole shapes agree."""
    axes, out = node.axes(0), node.out()
    if any(0 in atom.size for atom in axes):
        node.freeze([*axes, *out], "an empty tensor is reshaped")
    else:
        align(axes, out)
    if node.node.op_type == "Reshape":
        node.size_operand(1, out)
    else:
        node.ignore(1)


@rule("Transpose")
def transpose(node: NodeAxes) -> None:
    """Axes are permuted."""
    axes = node.axes(0)
    perm = node.attr("perm", range(len(axes))[::-1])
    node.same([axes[i] for i in perm], node.out())


@rule("Expand")
def expand(node: NodeAxes) -> None:
    """Axes of size one stretch to new axes, whose sizes the second input spells out."""
    out = node.out()
    node.broadcast([node.axes(0)], out)
    listed = node.facts.shapes.sizes(node.value(1))[0][0]  # may be fewer than the result has axes: aligned right
    node.size_operand(1, out[len(out) - listed :])


@rule("Tile")
def tile(node: NodeAxes) -> None:
    """Each axis becomes product(repeats, axis)."""
    repeats = node.constant(1)
    axes, out = node.axes(0), node.out()
    if repeats is None:
        for axis, target in zip(axes, out, strict=True):
            if axis.size == target.size:
                unify(axis, target)
            else:
                node.freeze([axis, target], "repeated a computed number of times")
        return
    times = [node.atom(int(n)) for n in repeats]
    for repeat, axis, target in zip(times, axes, out, strict=True):
        unify(node.product(repeat, axis), target)
    node.size_operand(1, times)


@rule("ConstantOfShape")
def constant_of_shape(node: NodeAxes) -> None:
    """All elements are equal, so any can go; the input spells out the sizes."""
    node.size_operand(0, node.out())


@rule("Shape", "Size")
def shape(node: NodeAxes) -> None:
    """Nothing to relate: where the sizes go is followed once all nodes are known (``sizes.py``)."""
    node.ignore(0)


@rule("Concat")
def concatenate(node: NodeAxes) -> None:
    """The joined axis is the sum of the operands'; a dynamic one is positions, which are never removed."""
    axis = node.attr("axis")
    operands = [node.axes(i) for i in range(len(node.node.inputs))]
    out = node.out()
    axis %= len(out)
    for operand in operands:
        for i, (x, y) in enumerate(zip(operand, out, strict=True)):
            if i != axis:
                unify(x, y)
    parts = [operand[axis] for operand in operands]
    if all(p.static for p in parts):
        unify(concat(parts), out[axis])
    else:
        node.freeze([*parts, out[axis]], "joined with a dynamic axis")


@rule("Split")
@rule("SplitToSequence")
def split(node: NodeAxes) -> None:
    """The split axis is the sum of the outputs'; sizes are an input (opset 13), an attribute, or equal by default."""
    axes = node.axes(0)
    axis = node.attr("axis", 0) % len(axes)
    if node.node.op_type == "SplitToSequence":
        node.freeze([axes[axis]], "split into a sequence")
        return
    outputs = [node.out(i) for i in range(len(node.node.outputs)) if node.has_out(i)]
    for out in outputs:
        for i, (x, y) in enumerate(zip(axes, out, strict=True)):
            if i != axis:
                unify(x, y)
    if len(outputs) != len(node.node.outputs):
        node.freeze([axes[axis], *(out[axis] for out in outputs)], "one part is unread and of unknown size, split")
        return
    parts = [out[axis] for out in outputs]
    unify(axes[axis], concat(parts))
    if "split" in node.node.attributes:
        for i, part in enumerate(parts):
            node.size_attribute("split", part, i)
    else:
        node.size_operand(1, parts)


@rule("Slice")
def slice_(node: NodeAxes) -> None:
    """A cut of a static axis with constant bounds and step one splits it into before, middle and after."""
    axes, out = node.axes(0), node.out()
    starts: np.ndarray | None
    ends: np.ndarray | None
    which: np.ndarray | None
    steps: np.ndarray | None
    if "starts" in node.node.attributes:  # opset < 10
        starts, ends = np.asarray(node.attr("starts")), np.asarray(node.attr("ends"))
        count = len(starts)
        which = np.asarray(node.attr("axes", range(count)))
        steps = np.ones(count, dtype=np.int64)
        bounds_are_inputs = False
    else:
        # Read at the first assignment: only static axes look at the bounds, and they must agree below.
        first = [node.constant(i) for i in range(1, 5)]
        starts, ends = first[0], first[1]
        count = len(axes) if starts is None else len(starts)
        which = first[2] if node.has(3) else np.arange(count)
        steps = first[3] if node.has(4) else np.ones(count, dtype=np.int64)
        bounds_are_inputs = True
    cut = list(range(len(axes))) if which is None else [int(a) % len(axes) for a in which]
    for i, (axis, target) in enumerate(zip(axes, out, strict=True)):
        if i not in cut:
            unify(axis, target)
            continue
        position = -1 if which is None else cut.index(i)
        if not axis.static or position < 0 or starts is None or ends is None or steps is None:
            if axis.size == target.size and axis.static and which is not None and _whole(starts, position):
                unify(axis, target)
            else:
                node.freeze([axis, target], "cut at a computed place")
            continue
        size = axis.size[0]
        begin, end, step = slice(int(starts[position]), int(ends[position]), int(steps[position])).indices(size)
        if step != 1:
            node.freeze([axis, target], "cut with a step")
            continue
        before, after = node.atom(begin), node.atom(size - max(end, begin))
        unify(axis, concat([before, target, after]))
        if bounds_are_inputs and (begin, end) != (0, size):
            node.bound(1, position, before, axis)
            node.bound(2, position, concat([before, target]), axis)
        elif (begin, end) != (0, size):
            node.freeze([axis, target], "cut by attributes")


def _whole(starts: np.ndarray | None, position: int) -> bool:
    return starts is not None and int(starts[position]) == 0


@rule("Pad")
@rule("Pad", domain=MICROSOFT)
def pad(node: NodeAxes) -> None:
    """Padding adds members that stay; untouched axes pass."""
    axes, out = node.axes(0), node.out()
    pads = np.asarray(node.attr("pads")) if "pads" in node.node.attributes else node.constant(1)
    pads = None if pads is None else pads.reshape(-1)
    named = node.constant(3) if node.has(3) else np.arange(len(axes))
    node.ignore(2)
    if named is None or node.attr("mode", "constant") != "constant":
        node.freeze([*axes, *out], "padded with copies" if named is not None else "padded")
        return
    which = [int(a) % len(axes) for a in named]
    for i, (axis, target) in enumerate(zip(axes, out, strict=True)):
        if i not in which:
            unify(axis, target)
        elif pads is None or not axis.static or min(pads[which.index(i)], pads[which.index(i) + len(which)]) < 0:
            node.freeze([axis, target], "padded")
        else:
            before, after = (node.atom(int(pads[which.index(i) + k * len(which)])) for k in (0, 1))
            for extra in (before, after):
                freeze(extra, f"padding of {node.label}")
            unify(concat([before, axis, after]), target)


@rule("RemovePadding", "RestorePadding", domain=MICROSOFT)
def packed_tokens(node: NodeAxes) -> None:
    """Token axes are rearranged; the width passes."""
    node.freeze([*node.axes(0)[:-1], *node.out()[:-1]], "rearranged")
    unify(node.axes(0)[-1], node.out()[-1])
    node.ignore(*range(1, len(node.node.inputs)))
