"""Ops that lay an image out anew: channels pass, or are split into positions inside a block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, NodeAxes, rule


@rule("DepthToSpace")
def depth_to_space(node: NodeAxes) -> None:
    """``[N, b * b * C, H, W]`` (DCR) or ``[N, C * b * b, H, W]`` (CRD) -> ``[N, C, H * b, W * b]``."""
    _blocks(node, deep=node.axes(0), wide=node.out(), channels_first=node.attr("mode", "DCR") == "CRD")


@rule("SpaceToDepth")
def space_to_depth(node: NodeAxes) -> None:
    """``[N, C, H * b, W * b]`` -> ``[N, b * b * C, H, W]``."""
    _blocks(node, deep=node.out(), wide=node.axes(0), channels_first=False)


def _blocks(node: NodeAxes, *, deep: Sequence[Atom], wide: Sequence[Atom], channels_first: bool) -> None:
    size = int(node.attr("blocksize"))
    rows, columns = node.atom(size), node.atom(size)
    parts = [wide[1], rows, columns] if channels_first else [rows, columns, wide[1]]
    unify(node.product(*parts), deep[1])
    unify(node.product(deep[2], rows), wide[2])
    unify(node.product(deep[3], columns), wide[3])
    unify(deep[0], wide[0])
    node.freeze([rows, columns], "laid out in blocks")


@rule("Resize", "Upsample")
def resize(node: NodeAxes) -> None:
    """Axes whose scale is one pass, their size being repaired where it is spelled out; the others are resampled."""
    axes, out = node.axes(0), node.out()
    which = [int(a) % len(axes) for a in node.attr("axes", range(len(axes)))]
    old = node.node.op_type == "Upsample" or node.opset < 11
    scales, sizes = (1, 4) if old else (2, 3)
    node.ignore(*range(1, len(node.node.inputs)))
    kept = set(range(len(axes))) - set(which)
    if node.has(sizes) and node.facts.shapes.dims(node.value(sizes)) != (0,):
        if node.attr("keep_aspect_ratio_policy", "stretch") == "stretch":
            node.size_operand(sizes, [out[i] for i in which])
            kept |= {i for i in which if axes[i].size == out[i].size}
    else:
        factors = node.attr("scales") if "scales" in node.node.attributes else _contents(node, scales)
        kept |= {i for i, factor in zip(which, factors, strict=True) if factor == 1}
    if node.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        kept -= set(which)
    for i, (before, after) in enumerate(zip(axes, out, strict=True)):
        if i in kept:
            unify(before, after)
        else:
            node.freeze([before, after], "resampled")


def _contents(node: NodeAxes, index: int) -> np.ndarray:
    tensor = node.value(index).const_value
    if tensor is None or node.value(index).is_graph_input():
        raise LookupError(f"{node.label}: its scales are computed")
    return tensor.numpy()


@rule("GridSample")
@rule("GridSample", domain=MICROSOFT)
def grid_sample(node: NodeAxes) -> None:
    """``X[N, C, ...]`` read at places ``[N, ..., 2]`` -> ``[N, C, ...]``: channels pass."""
    axes, grid, out = node.axes(0), node.axes(1), node.out()
    node.same(axes[:2], out[:2])
    unify(grid[0], out[0])
    node.same(grid[1:-1], out[2:])
    node.freeze([*axes[2:], grid[-1]], "read at places")


@rule("AffineGrid")
def affine_grid(node: NodeAxes) -> None:
    """``theta[N, 2, 3]`` and the sizes ``[N, C, H, W]`` -> places ``[N, H, W, 2]``; C is not used."""
    theta, out = node.axes(0), node.out()
    unify(theta[0], out[0])
    node.freeze([*theta[1:], *out[1:]], "enumerated")
    size = node.constant(1)
    channels = node.atom(1 if size is None else int(size[1]))
    node.size_operand(1, [out[0], channels, *out[1:-1]])
