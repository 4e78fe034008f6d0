"""Quantized forms: scales and zero points are sliced with the axis they belong to."""

from __future__ import annotations

from graphopt.analysis.atoms import unify
from graphopt.analysis.rules.context import MICROSOFT, NodeAxes, rule
from graphopt.analysis.rules.linear import contract


@rule("QuantizeLinear", "DequantizeLinear")
@rule("QuantizeLinear", "DequantizeLinear", domain=MICROSOFT)
def linear(node: NodeAxes) -> None:
    """``X`` passes; a scale ``[D]`` lies along ``axis``; blocked scales tie neighbours together."""
    axes = node.axes(0)
    node.same(axes, node.out())
    axis = node.attr("axis", 1) % max(len(axes), 1)
    for i in (1, 2):
        if not node.has(i):
            continue
        scale = node.axes(i)
        if len(scale) == 1 and not scale[0].trivial:
            unify(scale[0], axes[axis])
        elif len(scale) > 1:
            node.freeze([*axes, *scale], "quantized in blocks")


@rule("DynamicQuantizeLinear")
def dynamic_quantize(node: NodeAxes) -> None:
    """The range always includes zero, so a member that is zero can go without changing the scale."""
    node.same(node.axes(0), node.out())
    shared_range(node, 0)


def shared_range(node: NodeAxes, index: int) -> None:
    """One scale serves all of input ``index``: whoever leaves it must have been zero there."""
    for axis in node.axes(index):
        node.summed(axis, index)


@rule("MatMulInteger")
def matmul_integer(node: NodeAxes) -> None:
    """MatMul with zero points, each scalar or along the rows or columns."""
    _quantized_matmul(node, a=0, b=1, rows=(2,), columns=(3,))


@rule("MatMulIntegerToFloat", domain=MICROSOFT)
def matmul_integer_to_float(node: NodeAxes) -> None:
    """A, B, their scales and zero points, bias."""
    _quantized_matmul(node, a=0, b=1, rows=(2, 4), columns=(3, 5, 6))


@rule("DynamicQuantizeMatMul", domain=MICROSOFT)
def dynamic_quantize_matmul(node: NodeAxes) -> None:
    """A is quantized inside; B, its scale and zero point, bias."""
    _quantized_matmul(node, a=0, b=1, rows=(), columns=(2, 3, 4))
    shared_range(node, 0)


@rule("QLinearMatMul")
def qlinear_matmul(node: NodeAxes) -> None:
    """A, scale, zero point, B, scale, zero point, then the output's (scalars)."""
    _quantized_matmul(node, a=0, b=3, rows=(1, 2), columns=(4, 5))
    node.ignore(6, 7)


def _quantized_matmul(node: NodeAxes, *, a: int, b: int, rows: tuple[int, ...], columns: tuple[int, ...]) -> None:
    out = node.out()
    contract(node, node.axes(a), node.axes(b), out, inputs=(a, b))
    for indices, target in ((rows, out[-2:-1]), (columns, out[-1:])):
        for i in indices:
            if node.has(i):
                node.broadcast([node.axes(i)[-1:]], target)
