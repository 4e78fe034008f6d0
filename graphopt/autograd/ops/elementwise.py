"""Operators that act on each element: arithmetic, comparisons, activations."""

from __future__ import annotations

import math
from typing import Any

import onnx_ir as ir
import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.table import MICROSOFT, elementwise, op
from graphopt.autograd.types import Context

elementwise(
    {
        "Abs": torch.abs,
        "Acos": torch.acos,
        "Acosh": torch.acosh,
        "Asin": torch.asin,
        "Asinh": torch.asinh,
        "Atan": torch.atan,
        "Atanh": torch.atanh,
        "Cos": torch.cos,
        "Cosh": torch.cosh,
        "Erf": torch.erf,
        "Exp": torch.exp,
        "HardSwish": F.hardswish,
        "Identity": lambda x: x,
        "Log": torch.log,
        "Mish": F.mish,
        "Neg": torch.neg,
        "Reciprocal": torch.reciprocal,
        "Relu": torch.relu,
        "Sigmoid": torch.sigmoid,
        "Sin": torch.sin,
        "Sinh": torch.sinh,
        "Softplus": F.softplus,
        "Softsign": F.softsign,
        "Sqrt": torch.sqrt,
        "Tan": torch.tan,
        "Tanh": torch.tanh,
    }
)
elementwise(
    {
        "BitwiseNot": torch.bitwise_not,
        "IsNaN": torch.isnan,
        "Not": torch.logical_not,
    },
    differentiable=False,
)
#: Steps: their gradient is zero, which is a gradient all the same.
elementwise({"Ceil": torch.ceil, "Floor": torch.floor, "Round": torch.round, "Sign": torch.sign})
elementwise({"Add": torch.add, "Mul": torch.mul, "Sub": torch.sub}, inputs=2)
elementwise({"Where": torch.where}, inputs=3)
elementwise(
    {
        "And": torch.logical_and,
        "BitwiseAnd": torch.bitwise_and,
        "BitwiseOr": torch.bitwise_or,
        "BitwiseXor": torch.bitwise_xor,
        "Equal": torch.eq,
        "Greater": torch.gt,
        "GreaterOrEqual": torch.ge,
        "Less": torch.lt,
        "LessOrEqual": torch.le,
        "Or": torch.logical_or,
        "Xor": torch.logical_xor,
    },
    inputs=2,
    differentiable=False,
)


@op("Div")
def divide(a: Tensor, b: Tensor) -> Tensor:
    """Integers are divided as in C, towards zero."""
    return torch.div(a, b) if a.is_floating_point() or a.is_complex() else torch.div(a, b, rounding_mode="trunc")


@op("Pow")
def power(base: Tensor, exponent: Tensor) -> Tensor:
    """The result has the type of the base."""
    made = torch.pow(base, exponent)
    return made if made.dtype is base.dtype or base.is_floating_point() else made.to(base.dtype)


