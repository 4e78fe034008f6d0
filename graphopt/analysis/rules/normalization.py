"""Ops that normalise along an axis: its members share a statistic, so none can leave; the other axes pass."""

from __future__ import annotations

from graphopt.analysis.atoms import unify
from graphopt.analysis.rules.context import MICROSOFT, Event, NodeAxes, rule


@rule("Softmax", "LogSoftmax", "Hardmax")
def softmax(node: NodeAxes) -> None:
    """Mixed along ``axis`` (before opset 13: from ``axis`` on). Axes before the last two are attention heads."""
    axes = node.axes(0)
    old = node.opset < 13
    axis = node.attr("axis", 1 if old else -1) % len(axes)
    mixed = axes[axis:] if old else [axes[axis]]
    node.same(axes, node.out())
    node.freeze(mixed, "normalised")
    if axis == len(axes) - 1:  # [..., heads, queries, keys]
        node.event(Event.HEADS, axes[:-2])


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
    node.freeze(axes[axis:], "normalised")
    node.event(Event.NORMALIZED, axes[axis:])
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
    node.freeze(axes[-1:], "normalised")
    node.event(Event.NORMALIZED, axes[-1:])


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
    node.freeze([width], "normalised")
    node.ignore(0, 1, 7, 8)


@rule("LpNormalization", "MeanVarianceNormalization")
def other_normalization(node: NodeAxes) -> None:
    """Mixed along the named axes."""
    axes = node.axes(0)
    named = node.attr("axes", [0, 2, 3]) if node.node.op_type.startswith("Mean") else [node.attr("axis", -1)]
    node.same(axes, node.out())
    node.freeze([axes[i % len(axes)] for i in named], "normalised")
