"""Convolutions: channels are contracted group by group, positions are mixed by the kernel.

With ``group`` groups, channels are ``product(group, member)``. A depthwise convolution has one member in each group, so
its channels are the groups, and whole groups leave with the attribute; any other can also lose the same member of each.
"""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule


@rule("Conv")
@rule("FusedConv", domain=MICROSOFT)
def conv(node: NodeAxes) -> None:
    """``X[N, C, ...]``, ``W[M, C / group, kernel...]``, bias ``[M]`` -> ``[N, M, ...]``; FusedConv adds a fourth."""
    _convolve(node, x=0, w=1, filters=(2,))
    if node.has(3):
        node.broadcast([node.axes(3)], node.out())


@rule("NhwcConv", "NhwcFusedConv", domain=MICROSOFT)
def channels_last_conv(node: NodeAxes) -> None:
    """As Conv with ``X[N, ..., C]`` -> ``[N, ..., M]``; weights as in Conv."""
    _convolve(node, x=0, w=1, filters=(2,), channels_last=True)
    if node.has(3):
        node.broadcast([node.axes(3)], node.out())


@rule("ConvTranspose")
def conv_transpose(node: NodeAxes) -> None:
    """As Conv with ``W[C, M / group, kernel...]``."""
    _convolve(node, x=0, w=1, filters=(2,), transposed=True)


@rule("ConvTransposeWithDynamicPads", domain=MICROSOFT)
def padded_conv_transpose(node: NodeAxes) -> None:
    """As ConvTranspose, pads being the third input and the bias the fourth."""
    _convolve(node, x=0, w=1, filters=(3,), transposed=True)
    node.ignore(2)


@rule("ConvInteger")
def conv_integer(node: NodeAxes) -> None:
    """As Conv, with a zero point for all of ``X`` and one for all of ``W`` or for each filter."""
    _convolve(node, x=0, w=1, filters=(3,))
    node.ignore(2)


@rule("QLinearConv")
@rule("QLinearConv", domain=MICROSOFT)
def qlinear_conv(node: NodeAxes) -> None:
    """x, scale, zero point, w, scale, zero point (scalars or ``[M]``), the output's scale and zero point, bias."""
    _convolve(node, x=0, w=3, filters=(4, 5, 8), channels_last=bool(node.attr("channels_last", 0)))
    node.ignore(1, 2, 6, 7)


def _convolve(
    node: NodeAxes, *, x: int, w: int, filters: tuple[int, ...], channels_last: bool = False, transposed: bool = False
) -> None:
    """``filters`` are the inputs that hold one number for each output channel, or a single one."""
    axes, weight, out = node.axes(x), node.axes(w), node.out()
    groups = node.atom(int(node.attr("group", 1)))
    if transposed:
        member, made = node.atom(weight[0].size[0] // groups.size[0]), weight[1]
        unify(node.product(groups, member), weight[0])
    else:
        member, made = weight[1], node.atom(weight[0].size[0] // groups.size[0])
        unify(node.product(groups, made), weight[0])
    channel = len(axes) - 1 if channels_last else 1
    unify(node.product(groups, member), axes[channel])
    result = node.product(groups, made)
    unify(result, out[channel])
    for i in filters:
        if node.has(i):
            node.broadcast([node.axes(i)], [result])
    unify(axes[0], out[0])
    positions = [i for i in range(1, len(axes)) if i != channel]
    mix_windows(node, [axes[i] for i in positions], [out[i] for i in positions], [a.size[0] for a in weight[2:]])
    node.freeze(weight[2:], "moved over positions")
    node.event(Event.WINDOW, weight[2:])
    node.size_attribute("group", groups)
    node.summed(member, x, w)
    node.event(Event.CONVOLVED, [member])
    node.event(Event.FILTERED, [result])


def mix_windows(node: NodeAxes, axes: Sequence[Atom], out: Sequence[Atom], window: Sequence[int]) -> None:
    """Positions pass where the window covers one and visits all of them; elsewhere it mixes neighbours."""
    steps = node.attr("strides") or [1] * len(window)
    pads = node.attr("pads") or [0] * (2 * len(window))
    for i, (before, after) in enumerate(zip(axes, out, strict=True)):
        padded = pads[i] or pads[i + len(window)] or node.attr("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        if window[i] == steps[i] == 1 and not padded and before.size == after.size:
            unify(before, after)
        else:
            node.freeze([before, after], "covered by a window")
