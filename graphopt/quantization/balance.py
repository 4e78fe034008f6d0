"""Gains that bring an activation's outlier channels in line before it is quantized.

One scale serves a whole activation, so a few loud channels (LayerNorm's outlier dims, a Gelu neuron that fires on every
comma) cost all others their precision. ``x W = (x g)(W / g)``: a gain below one on the loud channels shrinks the step
of the codes; the weights' rows take the inverse, and lose a little. The idea is SmoothQuant's (Xiao et al. 2023); here
the gain touches the loud channels only, and its size is the one with the least error of both sides together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.quantization.sites import Linear, Site
from graphopt.quantization.statistics import ChannelStatistics
from graphopt.quantization.weights import LEVELS, site_matrix

_NORMS = frozenset({"LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization"})
FREE = 0.9  #: a gain that costs no node is taken when the error falls to this share
_LOUDEST = 0.1  #: share of channels that may get a gain
_STEPS = 12


def norm_before(readers: Sequence[Linear]) -> ir.Node | None:
    """The normalisation whose own scale can take the gain: nothing but ``readers`` reads what it puts out."""
    value = readers[0].activation
    node = value.producer()
    if node is None or node.op_type not in _NORMS or value is not node.outputs[0] or value.is_graph_output():
        return None
    known = {id(site.node) for site in readers}
    if any(id(use.node) not in known for use in value.uses()) or any(o.uses() for o in node.outputs[1:]):
        return None
    parameters = [v for v in node.inputs[1:3] if v is not None]
    width = [1] if not parameters else list(parameters[0].shape.numpy()) if parameters[0].shape is not None else []
    fixed = all(v.is_initializer() and v.const_value is not None and not v.is_graph_input() for v in parameters)
    return node if parameters and fixed and len(width) == 1 else None


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


def held_gain(exact: np.ndarray) -> np.ndarray:
    """Gains in numbers that float16 holds, which is how the file stores them."""
    return np.asarray(np.clip(exact, 2.0**-14, 2.0**15).astype(np.float16).astype(np.float32))


def _gain(largest: np.ndarray, bound: float) -> np.ndarray:
    return held_gain(bound / np.maximum(largest, bound))


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


Statistics = TypeVar("Statistics")


def gains_for(
    statistics: Mapping[str, Statistics],
    readers: Mapping[str, Sequence[Linear]],
    sites: Iterable[Site],
    worthwhile: float,
    choose: Callable[[Statistics, Sequence[Linear], float], np.ndarray | None],
) -> dict[str, np.ndarray]:
    """Gains by activation, as ``choose`` has them for what must come of one that costs a Mul, or nothing.

    Weights that serve several of ``sites``' activations, observed or not, have one set of codes, so they get none.
    """
    homes: dict[int, set[int]] = {}
    for site in sites:
        if isinstance(site, Linear):
            homes.setdefault(id(site.weight), set()).add(id(site.activation))
    found: dict[str, np.ndarray] = {}
    for name, known in statistics.items():
        mine = readers[name]
        if any(len(homes[id(site.weight)]) > 1 for site in mine):
            continue
        free = norm_before(mine) is not None
        gain = choose(known, mine, FREE if free else worthwhile)
        if gain is not None:
            found[name] = gain
    return found
