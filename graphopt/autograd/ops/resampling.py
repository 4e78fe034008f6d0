"""Resize and its kin: each axis is a weighted sum of a few elements of the input, worked out once for its sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.table import op


@dataclass(frozen=True, slots=True)
class _Axis:
    """What decides how one axis is resampled; equal ones share their weights."""

    size: int
    target: int
    scale: float
    start: float
    end: float
    mode: str
    transform: str
    nearest: str
    cubic: float
    exclude: bool
    antialias: bool


@lru_cache(maxsize=256)
def _taps(axis: _Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places ``[target, taps]``, their weights, and which targets lie outside of the input."""
    x = _origins(axis)
    outside = (x < 0) | (x > axis.size - 1) if axis.transform == "tf_crop_and_resize" else np.zeros(x.shape, dtype=bool)
    if axis.mode == "nearest":
        places = _NEAREST[axis.nearest](x)[:, None]
        weights = np.ones(places.shape)
    else:
        stretch = min(axis.scale, 1.0) if axis.antialias else 1.0
        reach = (1 if axis.mode == "linear" else 2) / stretch
        first = np.floor(x - reach).astype(np.int64) + 1
        places = first[:, None] + np.arange(math.ceil(2 * reach) + (1 if stretch < 1 else 0))
        distance = np.abs(places - x[:, None]) * stretch
        weights = np.maximum(1 - distance, 0) if axis.mode == "linear" else _cubic(distance, axis.cubic)
        if axis.exclude:
            weights = np.where((places < 0) | (places >= axis.size), 0.0, weights)
        weights = weights / weights.sum(1, keepdims=True)
    return np.clip(places, 0, axis.size - 1).astype(np.int64), weights, outside


_NEAREST: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - 0.5),
    "round_prefer_ceil": lambda x: np.floor(x + 0.5),
    "floor": np.floor,
    "ceil": np.ceil,
    "simple": np.trunc,
}


def _origins(axis: _Axis) -> np.ndarray:
    """Where each target element lies among the input's, in the precision that ONNX Runtime computes it in."""
    out = np.arange(axis.target, dtype=np.float32)
    scale, size = np.float32(axis.scale), axis.size
    kind = axis.transform
    if kind == "asymmetric":
        made = out / scale
    elif kind == "align_corners":
        made = out * np.float32(size - 1) / np.float32(axis.target - 1) if axis.target > 1 else np.zeros_like(out)
    elif kind == "tf_crop_and_resize":
        if axis.target > 1:
            made = axis.start * (size - 1) + out * (axis.end - axis.start) * (size - 1) / (axis.target - 1)
        else:
            made = np.full(1, 0.5 * (axis.start + axis.end) * (size - 1))
    elif kind == "half_pixel_symmetric":
        offset = size / 2 * (1 - axis.target / (axis.scale * size))
        made = offset + (out + np.float32(0.5)) / scale - np.float32(0.5)
    elif kind == "pytorch_half_pixel" and axis.target == 1:
        made = np.zeros_like(out)
    else:
        made = (out + np.float32(0.5)) / scale - np.float32(0.5)
    return made.astype(np.float64)


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys' kernel."""
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def _resampled(x: Tensor, axes: Sequence[tuple[int, _Axis]], extrapolation: float) -> Tensor:
    outside: Tensor | None = None
    for place, axis in axes:
        places, weights, beyond = _taps(axis)
        total = None
        for tap in range(places.shape[1]):
            part = x.index_select(place, torch.from_numpy(places[:, tap].copy()).to(x.device))
            if axis.mode != "nearest":
                share = torch.from_numpy(weights[:, tap].copy()).to(x.device, x.dtype)
                part = part * share.reshape([-1 if i == place else 1 for i in range(x.ndim)])
            total = part if total is None else total + part
        assert total is not None
        x = total
        if beyond.any():
            mask = torch.from_numpy(beyond).to(x.device).reshape([-1 if i == place else 1 for i in range(x.ndim)])
            outside = mask if outside is None else outside | mask
    return x if outside is None else torch.where(outside, extrapolation, x)


@op("Resize", since=10, host="scales")
def resize_by_scales(x: Tensor, scales: list[float], *, mode: str = "nearest") -> Tensor:
    """Opset 10: coordinates are divided by the scale, and cut."""
    return resize(x, None, scales, None, mode=mode, coordinate_transformation_mode="asymmetric", nearest_mode="simple")


@op("Upsample", host="scales")
def upsample(x: Tensor, scales: list[float], *, mode: str = "nearest") -> Tensor:
    """As Resize of opset 10."""
    return resize_by_scales(x, scales, mode=mode)


@op("Resize", since=11, host="roi scales sizes")
def resize(
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    antialias: int = 0,
    axes: Sequence[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    """To sizes, or by scales. Integers are resampled in floats and rounded as C does."""
    places = [axis % x.ndim for axis in axes] if axes is not None else list(range(x.ndim))
    own = [x.shape[place] for place in places]
    crops = coordinate_transformation_mode == "tf_crop_and_resize" and bool(roi)
    starts = roi[: len(places)] if crops and roi else [0.0] * len(places)
    ends = roi[len(places) :] if crops and roi else [1.0] * len(places)
    if sizes:
        targets, factors = _fitted(own, sizes, keep_aspect_ratio_policy)
    else:
        factors = list(scales or [1.0] * len(places))
        spans = [end - start for start, end in zip(starts, ends, strict=True)]
        targets = [math.floor(n * span * f) for n, span, f in zip(own, spans, factors, strict=True)]
    changed = [
        (place, _Axis(
            own[i], targets[i], factors[i], starts[i], ends[i], "linear" if mode == "bilinear" else mode,
            coordinate_transformation_mode, nearest_mode, cubic_coeff_a, bool(exclude_outside), bool(antialias),
        ))
        for i, place in enumerate(places)
        if own[i] != targets[i] or factors[i] != 1.0 or crops
    ]  # fmt: skip
    if mode == "nearest" or x.is_floating_point():
        return _resampled(x, changed, extrapolation_value)
    return _resampled(x.to(torch.float32), changed, extrapolation_value).to(x.dtype)


def _fitted(own: Sequence[int], sizes: Sequence[int], policy: str) -> tuple[list[int], list[float]]:
    """Target sizes and scales; with a policy, one scale for all axes."""
    factors = [n / o for n, o in zip(sizes, own, strict=True)]
    if policy == "stretch":
        return list(sizes), factors
    factor = min(factors) if policy == "not_larger" else max(factors)
    return [math.floor(factor * n + 0.5) for n in own], [factor] * len(own)


@op("GridSample")
def grid_sample(
    x: Tensor, grid: Tensor, *, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros"
) -> Tensor:
    """``x [N, C, ...]`` at the places ``grid [N, ..., rank]`` in -1 .. 1."""
    kind = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, mode=kind, padding_mode=padding_mode, align_corners=bool(align_corners))


@op("AffineGrid", host="size")
def affine_grid(theta: Tensor, size: list[int], *, align_corners: int = 0) -> Tensor:
    """``theta [N, rank, rank + 1]`` -> ``[N, ..., rank]``."""
    return F.affine_grid(theta, size, align_corners=bool(align_corners))
