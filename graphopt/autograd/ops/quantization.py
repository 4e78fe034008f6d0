"""Quantization: rounding that a gradient passes through, and the products of integers."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.autograd.table import MICROSOFT, op
from graphopt.autograd.types import Context

_RANGES = {
    ir.DataType.INT2: (-2, 1),
    ir.DataType.UINT2: (0, 3),
    ir.DataType.INT4: (-8, 7),
    ir.DataType.UINT4: (0, 15),
    ir.DataType.INT8: (-128, 127),
    ir.DataType.UINT8: (0, 255),
    ir.DataType.INT16: (-(1 << 15), (1 << 15) - 1),
    ir.DataType.UINT16: (0, (1 << 16) - 1),
    ir.DataType.INT32: (-(1 << 31), (1 << 31) - 1),
}


Types = tuple[ir.DataType | None, ...]


def _kind(zero: Tensor | None, types: Types) -> ir.DataType:
    """The type to quantize to: that of the zero point, as the graph declares it or as it is carried."""
    if zero is None:
        return ir.DataType.UINT8
    carried = {torch.int8: ir.DataType.INT8, torch.int16: ir.DataType.INT16, torch.int32: ir.DataType.UINT16}
    return types[2] or carried.get(zero.dtype, ir.DataType.UINT8)


class _Rounded(torch.autograd.Function):
    """Rounding to even whose gradient is that of the identity: the straight-through estimator (Bengio et al. 2013)."""

    @staticmethod
    def forward(_ctx: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def straight_through_round(x: Tensor) -> Tensor:
    """``x`` rounded to even; the gradient passes as if nothing had happened."""
    made: Tensor = _Rounded.apply(x)  # type: ignore[no-untyped-call]
    return made


def _along(parameter: Tensor, x: Tensor, axis: int, block_size: int) -> Tensor:
    """A scale or zero point so that it broadcasts to ``x``: one number, one for each slice, or one for each block."""
    if parameter.numel() == 1 and not block_size:
        return parameter.reshape(())
    if block_size:
        wide = parameter.repeat_interleave(block_size, axis)
        return wide.narrow(axis, 0, x.shape[axis])
    return parameter.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])


@op("QuantizeLinear", ignored="saturate precision")
@op("QuantizeLinear", domain=MICROSOFT)
def quantize(
    ctx: Context,
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    simulated: bool,
    types: Types,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """``clamp(round(x / scale) + zero)``.

    Simulated, the integers stay in floats: the gradient of ``x`` passes where nothing is cut off, and the scale gets
    the gradient of learned step sizes (Esser et al. 2020) together with that of DequantizeLinear.
    """
    kind = ir.DataType(output_dtype) if output_dtype else _kind(zero, types)
    factor = _along(scale, x, axis, block_size)
    offset = None if zero is None else _along(zero, x, axis, block_size)
    if kind.name.startswith("FLOAT"):
        limit = torch.finfo(ctx.dtype(kind))
        made = x / factor if offset is None else x / factor + offset.to(x.dtype)
        return torch.clamp(made, limit.min, limit.max).to(ctx.dtype(kind))
    low, high = _RANGES[kind]
    made = straight_through_round(x / factor)
    made = torch.clamp(made if offset is None else made + offset.to(made.dtype), low, high)
    return made if simulated else made.to(ctx.dtype(kind))


@op("DequantizeLinear")
@op("DequantizeLinear", domain=MICROSOFT)
def dequantize(
    ctx: Context,
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
) -> Tensor:
    """``(x - zero) scale``."""
    wide = x.to(scale.dtype if scale.is_floating_point() else torch.float32)
    if zero is not None:
        wide = wide - _along(zero, x, axis, block_size).to(wide.dtype)
    made = wide * _along(scale, x, axis, block_size)
    return made.to(ctx.dtype(output_dtype)) if output_dtype else made


@op("DynamicQuantizeLinear", differentiable=False)
def dynamic_quantize(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """To uint8 by the tensor's own range, which always holds zero: values, scale, zero point."""
    low, high = x.amin().clamp(max=0.0), x.amax().clamp(min=0.0)
    scale = (high - low) / 255
    safe = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = torch.clamp((-low / safe).round(), 0, 255)
    return torch.clamp((x / safe).round() + zero, 0, 255).to(torch.uint8), scale, zero.to(torch.uint8)


