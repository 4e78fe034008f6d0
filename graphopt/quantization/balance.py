"""Gains that bring an activation's outlier channels in line before it is quantized.

One scale serves a whole activation, so a few loud channels (LayerNorm's outlier dims, a Gelu neuron that fires on every
comma) cost all others their precision. ``x W = (x g)(W / g)``: a gain below one on the loud channels shrinks the step
of the codes; the weights' rows take the inverse, and lose a little. The idea is SmoothQuant's (Xiao et al. 2023); here
the gain touches the loud channels only, and its size is the one with the least error of both sides together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.quantization.sites import Linear
from graphopt.quantization.statistics import ChannelStatistics
from graphopt.quantization.weights import LEVELS, site_matrix

FREE = 0.9  #: a gain that costs no node is taken when the error falls to this share
_LOUDEST = 0.1  #: share of channels that may get a gain
_STEPS = 12


def choose_gain(statistics: ChannelStatistics, readers: Sequence[Linear], worthwhile: float) -> np.ndarray | None:
    """The gain of each channel, float32 [K]; None unless it brings the error down to ``worthwhile`` of what it was."""
    largest = statistics.largest
    quiet = float(np.quantile(largest, 1 - _LOUDEST))
    if quiet <= 0 or largest.max() <= quiet:
        return None
    loud = largest > quiet
    sides = [_Side(site, loud) for site in readers]

    def error(bound: float) -> float:
        gain = _gain(largest, bound)
        span = float((statistics.high * gain).max() - (statistics.low * gain).min())
        power = float((statistics.power * gain * gain).sum())
        return sum(side.error(gain, span, power) for side in sides)

    bounds = np.geomspace(largest.max(), quiet, _STEPS)
    errors = [error(float(bound)) for bound in bounds]
    best = int(np.argmin(errors))
    if errors[best] > worthwhile * errors[0]:
        return None
    return _gain(largest, float(bounds[best]))


def _gain(largest: np.ndarray, bound: float) -> np.ndarray:
    """In numbers that float16 holds, which is how the file stores them."""
    exact = bound / np.maximum(largest, bound)
    return np.asarray(np.maximum(exact, 2.0**-14).astype(np.float16).astype(np.float32))


class _Side:
    """What the error model needs of a weight ``[K, taps, N]``: row energies and column maxima, the loud rows apart."""

    def __init__(self, site: Linear, loud: np.ndarray) -> None:
        W = site_matrix(site)
        W = W.reshape(len(loud), -1, W.shape[1])
        self.loud, self.taps = loud, W.shape[1]
        self.rows = np.einsum("ktn,ktn->k", W, W, dtype=np.float64)
        magnitude = np.abs(W).max(axis=1)
        self.calm = magnitude[~loud].max(axis=0)
        self.loud_rows = magnitude[loud]

    def error(self, gain: np.ndarray, span: float, power: float) -> float:
        """Expected squared error of the product, of rounding the activation and of rounding the weight."""
        step = span / 255.0
        activation = step * step / 12.0 * float((self.rows / (gain.astype(np.float64) ** 2)).sum())
        columns = np.maximum(self.calm, (self.loud_rows / gain[self.loud, None]).max(axis=0)) / LEVELS
        weight = float((columns.astype(np.float64) ** 2).sum()) / 12.0 * power * self.taps
        return activation + weight


def gains_for(
    statistics: Mapping[str, ChannelStatistics], readers: Mapping[str, Sequence[Linear]], worthwhile: float
) -> dict[str, np.ndarray]:
    """Gains by activation. Weights that serve several activations have one set of codes, so they get none."""
    homes: dict[int, set[str]] = {}
    for name, sites in readers.items():
        for site in sites:
            homes.setdefault(id(site.weight), set()).add(name)
    found: dict[str, np.ndarray] = {}
    for name, known in statistics.items():
        sites = readers[name]
        if any(len(homes[id(site.weight)]) > 1 for site in sites):
            continue
        gain = choose_gain(known, sites, worthwhile)
        if gain is not None:
            found[name] = gain
    return found
