"""What calibration inputs say about the activations that int8 sites read; streamed, memory does not grow with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from graphopt.errors import PassError
from graphopt.quantization.sites import Linear
from graphopt.transform import PassContext

BINS = 2048
_WIDEST = 50_000  #: channels observed in one run, all values together
_ROWS = 8  #: samples of one run: all its values are in memory at once
_POSITIONS = 128  #: that many positions of a map count as one channel each; so long is a usual sequence


class ChannelStatistics:
    """Smallest, largest, mean and mean squared value of each channel: of ``x[..., K]``, or of ``x[B, K, ...]``."""

    def __init__(self, width: int, axis: int = -1) -> None:
        self.count, self.axis = 0, axis
        self.low = np.zeros(width, dtype=np.float32)  # zero is always in range: it has to have a code
        self.high = np.zeros(width, dtype=np.float32)
        self._squares = np.zeros(width)
        self._sums = np.zeros(width)

    def add(self, x: np.ndarray) -> None:
        """One batch."""
        rows = np.moveaxis(x, self.axis, -1).reshape(-1, x.shape[self.axis])
        if not len(rows):
            return
        self.count += len(rows)
        np.minimum(self.low, rows.min(axis=0), out=self.low)
        np.maximum(self.high, rows.max(axis=0), out=self.high)
        self._squares += np.einsum("tk,tk->k", rows, rows, dtype=np.float64)
        self._sums += rows.sum(axis=0, dtype=np.float64)

    @property
    def largest(self) -> np.ndarray:
        """Largest magnitude of each channel."""
        return np.maximum(self.high, -self.low)

    @property
    def mean(self) -> np.ndarray:
        """Mean of each channel."""
        return self._sums / max(self.count, 1)

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
            for batch in ctx.observe(model, names, split=split, limit=limit, rows=_ROWS):
                yield from _finite(batch, split)
            names, total = [], 0
        names.append(name)
        total += width
    if names:
        for batch in ctx.observe(model, names, split=split, limit=limit, rows=_ROWS):
            yield from _finite(batch, split)


def _finite(batch: Mapping[str, np.ndarray], split: str) -> Iterator[tuple[str, np.ndarray]]:
    for name, array in batch.items():
        if not np.isfinite(array).all():
            raise PassError(f"{name!r} is not finite on the {split} inputs; give inputs on which the model is")
        yield name, array


def widths_of(readers: Mapping[str, Sequence[Linear]], others: Mapping[str, ir.Value] | None = None) -> dict[str, int]:
    """What ``observe`` wants to know: of the activations that sites read, and of other values by name."""
    values = {name: (sites[0].activation, sites[0].width) for name, sites in readers.items()}
    values = {**{name: (value, 1) for name, value in (others or {}).items()}, **values}
    return {name: max(channels, _elements(value) // _POSITIONS) for name, (value, channels) in values.items()}


def _elements(value: ir.Value) -> int:
    """Elements of one sample, as far as dims are known."""
    dims = value.shape.dims[1:] if value.shape is not None else ()
    return prod(d for d in dims if isinstance(d, int))


def collect_channels(
    model: ir.Model, ctx: PassContext, readers: Mapping[str, Sequence[Linear]]
) -> dict[str, ChannelStatistics]:
    """Channel statistics of each activation, over the calibration split."""
    found: dict[str, ChannelStatistics] = {}
    for name, x in observe(model, ctx, widths_of(readers)):
        axis = readers[name][0].channel_axis
        found.setdefault(name, ChannelStatistics(x.shape[axis], axis)).add(x)
    return found


def collect_histograms(
    model: ir.Model, ctx: PassContext, widths: Mapping[str, int], gains: Mapping[str, np.ndarray]
) -> dict[str, Histogram]:
    """Histograms of each named value times its gain, over the calibration split."""
    found: dict[str, Histogram] = {}
    for name, x in observe(model, ctx, widths):
        found.setdefault(name, Histogram()).add(x * gains[name] if name in gains else x)
    return found
