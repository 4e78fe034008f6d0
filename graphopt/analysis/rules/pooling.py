"""Pooling: channels pass, positions are mixed by the window."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, NodeAxes, rule
from graphopt.analysis.rules.convolution import mix_windows


@rule("AveragePool", "LpPool")
def pool(node: NodeAxes) -> None:
    """``X[N, C, ...]`` -> ``[N, C, ...]``."""
    _pool(node)


@rule("MaxPool")
def max_pool(node: NodeAxes) -> None:
    """As ``pool``; the second output numbers the elements of the whole tensor, which only MaxUnpool can follow."""
    _pool(node)
    if not node.has_out(1):
        return
    indices = node.out(1)
    node.same(node.out(), indices)
    if any(use.node.op_type != "MaxUnpool" for use in node.node.outputs[1].uses()):
        node.freeze([node.axes(0)[1], *indices], "numbered")


@rule("MaxUnpool")
def max_unpool(node: NodeAxes) -> None:
    """``X`` and the indices of a MaxPool ``[N, C, ...]`` -> a tensor of that MaxPool's input shape."""
    axes, indices, out = node.axes(0), node.axes(1), node.out()
    node.same(axes, indices)
    node.same(axes[:2], out[:2])
    node.freeze([*axes[2:], *out[2:]], "put where they were found")
    maker = node.value(1).producer()
    if maker is None or maker.op_type != "MaxPool" or not _same_shape(node, maker) or node.has(2):
        node.freeze([axes[1]], "put at numbers of a tensor of another shape")
    if node.has(2):
        node.size_operand(2, out)


def _same_shape(node: NodeAxes, maker: ir.Node) -> bool:
    source, shapes = maker.inputs[0], node.facts.shapes
    return source is not None and shapes.known(source) and shapes.sizes(source) == shapes.sizes(node.node.outputs[0])


@rule("NhwcMaxPool", domain=MICROSOFT)
def channels_last_pool(node: NodeAxes) -> None:
    """``X[N, ..., C]`` -> ``[N, ..., C]``."""
    _pool(node, channels_last=True)


@rule("QLinearAveragePool", domain=MICROSOFT)
def qlinear_pool(node: NodeAxes) -> None:
    """As ``pool``, with scalars for the quantization of both sides."""
    _pool(node, channels_last=bool(node.attr("channels_last", 0)))
    node.ignore(1, 2, 3, 4)


def _pool(node: NodeAxes, *, channels_last: bool = False) -> None:
    before, after = _channels_pass(node, channels_last=channels_last)
    mix_windows(node, before, after, node.attr("kernel_shape"))


@rule("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")
def global_pool(node: NodeAxes) -> None:
    """``X[N, C, ...]`` -> ``[N, C, 1...]``."""
    before, after = _channels_pass(node)
    node.freeze([*before, *after], "pooled")


@rule("QLinearGlobalAveragePool", domain=MICROSOFT)
def qlinear_global_pool(node: NodeAxes) -> None:
    """As ``global_pool``, with scalars for the quantization of both sides."""
    before, after = _channels_pass(node, channels_last=bool(node.attr("channels_last", 0)))
    node.freeze([*before, *after], "pooled")
    node.ignore(1, 2, 3, 4)


def _channels_pass(node: NodeAxes, *, channels_last: bool = False) -> tuple[Sequence[Atom], Sequence[Atom]]:
    """Relate the batch and the channels; returns the positions before and after."""
    axes, out = node.axes(0), node.out()
    channel = len(axes) - 1 if channels_last else 1
    unify(axes[0], out[0])
    unify(axes[channel], out[channel])
    positions = slice(1, -1) if channels_last else slice(2, None)
    return axes[positions], out[positions]


@rule("MaxRoiPool", "RoiAlign")
@rule("CropAndResize", domain=MICROSOFT)
def regions(node: NodeAxes) -> None:
    """``X[N, C, H, W]`` and regions ``[R, ...]`` -> ``[R, C, h, w]``: channels pass."""
    axes, out = node.axes(0), node.out()
    unify(axes[1], out[1])
    node.freeze([axes[0], *axes[2:], *out[2:]], "cut in regions")
    unify(node.axes(1)[0], out[0])
    node.freeze(node.axes(1), "read as regions")
    node.ignore(2, 3)
