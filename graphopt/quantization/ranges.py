"""Chooses the range of codes that serves a known distribution best, on the grid that the codes are of."""

from __future__ import annotations

import enum
from collections.abc import Callable

import numpy as np

from graphopt.quantization.choices import StaticRange
from graphopt.quantization.grids import UINT8, Grid
from graphopt.quantization.statistics import Histogram

_SHRINKS = np.linspace(1.0, 0.2, 81)
_SMALL = 1e-4  #: counts given to every bin, so that no divergence is infinite
_TAIL = 1e-4  #: share of values that ``percentile`` leaves outside


class RangeMethod(enum.StrEnum):
    """How the range of a statically quantized activation is chosen."""

    MINMAX = "minmax"  #: all values seen
    PERCENTILE = "percentile"  #: all but one value in ten thousand
    ENTROPY = "entropy"  #: the range whose codes' distribution diverges least from the values' (as TensorRT's)
    MSE = "mse"  #: the range with the least mean squared error of rounding and clipping together


def choose_range(histogram: Histogram, method: RangeMethod, grid: Grid = UINT8) -> StaticRange:
    """Scale and zero point for codes of ``grid``; zero itself always has an exact code.

    A symmetric grid reaches as far below zero as above, whatever is there: its zero point is 0.
    """
    low, high = _reach(histogram.low, histogram.high, grid)
    if high > low and method is not RangeMethod.MINMAX:
        if method is RangeMethod.PERCENTILE:
            low, high = _reach(*_percentile(histogram), grid)
        else:
            low, high = _best_range(histogram, _divergence if method is RangeMethod.ENTROPY else _error, grid)
    scale = max((high - low) / _steps(grid), float(np.finfo(np.float32).tiny) * 256)
    stored = np.float32(scale)
    if stored > scale:  # the last code must not be above what a Clip lets through, or it is not fused
        stored = np.nextafter(stored, np.float32(0))
    zero = 0 if grid.symmetric else int(np.clip(np.rint(-low / scale), grid.low, grid.high))
    return StaticRange(float(stored), zero, grid)


def _reach(low: float, high: float, grid: Grid) -> tuple[float, float]:
    """The ends, as far from zero as each other where the grid is symmetric."""
    most = max(-low, high)
    return (-most, most) if grid.symmetric else (low, high)


def _steps(grid: Grid) -> int:
    return grid.high - grid.low


def _percentile(histogram: Histogram) -> tuple[float, float]:
    share = np.cumsum(histogram.counts) / max(int(histogram.counts.sum()), 1)
    centres = histogram.centres
    low = centres[np.searchsorted(share, _TAIL / 2)]
    high = centres[min(int(np.searchsorted(share, 1 - _TAIL / 2)), len(centres) - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


Loss = Callable[[Histogram, float, float, Grid], float]


def _best_range(histogram: Histogram, loss: Loss, grid: Grid) -> tuple[float, float]:
    """Both ends shrink together, then, where they may differ, each alone."""
    low, high = _reach(histogram.low, histogram.high, grid)
    factor = min(_SHRINKS, key=lambda f: loss(histogram, low * f, high * f, grid))
    low, high = low * factor, high * factor
    if not grid.symmetric:
        low *= min(_SHRINKS, key=lambda f: loss(histogram, low * f, high, grid))
        high *= min(_SHRINKS, key=lambda f: loss(histogram, low, high * f, grid))
    return low, high


def _divergence(histogram: Histogram, low: float, high: float, grid: Grid) -> float:
    """Kullback-Leibler divergence of the codes' distribution from that of the values, those outside cut to the ends.

    Each code spreads what it holds evenly over the bins that it stands for, those without any value excepted; values
    that are cut pile up in one bin of the first distribution, and are missing in the second.
    """
    inside = (histogram.centres >= low) & (histogram.centres <= high)
    if not inside.any():
        return np.inf
    centres, kept = histogram.centres[inside], histogram.counts[inside].astype(np.float64)
    first = int(np.argmax(inside))
    cut = kept.copy()
    cut[0] += histogram.counts[:first].sum()
    cut[-1] += histogram.counts[first + len(kept) :].sum()
    steps = _steps(grid)
    codes = np.clip(np.rint((centres - low) / max(high - low, 1e-30) * steps), 0, steps).astype(int)
    occupied = kept > 0
    total, bins = np.bincount(codes, kept), np.bincount(codes, occupied)
    spread = np.where(occupied, (total / np.maximum(bins, 1))[codes], 0.0)
    p, q = cut / cut.sum(), (spread + _SMALL) / (spread + _SMALL).sum()
    positive = p > 0
    return float((p[positive] * np.log(p[positive] / q[positive])).sum())


def _error(histogram: Histogram, low: float, high: float, grid: Grid) -> float:
    """Sum of squared errors: uniform rounding noise for all, and what is clipped on top."""
    centres, counts = histogram.centres, histogram.counts
    clipped = counts @ (centres - np.clip(centres, low, high)) ** 2
    return float(clipped + counts.sum() * ((high - low) / _steps(grid)) ** 2 / 12.0)
