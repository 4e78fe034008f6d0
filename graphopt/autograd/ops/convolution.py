"""Convolutions, of one to three axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.ops.linear import activated
from graphopt.autograd.ops.quantization import Types, quantize
from graphopt.autograd.table import MICROSOFT, op
from graphopt.autograd.types import Context

_CONVOLVE: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_SPREAD: dict[int, Callable[..., Tensor]] = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def margins(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    pads: Sequence[int] | None,
    auto_pad: str,
) -> tuple[list[int], list[int]]:
    """Padding before and after each spatial axis, as given or as ``auto_pad`` works it out."""
    rank = len(kernel)
    if auto_pad in ("", "NOTSET"):
        pads = pads or (0,) * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    if auto_pad == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, reach, step, hole in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // step) - 1) * step + hole * (reach - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if auto_pad == "SAME_UPPER" else large)
        after.append(large if auto_pad == "SAME_UPPER" else small)
    return before, after


def padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    """``x`` with constant margins around its last axes."""
    flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@op("Conv")
def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """``x [N, C, ...]``, ``weight [M, C / group, ...]``, ``bias [M]``."""
    del kernel_shape  # the weight has it
    rank = weight.ndim - 2
    steps, holes = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    before, after = margins(x.shape[2:], weight.shape[2:], steps, holes, pads, auto_pad)
    if before == after:
        return _CONVOLVE[rank](x, weight, bias, steps, tuple(before), holes, group)
    return _CONVOLVE[rank](padded(x, before, after), weight, bias, steps, 0, holes, group)


@op("FusedConv", domain=MICROSOFT)
@op("FusedConv")
def fused_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    added: Tensor | None = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Convolution, an addition, an activation."""
    made = convolution(x, weight, bias, auto_pad=auto_pad, dilations=dilations, group=group, pads=pads, strides=strides)
    made = made if added is None else made + added
    return activated(made, activation, tuple(activation_params))


@op("ConvTranspose")
def transposed_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """``weight [C, M / group, ...]``. Padding cuts the full result; what lies beyond it is zero, plus the bias."""
    del kernel_shape
    rank = weight.ndim - 2
    steps, holes = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    extra = list(output_padding or (0,) * rank)
    whole = [steps[i] * (x.shape[2 + i] - 1) + extra[i] + (weight.shape[2 + i] - 1) * holes[i] + 1 for i in range(rank)]
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        sizes = list(output_shape[-rank:]) if output_shape else [x.shape[2 + i] * steps[i] for i in range(rank)]
        totals = [whole[i] - sizes[i] for i in range(rank)]
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        before, after = (small, large) if auto_pad == "SAME_UPPER" else (large, small)
    else:
        before, after = margins(x.shape[2:], weight.shape[2:], steps, holes, pads, auto_pad)
    if before == after and min(before) >= 0 and all(extra[i] < max(steps[i], holes[i]) for i in range(rank)):
        return _SPREAD[rank](x, weight, bias, steps, tuple(before), tuple(extra), group, holes)
    made = _SPREAD[rank](x, weight, None, steps, 0, 0, group, holes)
    after = [after[i] - extra[i] for i in range(rank)]
    made = padded(made, [-n for n in before], [-n for n in after])  # a negative margin cuts
    return made if bias is None else made + bias.reshape(-1, *[1] * rank)


_ATTRIBUTES = "auto_pad dilations group kernel_shape pads strides"


@op("ConvInteger", attributes=_ATTRIBUTES, differentiable=False)
def integer_convolution(
    x: Tensor, weight: Tensor, x_zero: Tensor | None = None, weight_zero: Tensor | None = None, **attributes: Any
) -> Tensor:
    """Int32 sums of products of 8-bit numbers, computed exactly in float64."""
    made = convolution(_centred(x, x_zero), _centred(weight, weight_zero, 0), **attributes)
    return made.round().to(torch.int32)


