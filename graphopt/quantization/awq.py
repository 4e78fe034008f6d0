"""Gains that make room for the weights of loud inputs: the scale search of AWQ.

Lin et al., 2023 (arXiv:2306.00978): ``x W = (x / s)(s W)`` with ``s = magnitude^alpha`` gives the weights that meet
loud inputs a finer grid, at the others' expense; ``alpha`` is the one with the least error. The magnitude of a channel
is its root mean square here, because the same second moments also measure the error exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphopt.quantization.balance import held_gain
from graphopt.quantization.grids import Grid, expanded, fit_error, rounded
from graphopt.quantization.sites import Linear
from graphopt.quantization.weights import site_matrix

_ALPHAS = np.linspace(0.1, 1.0, 10)
WORTH_A_MUL = 0.7  #: where no norm takes the gain, it is taken when the error falls to this share


def awq_gain(second: np.ndarray, readers: Sequence[Linear], worthwhile: float, grid: Grid) -> np.ndarray | None:
    """The gain ``1 / s`` of each channel, float32 [K]; None unless the error falls to ``worthwhile`` of what it was."""
    magnitude = np.sqrt(np.maximum(np.diag(second), 1e-12))
    weights = [site_matrix(site) for site in readers]

    def error(gain: np.ndarray) -> float:
        return sum(_error(W, gain, second, grid) for W in weights)

    plain = error(np.ones(len(second), dtype=np.float32))
    gains = []
    for alpha in _ALPHAS:
        s = magnitude**alpha
        gains.append(held_gain(np.sqrt(s.max() * s.min()) / s))
    errors = [error(gain) for gain in gains]
    best = int(np.argmin(errors))
    return gains[best] if errors[best] <= worthwhile * plain else None


def _error(W: np.ndarray, gain: np.ndarray, second: np.ndarray, grid: Grid) -> float:
    """Mean squared error of the product: ``tr(D^T E[x x^T] D)`` for what rounding does to the weight, ``D``."""
    scaled = W / gain[:, None]
    steps = fit_error(scaled, grid, np.diag(second) * gain**2)
    lost = (expanded(rounded(scaled, steps, grid), steps, grid) - scaled) * gain[:, None]
    return float(np.einsum("kn,kn->", lost, second @ lost))