@op("Mod")
def modulo(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """The remainder takes the sign of the divisor, or with ``fmod`` that of the dividend."""
    return torch.fmod(a, b) if fmod else torch.remainder(a, b)


@op("BitShift", differentiable=False)
def bit_shift(x: Tensor, by: Tensor, *, direction: str) -> Tensor:
    """Logical shifts of unsigned integers."""
    return torch.bitwise_left_shift(x, by) if direction == "LEFT" else torch.bitwise_right_shift(x, by)


@op("IsInf", differentiable=False)
def is_infinite(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    """Infinities of the wanted signs."""
    if detect_negative and detect_positive:
        return torch.isinf(x)
    if detect_positive:
        return torch.isposinf(x)
    return torch.isneginf(x) if detect_negative else torch.zeros_like(x, dtype=torch.bool)


@op("Max")
def maximum(first: Tensor, *others: Tensor) -> Tensor:
    """The larger of broadcast operands."""
    for other in others:
        first = torch.maximum(first, other)
    return first


@op("Min")
def minimum(first: Tensor, *others: Tensor) -> Tensor:
    """The smaller of broadcast operands."""
    for other in others:
        first = torch.minimum(first, other)
    return first


@op("Sum")
def total(first: Tensor, *others: Tensor) -> Tensor:
    """Sum of broadcast operands."""
    for other in others:
        first = first + other
    return first


@op("Mean")
def mean(*operands: Tensor) -> Tensor:
    """Mean of broadcast operands."""
    return total(*operands) / len(operands)


@op("Clip", since=6)
def clip_to_attributes(x: Tensor, *, min: float = -math.inf, max: float = math.inf) -> Tensor:
    """Bounds as attributes."""
    return torch.clamp(x, min, max)


@op("Clip", since=11)
def clip(x: Tensor, low: Tensor | None = None, high: Tensor | None = None) -> Tensor:
    """Bounds as scalars; the upper one wins where they cross."""
    return x if low is None and high is None else torch.clamp(x, low, high)


# -- activations -------------------------------------------------------------------------------------------------------
@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``max(0, x) + min(0, alpha (exp(x / alpha) - 1))``."""
    return F.celu(x, alpha)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` above zero, ``alpha (exp(x) - 1)`` below."""
    return F.elu(x, alpha)


@op("Selu", ignored="consumed_inputs")
def selu(x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Tensor:
    """``gamma`` times Elu."""
    return gamma * F.elu(x, alpha)


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """``alpha x`` below zero."""
    return F.leaky_relu(x, alpha)


@op("PRelu")
def parametric_relu(x: Tensor, slope: Tensor) -> Tensor:
    """``slope`` broadcasts to ``x``; one number for each channel may come without the axes after it (opset 6)."""
    if slope.ndim == 1 and x.ndim > 2 and slope.shape[0] == x.shape[1] not in (1, x.shape[-1]):
        slope = slope.reshape(-1, *[1] * (x.ndim - 2))
    return torch.where(x < 0, x * slope, x)


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x`` where it is above ``alpha``, zero elsewhere."""
    return F.threshold(x, alpha, 0.0)


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """``alpha x + beta`` within 0 and 1."""
    return torch.clamp(alpha * x + beta, 0.0, 1.0)


@op("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """Zero within ``lambd``, closer to zero by ``bias`` outside."""
    moved = torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))
    return moved.to(x.dtype)


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """With erf, or with tanh."""
    return F.gelu(x, approximate=approximate)


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``x sigmoid(alpha x)``."""
    return F.silu(x) if alpha == 1.0 else x * torch.sigmoid(alpha * x)


@op("SwiGLU")
def swiglu(gate: Tensor, up: Tensor, *, alpha: float = 1.0) -> Tensor:
    """``swish(gate) up``."""
    return swish(gate, alpha=alpha) * up


@op("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """``x sigmoid(1.702 x)``."""
    return swish(x, alpha=alpha)


op("Gelu", domain=MICROSOFT, inputs=1)(F.gelu)


@op("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """Gelu with erf of ``x + bias``."""
    return F.gelu(x + bias)


@op("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu with tanh of ``x + bias``."""
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


@op("BiasSplitGelu", domain=MICROSOFT)
def bias_split_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """The first half times Gelu of the second."""
    value, gate = (x + bias).chunk(2, dim=-1)
    return value * F.gelu(gate)


@op("BiasAdd", domain=MICROSOFT)
def bias_add(x: Tensor, bias: Tensor, skip: Tensor) -> Tensor:
    """``x + bias + skip``."""
    return x + bias + skip


# -- types and chance --------------------------------------------------------------------------------------------------
@op("Cast", ignored="round_mode")
def cast(ctx: Context, x: Tensor, *, to: int, saturate: int = 1) -> Tensor:
    """Float to an 8-bit float saturates where told to, and is infinite or not a number otherwise."""
    return _packed(_converted(x, ctx.dtype(to), saturate), to)


@op("CastLike", ignored="round_mode")
def cast_like(x: Tensor, like: Tensor, *, types: tuple[ir.DataType | None, ...], saturate: int = 1) -> Tensor:
    """In the type of ``like``."""
    return _packed(_converted(x, like.dtype, saturate), types[1] or ir.DataType.UNDEFINED)


def _packed(x: Tensor, kind: int) -> Tensor:
    """Integers of fewer than eight bits keep their low bits; they are carried in eight."""
    if kind not in _NARROW:
        return x
    bits, signed = _NARROW[ir.DataType(kind)]
    half = 1 << (bits - 1) if signed else 0
    return ((x + half) & ((1 << bits) - 1)) - half


_NARROW = {
    ir.DataType.INT2: (2, True),
    ir.DataType.INT4: (4, True),
    ir.DataType.UINT2: (2, False),
    ir.DataType.UINT4: (4, False),
}


def _converted(x: Tensor, dtype: torch.dtype, saturate: int) -> Tensor:
    if x.dtype is dtype:
        return x
    if dtype.itemsize == 1 and dtype.is_floating_point and x.is_floating_point():
        if saturate:
            x = torch.clamp(x.float(), torch.finfo(dtype).min, torch.finfo(dtype).max)
        elif dtype is torch.float8_e4m3fn:  # torch saturates; what would round to the next number is none
            x = torch.where(x.abs() > _BEYOND_E4M3FN, torch.nan, x)
    return x.to(dtype)


_BEYOND_E4M3FN = 464.0


@op("Dropout", since=7, ignored="ratio")
def dropout_in_inference(x: Tensor, *, wanted: tuple[bool, ...]) -> tuple[Any, ...]:
    """The identity; its mask is all ones."""
    return (x, torch.ones_like(x, dtype=torch.bool) if wanted[1:] == (True,) else None)


@op("Dropout", since=12, host="ratio training", ignored="seed", foldable=False)
def dropout(x: Tensor, ratio: float | None = None, training: bool | None = None) -> tuple[Tensor, Tensor]:
    """In training form each element is kept with probability ``1 - ratio`` and scaled; otherwise the identity."""
    ratio = 0.5 if ratio is None else ratio
    if not training or ratio == 0.0:
        return x, torch.ones_like(x, dtype=torch.bool)
    keep = torch.rand_like(x, dtype=torch.float32) >= ratio
    return x * keep / (1.0 - ratio), keep


def _random_type(ctx: Context, like: Tensor, dtype: int | None) -> torch.dtype:
    return ctx.dtype(dtype) if dtype is not None else like.dtype


@op("RandomNormal", ignored="seed", foldable=False, differentiable=False)
def random_normal(
    ctx: Context, *, shape: tuple[int, ...], mean: float = 0.0, scale: float = 1.0, dtype: int = ir.DataType.FLOAT
) -> Tensor:
    """Drawn from torch's generator: the file's seed is not honoured."""
    return torch.randn(tuple(shape), dtype=ctx.dtype(dtype), device=ctx.device) * scale + mean


@op("RandomNormalLike", ignored="seed", foldable=False, differentiable=False)
def random_normal_like(
    ctx: Context, like: Tensor, *, mean: float = 0.0, scale: float = 1.0, dtype: int | None = None
) -> Tensor:
    """As ``random_normal``."""
    return torch.randn_like(like, dtype=_random_type(ctx, like, dtype)) * scale + mean


@op("RandomUniform", ignored="seed", foldable=False, differentiable=False)
def random_uniform(
    ctx: Context, *, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0, dtype: int = ir.DataType.FLOAT
) -> Tensor:
    """As ``random_normal``."""
    return torch.rand(tuple(shape), dtype=ctx.dtype(dtype), device=ctx.device) * (high - low) + low


@op("RandomUniformLike", ignored="seed", foldable=False, differentiable=False)
def random_uniform_like(
    ctx: Context, like: Tensor, *, low: float = 0.0, high: float = 1.0, dtype: int | None = None
) -> Tensor:
    """As ``random_normal``."""
    return torch.rand_like(like, dtype=_random_type(ctx, like, dtype)) * (high - low) + low


@op("Bernoulli", ignored="seed", foldable=False, differentiable=False)
def bernoulli(ctx: Context, x: Tensor, *, dtype: int | None = None) -> Tensor:
    """As ``random_normal``."""
    return torch.bernoulli(x).to(_random_type(ctx, x, dtype))
