"""How much of each site's output quantization disturbs, measured on inputs that were not used to choose anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.lowering import Lowering
from graphopt.quantization.choices import Choices, StaticRange
from graphopt.quantization.sites import Linear
from graphopt.quantization.statistics import observe, widths_of
from graphopt.quantization.weights import Codes, site_matrix
from graphopt.transform import PassContext

_ROWS = 128  #: rows kept of each activation
_ROWS_PER_BATCH = 8
_SAMPLES = 128  #: inputs looked at


def round_activation(x: np.ndarray, chosen: StaticRange | None) -> np.ndarray:
    """``x`` as its codes represent it; without a range, with the one that ``x`` itself spans, as uint8.

    What is out of range saturates at the ends of the type, as QuantizeLinear has it, not of the grid.
    """
    if chosen is None:
        low, high = min(float(x.min(initial=0)), 0.0), max(float(x.max(initial=0)), 0.0)
        scale = (high - low) / 255.0
        if scale == 0:
            return x
        chosen = StaticRange(scale, int(np.clip(np.rint(-low / scale), 0, 255)))
    ends = np.iinfo(chosen.grid.dtype)
    codes = np.clip(np.rint(x / np.float32(chosen.scale)) + chosen.zero, ends.min, ends.max)
    return np.asarray((codes - chosen.zero) * np.float32(chosen.scale), dtype=np.float32)


def coded_activation(x: np.ndarray, name: str, choices: Choices) -> np.ndarray:
    """What the codes of the activation called ``name`` stand for, its gains included."""
    gain = choices.gains.get(name)
    return round_activation(x if gain is None else x * gain, choices.ranges.get(name))


def measure_errors(
    model: ir.Model, ctx: PassContext, readers: Mapping[str, Sequence[Linear]], choices: Choices
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """By site name: squared error of the int8 product over the variance of the float one, on the selection split.

    Also those of ``choices.shifts`` that lower the error when they are taken off; the others are taken off in no site.
    """
    samples = sample_sites(model, ctx, readers, lambda name, x: coded_activation(x, name, choices))
    errors: dict[str, float] = {}
    kept: dict[str, np.ndarray] = {}
    for name, sample in samples.items():
        errors[name], shift = sample.error(choices.codes[name], choices.shifts.get(name))
        if shift is not None:
            kept[name] = shift
    return errors, kept


def sample_sites(
    model: ir.Model,
    ctx: PassContext,
    readers: Mapping[str, Sequence[Linear]],
    coded: Callable[[str, np.ndarray], np.ndarray],
) -> dict[str, Sample]:
    """By site name: some of what it multiplies on the selection split, as it is and as ``coded(name, x)`` has it.

    A site that never runs is left out.
    """
    samples = {site.name: Sample(site) for sites in readers.values() for site in sites}
    for batch, (name, x) in enumerate(observe(model, ctx, widths_of(readers), split="selection", limit=_SAMPLES)):
        wanted = [s for s in (samples[site.name] for site in readers[name]) if s.count < _ROWS]
        if not wanted:
            continue
        rounded = coded(name, x)
        for sample in wanted:
            sample.add(x, rounded, batch)
    return {name: sample for name, sample in samples.items() if sample.count}


class Sample:
    """Rows ``[R, groups, K]`` that one site multiplies: as they are, and as codes represent them."""

    def __init__(self, site: Linear) -> None:
        self.site, self.count = site, 0
        self._exact: list[np.ndarray] = []
        self._coded: list[np.ndarray] = []

    def add(self, x: np.ndarray, coded: np.ndarray, batch: int) -> None:
        """Some rows of one batch."""
        exact, coded = site_rows(self.site, x, batch), site_rows(self.site, coded, batch)
        chosen = np.linspace(0, len(exact) - 1, min(_ROWS_PER_BATCH, len(exact))).astype(int)
        self._exact.append(exact[chosen].astype(np.float32))
        self._coded.append(coded[chosen].astype(np.float32))
        self.count += len(chosen)

    def error(self, codes: Codes, shift: np.ndarray | None = None) -> tuple[float, np.ndarray | None]:
        """The smaller error, with ``shift`` taken off or not, and the shift if it is with it."""
        exact, coded = np.concatenate(self._exact), np.concatenate(self._coded)
        dense = codes.dense()
        y = product(exact, site_matrix(self.site))
        difference = product(coded, dense.T if self.site.transposed else dense) - y
        lost = float((difference**2).sum())
        if shift is not None:
            corrected = float(((difference - shift) ** 2).sum())
            lost, shift = (corrected, shift) if corrected < lost else (lost, None)
        energy = float(((y - y.mean(axis=0)) ** 2).sum()) if len(y) > 1 else float((y**2).sum())
        return lost / energy if energy > 0 else 0.0, shift


def site_rows(site: Linear, x: np.ndarray, batch: int) -> np.ndarray:
    """Rows ``[R, groups, K]`` that a site multiplies; of a convolution those of some output positions."""
    if site.convolves:
        lowering = Lowering(site.node, site.weight, 1, 1)
        x = lowering.patches(x, (len(x), 0, *lowering.output_sizes(x.shape[2:])), batch)
    return x.reshape(-1, site.groups, x.shape[-1] // site.groups)


def product(rows: np.ndarray, W: np.ndarray) -> np.ndarray:
    """``[R, groups, K] @ [K, groups * n]``, group by group, as ``[R, groups * n]``."""
    groups = rows.shape[1]
    by_group = W.reshape(W.shape[0], groups, -1).transpose(1, 0, 2)
    product: np.ndarray = np.matmul(rows.transpose(1, 0, 2), by_group)
    return product.transpose(1, 0, 2).reshape(len(rows), -1)