def _less_zero(x: Tensor, zero: Tensor | None, by_row: bool) -> Tensor:
    """Integers less their zero point, in float64, where sums of their products are exact."""
    wide = x.double()
    if zero is None:
        return wide
    zero = zero.double()
    if zero.ndim == 1 and zero.numel() > 1:
        zero = zero.unsqueeze(-1) if by_row else zero
    elif zero.ndim == 1:
        zero = zero.reshape(())
    return wide - zero


@op("MatMulInteger", differentiable=False)
def integer_matmul(a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None) -> Tensor:
    """Int32; a zero point for each row of ``a``, for each column of ``b``."""
    return (_less_zero(a, a_zero, True) @ _less_zero(b, b_zero, False)).to(torch.int32)


@op("MatMulIntegerToFloat", domain=MICROSOFT, differentiable=False)
def integer_matmul_to_float(
    a: Tensor,
    b: Tensor,
    a_scale: Tensor,
    b_scale: Tensor,
    a_zero: Tensor | None = None,
    b_zero: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """The scaled product."""
    made = integer_matmul(a, b, a_zero, b_zero).to(a_scale.dtype) * a_scale * b_scale
    return made if bias is None else made + bias


@op("DynamicQuantizeMatMul", domain=MICROSOFT, differentiable=False)
def dynamic_quantize_matmul(
    a: Tensor, b: Tensor, b_scale: Tensor, b_zero: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """``a`` is quantized by its own range."""
    values, scale, zero = dynamic_quantize(a)
    return integer_matmul_to_float(values, b, scale, b_scale, zero, b_zero, bias)


@op("QLinearMatMul", differentiable=False)
def quantized_matmul(
    ctx: Context,
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
    *,
    types: Types,
) -> Tensor:
    """Quantized in, quantized out."""
    rows = a_scale.unsqueeze(-1) if a_scale.ndim == 1 and a_scale.numel() > 1 else a_scale
    made = integer_matmul(a, b, a_zero, b_zero).to(scale.dtype) * (rows * b_scale)
    return quantize(ctx, made, scale, zero, simulated=False, types=types[5:8])


@op("MatMulNBits", domain=MICROSOFT, ignored="accuracy_level weight_prepacked")
def matmul_n_bits(
    a: Tensor,
    packed: Tensor,
    scales: Tensor,
    zeros: Tensor | None = None,
    group: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    K: int,
    N: int,
    block_size: int,
    bits: int = 4,
) -> Tensor:
    """``a [..., K]`` by weights in blocks of ``block_size`` along K: ``packed [N, blocks, bytes]``, low bits first."""
    if group is not None:
        raise NotImplementedError("reordered groups")
    blocks = -(-K // block_size)
    codes = _unpacked(packed.reshape(N, blocks, -1), bits)[..., :block_size]
    middle = 1 << (bits - 1)
    if zeros is None:
        offset: Tensor | float = float(middle)
    elif zeros.is_floating_point():
        offset = zeros.reshape(N, blocks, 1)
    else:
        offset = _unpacked(zeros.reshape(N, -1), bits)[:, :blocks, None].to(scales.dtype)
    weight = ((codes.to(scales.dtype) - offset) * scales.reshape(N, blocks, 1)).reshape(N, -1)[:, :K]
    made = a @ weight.T
    return made if bias is None else made + bias


def _unpacked(x: Tensor, bits: int) -> Tensor:
    """Codes of ``bits`` bits from bytes, along the last axis."""
    shifts = torch.arange(0, 8, bits, device=x.device, dtype=torch.int32)
    return ((x.to(torch.int32).unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(-2)
