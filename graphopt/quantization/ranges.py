"""Chooses the range of 256 codes that serves a known distribution best."""

from __future__ import annotations

import enum

import numpy as np

from graphopt.quantization.statistics import Histogram
from graphopt.quantization.writer import StaticRange

_SHRINKS = np.linspace(1.0, 0.2, 81)
_TAIL = 1e-4  #: share of values that ``percentile`` leaves outside


class RangeMethod(enum.StrEnum):
    """How the range of a statically quantized activation is chosen."""

    MINMAX = "minmax"  #: all values seen
    PERCENTILE = "percentile"  #: all but one value in ten thousand
    MSE = "mse"  #: the range with the least mean squared error of rounding and clipping together


def choose_range(histogram: Histogram, method: RangeMethod) -> StaticRange:
    """Scale and zero point for unsigned codes; zero itself always has an exact code."""
    low, high = histogram.low, histogram.high
    if high > low and method is not RangeMethod.MINMAX:
        if method is RangeMethod.PERCENTILE:
            low, high = _percentile(histogram)
        else:
            low, high = _least_squares(histogram)
    scale = max((high - low) / 255.0, float(np.finfo(np.float32).tiny) * 256)
    stored = np.float32(scale)
    if stored > scale:  # the last code must not be above what a Clip lets through, or it is not fused
        stored = np.nextafter(stored, np.float32(0))
    return StaticRange(float(stored), int(np.clip(np.rint(-low / scale), 0, 255)))


def _percentile(histogram: Histogram) -> tuple[float, float]:
    share = np.cumsum(histogram.counts) / max(int(histogram.counts.sum()), 1)
    centres = histogram.centres
    low = centres[np.searchsorted(share, _TAIL / 2)]
    high = centres[min(int(np.searchsorted(share, 1 - _TAIL / 2)), len(centres) - 1)]
    return min(float(low), 0.0), max(float(high), 0.0)


def _least_squares(histogram: Histogram) -> tuple[float, float]:
    """Both ends shrink together, then each alone."""
    low, high = histogram.low, histogram.high
    factor = min(_SHRINKS, key=lambda f: _error(histogram, low * f, high * f))
    low, high = low * factor, high * factor
    low *= min(_SHRINKS, key=lambda f: _error(histogram, low * f, high))
    high *= min(_SHRINKS, key=lambda f: _error(histogram, low, high * f))
    return low, high


def _error(histogram: Histogram, low: float, high: float) -> float:
    """Sum of squared errors: uniform rounding noise for all, and what is clipped on top."""
    centres, counts = histogram.centres, histogram.counts
    clipped = counts @ (centres - np.clip(centres, low, high)) ** 2
    return float(clipped + counts.sum() * ((high - low) / 255.0) ** 2 / 12.0)