@op("QLinearConv", attributes=_ATTRIBUTES, differentiable=False)
def quantized_convolution(
    ctx: Context,
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    weight_zero: Tensor,
    scale: Tensor,
    zero: Tensor,
    bias: Tensor | None = None,
    *,
    types: Types,
    **attributes: Any,
) -> Tensor:
    """Quantized in, quantized out; the bias is int32 in units of both scales."""
    made = convolution(_centred(x, x_zero), _centred(weight, weight_zero, 0), **attributes)
    each = [-1, *[1] * (x.ndim - 2)]
    made = made if bias is None else made + bias.double().reshape(each)
    factor = x_scale * (weight_scale.reshape(each) if weight_scale.numel() > 1 else weight_scale)
    return quantize(ctx, made.to(scale.dtype) * factor, scale, zero, simulated=False, types=types[5:8])


def _centred(x: Tensor, zero: Tensor | None, axis: int | None = None) -> Tensor:
    wide = x.double()
    if zero is None:
        return wide
    if zero.numel() > 1 and axis is not None:
        zero = zero.reshape([-1 if i == axis else 1 for i in range(x.ndim)])
    return wide - zero.double()


@op("DeformConv")
def deformable_convolution(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    offset_group: int = 1,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Two spatial axes. Each tap of the kernel is read at a place moved by ``offset``, weighed by ``mask``."""
    del kernel_shape
    (n, c, _, _), (m, _, kh, kw) = x.shape, weight.shape
    steps, holes, edges = tuple(strides or (1, 1)), tuple(dilations or (1, 1)), tuple(pads or (0, 0, 0, 0))
    height, width = offset.shape[2:]
    shifts = offset.reshape(n, offset_group, kh * kw, 2, height, width)
    weights = None if mask is None else mask.reshape(n, offset_group, kh * kw, height, width)
    rows = torch.arange(height, device=x.device)[:, None] * steps[0] - edges[0]
    columns = torch.arange(width, device=x.device)[None, :] * steps[1] - edges[1]
    share = c // offset_group
    taps = []
    for tap in range(kh * kw):
        parts = []
        for part in range(offset_group):
            y = rows + tap // kw * holes[0] + shifts[:, part, tap, 0]
            z = columns + tap % kw * holes[1] + shifts[:, part, tap, 1]
            read = _bilinear(x[:, part * share : (part + 1) * share], y, z)
            parts.append(read if weights is None else read * weights[:, part, tap].unsqueeze(1))
        taps.append(torch.cat(parts, 1))
    columns_of_x = torch.stack(taps, 2).reshape(n, group, c // group * kh * kw, height * width)
    made = weight.reshape(group, m // group, -1) @ columns_of_x
    made = made.reshape(n, m, height, width)
    return made if bias is None else made + bias.reshape(-1, 1, 1)


def _bilinear(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``x [N, C, H, W]`` at the places ``[N, h, w]``; zero outside."""
    n, c, height, width = x.shape
    flat = x.reshape(n, c, -1)
    low_row, low_column = rows.floor(), columns.floor()
    made = torch.zeros((), dtype=x.dtype, device=x.device)
    for row in (low_row, low_row + 1):
        for column in (low_column, low_column + 1):
            share = (1 - (rows - row).abs()) * (1 - (columns - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long().reshape(n, 1, -1)
            read = flat.gather(2, place.expand(-1, c, -1)).reshape(n, c, *rows.shape[1:])
            made = made + read * (share * inside).unsqueeze(1)
    return made


@op("CausalConvWithState")
def causal_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, past: Tensor | None = None, *, activation: str = "none"
) -> tuple[Tensor, Tensor]:
    """``x [B, C, S]``, depthwise ``weight [C, 1, K]``; the state is the last ``K - 1`` steps of what was read."""
    reach = weight.shape[-1] - 1
    before = past if past is not None else torch.zeros(*x.shape[:2], reach, dtype=x.dtype, device=x.device)
    whole = torch.cat((before, x), -1)
    made = F.conv1d(whole, weight, bias, groups=x.shape[1])
    made = F.silu(made) if activation in ("silu", "swish") else made
    return made, whole[..., whole.shape[-1] - reach :]
