"""Nested bodies: what crosses into or out of an If, Loop or Scan is the same axis on both sides."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analysis.atoms import Atom
from graphopt.analysis.nested import Crossing, into_bodies, out_of_bodies
from graphopt.analysis.rules.context import NodeAxes, rule

Axes = list[Atom] | None  #: None where the shape is not known, changes between iterations, or belongs to a weight


@rule("If", "Loop", "Scan")
def control(node: NodeAxes) -> None:
    """Both branches of an If agree, and so do all iterations of a Loop or Scan (as of opset 9).

    The axis that iterations are cut from or stacked along is a count of them: it keeps its members.
    """
    why = node.facts.shapes.unrun.get(node.node.name or "")
    if why is not None:
        raise LookupError(f"a body of {node.label} does not run by itself: {why}")
    if node.node.op_type == "Scan" and node.opset < 9:
        raise LookupError(f"{node.label} is of an older form")
    node.ignore(*range(len(node.node.inputs)))  # counts and conditions; the others are touched below
    for crossing in into_bodies(node.node):
        _cross(node, crossing)
    for crossing in out_of_bodies(node.node):
        if crossing.target.uses() or crossing.target.is_graph_output():
            _cross(node, crossing)


def _cross(node: NodeAxes, crossing: Crossing) -> None:
    """One value, seen from all sides. Sides that do not agree are frozen."""
    sides: list[Axes] = [_rest(node, _of_value(node, crossing.target), crossing.stacked)]
    sides += [_rest(node, node.axes(i), crossing.cut) for i in crossing.operands]
    sides += [_of_value(node, result) for result in crossing.results]
    known = [axes for axes in sides if axes is not None]
    if len(known) < len(sides) or len({len(axes) for axes in known}) > 1:
        for axes in known:
            node.freeze(axes, "given another shape in a body")
        return
    for axes in known[1:]:
        node.same(known[0], axes)


def _of_value(node: NodeAxes, value: ir.Value) -> Axes:
    weight = value.is_initializer() and not value.is_graph_input()
    return None if weight or not value.name else node.facts.axes_of(value)


def _rest(node: NodeAxes, axes: Axes, counted: int | None) -> Axes:
    """All axes but the one that iterations are counted along, which is frozen."""
    if axes is None or counted is None:
        return axes
    counted %= len(axes)
    node.freeze([axes[counted]], "counted")
    return [*axes[:counted], *axes[counted + 1 :]]
