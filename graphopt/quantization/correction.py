"""What int8 shifts a site's output by on average, to be taken off its bias.

Rounded weights err in the same direction for every input, and activations beyond their range are cut on one side; times
activations whose mean is not zero that is a constant per output channel, and the bias can take it for nothing (Nagel et
al. 2019, "Data-free quantization through weight equalization and bias correction"; means are measured here).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.quantization.choices import Choices, correctable
from graphopt.quantization.errors import coded_activation, product, site_rows
from graphopt.quantization.sites import Linear
from graphopt.quantization.statistics import observe, widths_of
from graphopt.quantization.weights import site_matrix
from graphopt.transform import PassContext

_SAMPLES = 512  #: inputs averaged over


def mean_shifts(
    model: ir.Model, ctx: PassContext, readers: Mapping[str, Sequence[Linear]], choices: Choices
) -> dict[str, np.ndarray]:
    """By site name: mean of the int8 product less the float one, float32 [N], over calibration inputs; streamed."""
    wanted = {
        name: [s for s in sites if correctable(s, choices)] for name, sites in readers.items() if name in choices.ranges
    }
    wanted = {name: sites for name, sites in wanted.items() if sites}
    means = {site.name: _Means() for sites in wanted.values() for site in sites}
    for batch, (name, x) in enumerate(observe(model, ctx, widths_of(wanted), limit=_SAMPLES)):
        coded = coded_activation(x, name, choices)
        for site in wanted[name]:
            means[site.name].add(site_rows(site, x, batch), site_rows(site, coded, batch))
    found = {}
    for sites in wanted.values():
        for site in sites:
            exact, coded = means[site.name].result()
            dense = choices.codes[site.name].dense()
            shift = product(coded, dense.T if site.transposed else dense) - product(exact, site_matrix(site))
            found[site.name] = shift[0].astype(np.float32)
    return found


class _Means:
    """Of the rows ``[R, groups, K]`` that a site multiplies, exact and coded."""

    def __init__(self) -> None:
        self.count, self.sums = 0, [np.zeros(()), np.zeros(())]

    def add(self, exact: np.ndarray, coded: np.ndarray) -> None:
        self.count += len(exact)
        pairs = zip(self.sums, (exact, coded), strict=True)
        self.sums = [total + rows.sum(axis=0, dtype=np.float64) for total, rows in pairs]

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        exact, coded = (total[None] / max(self.count, 1) for total in self.sums)
        return exact, coded
