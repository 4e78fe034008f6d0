"""What calibration inputs say about the activations that int8 sites read; streamed, memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx_ir as ir

from graphopt.errors import PassError
from graphopt.transform import PassContext

BINS = 2048
_WIDEST = 50_000  #: channels observed in one run, all values together


class ChannelStatistics:
    """Smallest, largest and mean squared value of each channel (the last axis) of one activation ``x[..., K]``."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.low = np.zeros(width, dtype=np.float32)  # zero is always in range: it has to have a code
        self.high = np.zeros(width, dtype=np.float32)
        self._squares = np.zeros(width)

    def add(self, x: np.ndarray) -> None:
        """Rows ``[..., K]``."""
        rows = x.reshape(-1, x.shape[-1])
        if not len(rows):
            return
        self.count += len(rows)
        np.minimum(self.low, rows.min(axis=0), out=self.low)
        np.maximum(self.high, rows.max(axis=0), out=self.high)
        self._squares += np.einsum("tk,tk->k", rows, rows, dtype=np.float64)

    @property
    def largest(self) -> np.ndarray:
        """Largest magnitude of each channel."""
        return np.maximum(self.high, -self.low)

    @property
    def power(self) -> np.ndarray:
        """Mean square of each channel."""
        return self._squares / max(self.count, 1)


class Histogram:
    """Counts over a range that doubles whenever a value falls outside; zero always lies on an edge."""

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS, dtype=np.int64)
        self.bound = 0.0
        self.low = self.high = 0.0

    def add(self, x: np.ndarray) -> None:
        """All elements of ``x``."""
        if not x.size:
            return
        low, high = float(x.min()), float(x.max())
        self.low, self.high = min(self.low, low), max(self.high, high)
        reach = max(-self.low, self.high)
        if reach == 0:
            self.counts[BINS] += x.size
            return
        if self.bound == 0:
            self.bound = reach
        while self.bound < reach:
            halved = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([np.zeros(BINS // 2, np.int64), halved, np.zeros(BINS // 2, np.int64)])
            self.bound *= 2
        self.counts += np.histogram(x, bins=2 * BINS, range=(-self.bound, self.bound))[0]

    @property
    def centres(self) -> np.ndarray:
        """The middle of each bin."""
        return (np.arange(2 * BINS) + 0.5) * (self.bound / BINS) - self.bound


def observe(
    model: ir.Model,
    ctx: PassContext,
    widths: Mapping[str, int],
    *,
    split: str = "calibration",
    limit: int | None = None,
) -> Iterator[tuple[str, np.ndarray]]:
    """Named values of the main graph, batch by batch; in several runs over the split when they are wide altogether.

    Raises PassError for a value that is not finite.
    """
    names: list[str] = []
    total = 0
    for name, width in widths.items():
        if names and total + width > _WIDEST:
            for batch in ctx.observe(model, names, split=split, limit=limit):
                yield from _finite(batch, split)
            names, total = [], 0
        names.append(name)
        total += width
    if names:
        for batch in ctx.observe(model, names, split=split, limit=limit):
            yield from _finite(batch, split)


def _finite(batch: Mapping[str, np.ndarray], split: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in batch.items():
        if not np.isfinite(array).all():
            raise PassError(f"{name!r} is not finite on the {split} inputs; give inputs on which the model is")
        yield name, array


def collect_channels(model: ir.Model, ctx: PassContext, widths: Mapping[str, int]) -> dict[str, ChannelStatistics]:
    """Channel statistics of each named value, over the calibration split."""
    found: dict[str, ChannelStatistics] = {}
    for name, x in observe(model, ctx, widths):
        found.setdefault(name, ChannelStatistics(x.shape[-1])).add(x)
    return found


def collect_histograms(
    model: ir.Model, ctx: PassContext, widths: Mapping[str, int], gains: Mapping[str, np.ndarray]
) -> dict[str, Histogram]:
    """Histograms of each named value times its gain, over the calibration split."""
    found: dict[str, Histogram] = {}
    for name, x in observe(model, ctx, widths):
        found.setdefault(name, Histogram()).add(x * gains[name] if name in gains else x)
    return found
