"""Ops that act on each element alone: every axis passes, broadcasting like numpy."""

from __future__ import annotations

from graphopt.analysis.rules.context import MICROSOFT, NodeAxes, ops, rule

UNARY = ops(
    "Abs Acos Acosh Affine Asin Asinh Atan Atanh BitCast BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu "
    "HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log MemcpyFromHost MemcpyToHost Mish Neg Not "
    "ParametricSoftplus Reciprocal Relu Round Scale ScaledTanh Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign "
    "Sqrt Swish Tan Tanh ThresholdedRelu"
)
NARY = ops(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min "
    "Mod Mul Or PRelu Pow Sub Sum SwiGLU Where Xor"
)


@rule(*UNARY, *NARY)
@rule("QuickGelu", "Gelu", "BiasGelu", "FastGelu", "BiasSplitGelu", "BiasAdd", "ScaledSiLU", "SwiGLU", domain=MICROSOFT)
def elementwise(node: NodeAxes) -> None:
    """Unary and broadcasting ops; fused activations with a bias [N] broadcast it like an Add."""
    node.broadcast([node.axes(i) for i in range(len(node.node.inputs)) if node.has(i)], node.out())


@rule("Clip", "CastLike", "Dropout")
def first_input(node: NodeAxes) -> None:
    """The first input passes; the others are scalars or give a type only."""
    node.same(node.axes(0), node.out())
    node.ignore(*range(1, len(node.node.inputs)))
    if node.has_out(1):  # Dropout's mask
        node.same(node.axes(0), node.out(1))


@rule("BiasDropout", domain=MICROSOFT)
def bias_dropout(node: NodeAxes) -> None:
    """``Dropout(data + bias) + residual``."""
    node.broadcast([node.axes(i) for i in (0, 1, 2) if node.has(i)], node.out())
    node.ignore(3, 4)
    if node.has_out(1):
        node.same(node.out(), node.out(1))


@rule("CumSum", "CumProd", "Trilu")
@rule("Trilu", domain=MICROSOFT)
def along_some(node: NodeAxes) -> None:
    """Positions matter along the scanned axis (CumSum, CumProd) or the last two (Trilu)."""
    axes = node.axes(0)
    node.same(axes, node.out())
    if node.node.op_type == "Trilu":
        node.freeze(axes[-2:], "masked by position")
        node.ignore(1)
        return
    axis = node.constant(1)
    node.freeze(axes if axis is None else [axes[int(axis.reshape(-1)[0])]], "accumulated")


@rule("RandomNormalLike", "RandomUniformLike", "Bernoulli")
def random_like(node: NodeAxes) -> None:
    """Draws depend on the position, so no member can go; the shape follows the input."""
    node.same(node.axes(0), node.out())
    node.freeze(node.out(), "drawn at random")
