"""Codes of few bits: the numbers a block of weights may become, and how the scale of each block is found.

Everything here works on ``W[K, N]`` whose columns are cut into blocks of ``block`` weights along K; a block has a scale
and, when asymmetric, a zero point of its own. The last block of a column may be shorter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

FLOAT32 = np.dtype(np.float32)
_SHRINK = np.linspace(0.975, 0.6, 16)  #: shares of the full range that the search tries
_ROUNDS, _NORM, _BETA, _GROWTH = 20, 0.7, 10.0, 1.01  #: the half-quadratic solver's, as published


@dataclass(frozen=True, slots=True)
class Grid:
    """Codes of ``bits`` bits, the weights of a ``block`` sharing one scale (0: whole columns)."""

    bits: int
    block: int = 0
    symmetric: bool = True

    @property
    def low(self) -> int:
        """The smallest code. With 7 bits and more the one without a counterpart is left out: negation is exact then."""
        if not self.symmetric:
            return 0
        return -(1 << (self.bits - 1)) + (self.bits >= 7)

    @property
    def high(self) -> int:
        """The largest code."""
        return (1 << (self.bits - 1 if self.symmetric else self.bits)) - 1

    @property
    def dtype(self) -> type[np.signedinteger | np.unsignedinteger]:
        """What codes are held as in memory, one to an element."""
        if self.bits > 8:
            return np.int16 if self.symmetric else np.uint16
        return np.int8 if self.symmetric else np.uint8

    def blocks(self, K: int) -> int:
        """How many blocks a column of ``K`` weights has."""
        return -(-K // self.block) if self.block else 1


UINT8 = Grid(8, symmetric=False)
UINT16 = Grid(16, symmetric=False)


@dataclass(frozen=True, eq=False, slots=True)
class Steps:
    """What codes are multiples of, block by block."""

    scale: np.ndarray  #: float32 [blocks, N], numbers that the stored type holds exactly
    zero: np.ndarray | None  #: the code of weight 0, [blocks, N]; None: 0

    def of(self, grid: Grid, K: int) -> tuple[np.ndarray, np.ndarray]:
        """Scale and zero point of each weight, [K, N] both."""
        zero = np.zeros_like(self.scale) if self.zero is None else self.zero.astype(np.float32)
        return spread(self.scale, grid, K), spread(zero, grid, K)


def spread(values: np.ndarray, grid: Grid, K: int) -> np.ndarray:
    """``[blocks, N]`` as ``[K, N]``."""
    return np.asarray(np.repeat(values, grid.block or K, axis=0)[:K])


def rounded(W: np.ndarray, steps: Steps, grid: Grid) -> np.ndarray:
    """The nearest codes of ``W[K, N]``."""
    scale, zero = steps.of(grid, len(W))
    return np.asarray(np.clip(np.rint(W / scale + zero), grid.low, grid.high).astype(grid.dtype))


def expanded(codes: np.ndarray, steps: Steps, grid: Grid) -> np.ndarray:
    """The weights that codes stand for, float32 [K, N]."""
    scale, zero = steps.of(grid, len(codes))
    return np.asarray((codes - zero) * scale, dtype=np.float32)


Fit = Callable[[np.ndarray, Grid, np.ndarray | None, np.dtype], Steps]


def fit_range(W: np.ndarray, grid: Grid, weight: np.ndarray | None = None, stored: np.dtype = FLOAT32) -> Steps:
    """Scales that just reach the extremes of each block of ``W[K, N]``; ``weight`` is not read."""
    del weight
    low, high = _extremes(W, grid)
    return _reaching(low, high, grid, stored)


def fit_error(W: np.ndarray, grid: Grid, weight: np.ndarray | None = None, stored: np.dtype = FLOAT32) -> Steps:
    """Scales with the least squared error, each weight's counted by ``weight[K]`` (its input's mean square).

    Outliers are clipped where the finer step is worth more to the rest of their block.
    """
    counted = 1.0 if weight is None else weight.astype(np.float32)[:, None]
    low, high = _extremes(W, grid)
    steps = _reaching(low, high, grid, stored)

    def squared(lost: np.ndarray) -> np.ndarray:
        return np.asarray(lost * lost * counted)

    best = _Best(steps, _errors(W, steps, grid, squared))
    for share in _SHRINK:
        steps = _reaching(low * share, high * share, grid, stored)
        best.offer(steps, _errors(W, steps, grid, squared))
    return best.steps


def fit_half_quadratic(
    W: np.ndarray, grid: Grid, weight: np.ndarray | None = None, stored: np.dtype = FLOAT32
) -> Steps:
    """Scales and zero points that disturb most weights little and a few as much as they like (an l_0.7 norm).

    Half-quadratic splitting (Badri and Shaji, 2023, "HQQ"): the error of a few weights is set aside by a shrinkage, the
    rest is least squares in closed form. There the zero point is a real number and all that is solved for; files hold
    integers, so here the scale is solved for as well. ``weight`` is not read.
    """
    del weight
    steps = fit_range(W, grid, None, stored)
    best, beta = _Best(steps, _errors(W, steps, grid, _sparing)), _BETA
    for _ in range(_ROUNDS):
        codes = rounded(W, steps, grid).astype(np.float32)
        aside = _shrunk(W - expanded(codes, steps, grid), beta)
        steps = _least_squares(W - aside, codes, steps, grid, stored)
        best.offer(steps, _errors(W, steps, grid, _sparing))
        beta *= _GROWTH
    return best.steps


Measure = Callable[[np.ndarray], np.ndarray]  #: what the errors of single weights count, [K, N] both


class _Best:
    """The best steps so far, block by block."""

    def __init__(self, steps: Steps, errors: np.ndarray) -> None:
        self.steps, self.errors = steps, errors

    def offer(self, steps: Steps, errors: np.ndarray) -> None:
        """Take the blocks over that these steps have smaller errors in."""
        better, mine = errors < self.errors, self.steps
        zero = None if mine.zero is None or steps.zero is None else np.where(better, steps.zero, mine.zero)
        self.steps = Steps(np.where(better, steps.scale, mine.scale), zero)
        self.errors = np.where(better, errors, self.errors)


def _errors(W: np.ndarray, steps: Steps, grid: Grid, measure: Measure) -> np.ndarray:
    """The error of each block, [blocks, N]."""
    return _sums(measure(expanded(rounded(W, steps, grid), steps, grid) - W), grid)


def _sparing(lost: np.ndarray) -> np.ndarray:
    return np.asarray(np.power(np.abs(lost), _NORM))


def _least_squares(target: np.ndarray, codes: np.ndarray, steps: Steps, grid: Grid, stored: np.dtype) -> Steps:
    """``argmin |(codes - zero) * scale - target|`` block by block, the zero point an integer."""
    zero = steps.zero
    if zero is not None:
        spent = spread(steps.scale, grid, len(codes))
        counts = _sums(np.ones_like(target), grid)
        zero = np.clip(np.rint(_sums(codes - target / spent, grid) / counts), grid.low, grid.high)
        codes = codes - spread(zero.astype(np.float32), grid, len(codes))
    across, along = _sums(codes * target, grid), _sums(codes * codes, grid)
    scale = np.where((along > 0) & (across > 0), across / np.maximum(along, 1e-30), steps.scale)
    return Steps(_held(scale, stored), zero if zero is None else zero.astype(grid.dtype))


def _shrunk(error: np.ndarray, beta: float) -> np.ndarray:
    """The generalised soft threshold: what of each error is set aside."""
    size = np.abs(error)
    kept = np.maximum(size - np.power(np.maximum(size, 1e-12), _NORM - 1) / beta, 0)
    return np.asarray(np.sign(error) * kept)


def _padded(W: np.ndarray, grid: Grid, *, mode: str) -> np.ndarray:
    """``[blocks, block, N]``; the last block is filled up."""
    block = grid.block or len(W)
    short = -len(W) % block
    if short:
        W = np.pad(W, ((0, short), (0, 0)), mode=mode)  # type: ignore[call-overload]
    return W.reshape(-1, block, W.shape[1])


def _sums(values: np.ndarray, grid: Grid) -> np.ndarray:
    return np.asarray(_padded(values, grid, mode="constant").sum(axis=1))


def _extremes(W: np.ndarray, grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """The least and the largest weight of each block, [blocks, N]; zero is always between them.

    Raises ValueError for weights that are not finite: no scale can represent them.
    """
    blocks = _padded(W, grid, mode="edge")
    low, high = np.minimum(blocks.min(axis=1), 0), np.maximum(blocks.max(axis=1), 0)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise ValueError("the weight holds numbers that are not finite")
    return low, high


def _reaching(low: np.ndarray, high: np.ndarray, grid: Grid, stored: np.dtype) -> Steps:
    """The steps with which the codes reach from ``low`` to ``high``."""
    if grid.symmetric:
        scale = np.maximum(low / grid.low, high / grid.high)
        return Steps(_held(np.where(scale > 0, scale, 1.0), stored), None)
    scale = (high - low) / grid.high
    scale = _held(np.where(scale > 0, scale, 1.0), stored)
    return Steps(scale, np.clip(np.rint(-low / scale), grid.low, grid.high).astype(grid.dtype))


def _held(scale: np.ndarray, stored: np.dtype) -> np.ndarray:
    """What the stored type makes of scales, never zero."""
    return np.asarray(np.maximum(scale, np.finfo(stored).tiny).astype(stored), dtype=np.float32)
