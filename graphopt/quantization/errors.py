"""How much of each site's output quantization disturbs, measured on inputs that were not used to choose anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.quantization.balance import site_matrix
from graphopt.quantization.sites import Linear
from graphopt.quantization.statistics import observe
from graphopt.quantization.weights import Codes
from graphopt.quantization.writer import Choices, StaticRange
from graphopt.transform import PassContext

_ROWS = 128  #: rows kept of each activation
_ROWS_PER_BATCH = 8
_SAMPLES = 128  #: inputs looked at


def round_activation(x: np.ndarray, chosen: StaticRange | None) -> np.ndarray:
    """``x`` as its 256 codes represent it; without a range, with the one that ``x`` itself spans."""
    if chosen is None:
        low, high = min(float(x.min(initial=0)), 0.0), max(float(x.max(initial=0)), 0.0)
        scale = (high - low) / 255.0
        if scale == 0:
            return x
        chosen = StaticRange(scale, int(np.clip(np.rint(-low / scale), 0, 255)))
    codes = np.clip(np.rint(x / np.float32(chosen.scale)) + chosen.zero, 0, 255)
    return np.asarray((codes - chosen.zero) * np.float32(chosen.scale), dtype=np.float32)


def sample_rows(
    model: ir.Model, ctx: PassContext, widths: Mapping[str, int], coded: Callable[[str, np.ndarray], np.ndarray]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Some rows ``[T, K]`` of each activation on the selection split, as they are and as ``coded(name, x)`` has them.

    An activation that is never computed is left out.
    """
    exact: dict[str, list[np.ndarray]] = {name: [] for name in widths}
    rounded: dict[str, list[np.ndarray]] = {name: [] for name in widths}
    for name, x in observe(model, ctx, widths, split="selection", limit=_SAMPLES):
        if sum(map(len, exact[name])) >= _ROWS:
            continue
        rows = coded(name, x).reshape(-1, x.shape[-1])
        chosen = np.linspace(0, len(rows) - 1, min(_ROWS_PER_BATCH, len(rows))).astype(int)
        exact[name].append(x.reshape(rows.shape)[chosen].astype(np.float32))
        rounded[name].append(rows[chosen].astype(np.float32))
    return {name: (np.concatenate(exact[name]), np.concatenate(rounded[name])) for name in widths if exact[name]}


def site_error(site: Linear, codes: Codes, exact: np.ndarray, coded: np.ndarray) -> float:
    """Squared error of the quantized product over the variance of the float one, on rows of the activation."""
    dense = codes.dense()
    y = exact @ site_matrix(site)
    lost = float(((coded @ (dense.T if site.transposed else dense) - y) ** 2).sum())
    energy = float(((y - y.mean(axis=0)) ** 2).sum()) if len(y) > 1 else float((y**2).sum())
    return lost / energy if energy > 0 else 0.0


def measure_errors(
    model: ir.Model, ctx: PassContext, readers: Mapping[str, Sequence[Linear]], choices: Choices
) -> dict[str, float]:
    """By site name: squared error of the int8 product over the variance of the float one, on the selection split."""

    def coded(name: str, x: np.ndarray) -> np.ndarray:
        gain = choices.gains.get(name)
        return round_activation(x if gain is None else x * gain, choices.ranges.get(name))

    rows = sample_rows(model, ctx, {name: sites[0].width for name, sites in readers.items()}, coded)
    return {s.name: site_error(s, choices.codes[s.name], *rows[name]) for name in rows for s in readers[name]}
