"""Fourier transforms and windows."""

from __future__ import annotations

import math

import onnx_ir as ir
import torch
from torch import Tensor

from graphopt.autograd.table import op
from graphopt.autograd.types import Context


@op("DFT", host="length")
def fourier_by_attribute(
    x: Tensor, length: int | None = None, *, axis: int = 1, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """The axis as an attribute (opset 17)."""
    return fourier(x, length, axis, inverse=inverse, onesided=onesided)


@op("DFT", since=20, host="length axis")
def fourier(
    x: Tensor, length: int | None = None, axis: int | None = None, *, inverse: int = 0, onesided: int = 0
) -> Tensor:
    """The last axis holds real, or real and imaginary parts."""
    axis = -2 if axis is None else axis
    axis = axis - x.ndim if axis >= 0 else axis
    real = x.shape[-1] == 1
    signal = x.squeeze(-1) if real else torch.view_as_complex(x.contiguous())
    if inverse and onesided:
        made: Tensor = torch.fft.irfft(signal, length, axis + 1).unsqueeze(-1)
        return made
    if onesided:
        whole = torch.fft.rfft(signal, length, axis + 1)
    else:
        whole = (torch.fft.ifft if inverse else torch.fft.fft)(signal, length, axis + 1)
    return torch.view_as_real(whole)


@op("STFT", host="step length")
def short_time_fourier(
    x: Tensor, step: int, window: Tensor | None = None, length: int | None = None, *, onesided: int = 1
) -> Tensor:
    """``x [B, S, 1 or 2]`` -> ``[B, frames, bins, 2]``."""
    size = length or (window.shape[0] if window is not None else x.shape[1])
    signal = x.squeeze(-1) if x.shape[-1] == 1 else torch.view_as_complex(x.contiguous())
    frames = signal.unfold(1, size, step)
    if window is not None:
        frames = frames * window
    made = torch.fft.rfft(frames) if onesided and not frames.is_complex() else torch.fft.fft(frames)
    return torch.view_as_real(made)


def _window(ctx: Context, size: int, periodic: int, kind: int, terms: tuple[float, ...]) -> Tensor:
    """A sum of cosines over ``size`` points."""
    places = torch.arange(size, dtype=torch.float64, device=ctx.device)
    angle = 2 * math.pi * places / (size if periodic else max(size - 1, 1))
    made = sum((term * torch.cos(i * angle) for i, term in enumerate(terms)), torch.zeros_like(angle))
    return made.to(ctx.dtype(kind))


@op("HannWindow", host="size")
def hann_window(ctx: Context, size: int, *, periodic: int = 1, output_datatype: int = ir.DataType.FLOAT) -> Tensor:
    """``0.5 - 0.5 cos``."""
    return _window(ctx, size, periodic, output_datatype, (0.5, -0.5))


@op("HammingWindow", host="size")
def hamming_window(ctx: Context, size: int, *, periodic: int = 1, output_datatype: int = ir.DataType.FLOAT) -> Tensor:
    """``25 / 46 - 21 / 46 cos``."""
    return _window(ctx, size, periodic, output_datatype, (25 / 46, -21 / 46))


@op("BlackmanWindow", host="size")
def blackman_window(ctx: Context, size: int, *, periodic: int = 1, output_datatype: int = ir.DataType.FLOAT) -> Tensor:
    """``0.42 - 0.5 cos + 0.08 cos 2``."""
    return _window(ctx, size, periodic, output_datatype, (0.42, -0.5, 0.08))
