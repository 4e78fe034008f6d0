"""Ops that normalise along an axis: its members share a statistic that changes when one leaves; other axes pass."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from graphopt.analysis.atoms import Atom, unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: NodeAxes) -> None:
    """Mixed along ``axis`` (before opset 13: from ``axis`` on). Axes before the last two are attention heads."""
    axes = node.axes(0)
    old = node.opset < 13
    axis = node.attr("axis", 1 if old else -1) % len(axes)
    mixed = axes[axis:] if old else [axes[axis]]
    node.same(axes, node.out())
    if len(mixed) == 1 and mixed[0].static and _only_ranked(node, axis):
        node.competing(mixed[0])
    else:
        node.freeze(mixed, "normalised")
    if axis == len(axes) - 1:  # [..., heads, queries, keys]
        node.event(Event.HEADS, axes[:-2])


def _only_ranked(node: NodeAxes, axis: int) -> bool:
    """Whether nothing but TopK reads the result, along the same axis: what routers do with their logits."""
    uses = [use.node for use in node.node.outputs[0].uses()]
    rank = len(node.out())
    ranked = all(reader.op_type == "TopK" and _attribute(reader, "axis", -1) % rank == axis for reader in uses)
    return bool(uses) and ranked and node.node.op_type == "Softmax" and not node.node.outputs[0].is_graph_output()


def _attribute(node: ir.Node, name: str, default: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else default


@rule("BiasSoftmax", domain=MICROSOFT)
def bias_softmax(node: NodeAxes) -> None:
    """Softmax of ``data + bias`` from ``axis`` on; how the bias broadcasts is an attribute, so it keeps its members."""
    axes = node.axes(0)
    axis = node.attr("axis", 1) % len(axes)
    node.same(axes, node.out())
    node.freeze([*axes[axis:], *node.axes(1)], "normalised")


@rule("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
def layer_normalization(node: NodeAxes) -> None:
    """``X[..., D...]``, scale and bias broadcast to ``X``; mixed from ``axis`` on."""
    axes = node.axes(0)
    axis = node.attr("axis", -1) % len(axes)
    node.same(axes, node.out())
    node.broadcast([node.axes(i) for i in (1, 2) if node.has(i)], axes)
    node.normalised(axes[axis:], node.value(0))
    for i in range(1, len(node.node.outputs)):
        if node.has_out(i):
            node.same(axes[:axis], node.out(i)[:axis])


@rule("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(node: NodeAxes) -> None:
    """``(X + skip + bias)`` normalised over the last axis; the fourth output is the sum itself."""
    axes = node.axes(0)
    node.same(axes, node.out())
    node.broadcast([node.axes(i) for i in range(1, len(node.node.inputs)) if node.has(i)], axes)
    if node.has_out(3):
        node.same(axes, node.out(3))
    node.normalised(axes[-1:], node.node.outputs[3] if node.has_out(3) else None)


@rule("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(node: NodeAxes) -> None:
    """Word, position and segment tables ``[rows, D]`` summed and normalised over D."""
    width = node.out()[-1]
    for i in (2, 3, 4):
        if node.has(i):
            table = node.axes(i)
            node.freeze(table[:1], "indexed by data")
            unify(table[1], width)
    for i in (5, 6):
        if node.has(i):
            unify(node.axes(i)[0], width)
    summed = node.node.outputs[2] if node.has_out(2) else None
    if summed is not None:
        node.same(node.out(), node.out(2))
    node.normalised([width], summed)
    node.ignore(0, 1, 7, 8)


@rule("BatchNormalization")
def batch_normalization(node: NodeAxes) -> None:
    """``X[N, C, ...]`` with scale, bias, mean and variance ``[C]``: every channel by itself."""
    axes = node.axes(0)
    if not node.attr("spatial", 1):
        raise LookupError(f"{node.label}: statistics of each position")
    node.same(axes, node.out())
    channels = axes[1 if len(axes) > 1 else 0]
    for i in range(1, 5):
        unify(node.axes(i)[0], channels)
    for i in range(1, len(node.node.outputs)):
        if node.has_out(i):
            unify(node.out(i)[0], channels)
    if node.attr("training_mode", 0) or len(node.node.outputs) > 1:
        node.freeze([a for a in axes if a is not channels], "normalised")


@rule("InstanceNormalization")
def instance_normalization(node: NodeAxes) -> None:
    """``X[N, C, ...]`` with scale and bias ``[C]``: every channel of every sample by itself."""
    axes = node.axes(0)
    node.same(axes, node.out())
    for i in (1, 2):
        unify(node.axes(i)[0], axes[1])
    node.freeze(axes[2:], "normalised")


@rule("GroupNormalization")
def group_normalization(node: NodeAxes) -> None:
    """``X[N, groups * members, ...]``, scale and bias by channel, or by group (opset 18): whole groups can leave."""
    axes = node.axes(0)
    node.same(axes, node.out())
    groups, channels = _normalised_groups(node, axes, channel=1, attribute="num_groups")
    for i in (1, 2):
        vector = node.axes(i)[0]
        unify(vector, channels if vector.size == channels.size else groups)


@rule("GroupNorm", "SkipGroupNorm", domain=MICROSOFT)
def contrib_group_norm(node: NodeAxes) -> None:
    """gamma and beta ``[C]``; SkipGroupNorm adds a skip ``[N, (1, 1,) C]`` and a bias ``[C]``; its sum is an output."""
    axes = node.axes(0)
    last = bool(node.attr("channels_last", 1))
    channel = len(axes) - 1 if last else 1
    node.same(axes, node.out())
    _, channels = _normalised_groups(node, axes, channel=channel, attribute="groups")
    for i in (1, 2, 4):
        if node.has(i):
            unify(node.axes(i)[0], channels)
    if node.has(3):
        skip = node.axes(3)
        unify(skip[0], axes[0])
        if len(skip) == 2:
            unify(skip[1], channels)
        else:
            node.broadcast([skip], axes)
    if node.has_out(1):
        node.same(axes, node.out(1))


def _normalised_groups(node: NodeAxes, axes: Sequence[Atom], *, channel: int, attribute: str) -> tuple[Atom, Atom]:
    """Mixed inside each group and over all positions; returns the groups and the channels."""
    groups = node.atom(int(node.attr(attribute)))
    members = node.atom(axes[channel].size[0] // groups.size[0])
    channels = node.product(groups, members)
    unify(channels, axes[channel])
    node.freeze([members, *(a for i, a in enumerate(axes) if i not in (0, channel))], "normalised")
    node.event(Event.NORMALIZED, [members])
    node.size_attribute(attribute, groups)
    return groups, channels


@rule("LRN")
def local_response_normalization(node: NodeAxes) -> None:
    """Each channel is divided by a mean over its neighbours, however many there are; positions pass."""
    axes = node.axes(0)
    node.same(axes, node.out())
    node.freeze(axes[1:2], "normalised by its neighbours")


@rule("LpNormalization", "MeanVarianceNormalization")
def other_normalization(node: NodeAxes) -> None:
    """Mixed along the named axes."""
    axes = node.axes(0)
    named = node.attr("axes", [0, 2, 3]) if node.node.op_type.startswith("Mean") else [node.attr("axis", -1)]
    node.same(axes, node.out())
    node.freeze([axes[i % len(axes)] for i in named], "normalised")
