"""Streamed statistics and the ranges chosen from them."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.quantization.errors import round_activation
from graphopt.quantization.ranges import RangeMethod, choose_range
from graphopt.quantization.statistics import BINS, ChannelStatistics, Histogram


def filled(*batches: np.ndarray) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def test_histogram_grows_with_its_values_and_loses_none() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal(1000) * scale for scale in (0.1, 1.0, 30.0, 0.5)]
    histogram = filled(np.zeros(5), *batches)
    assert histogram.counts.sum() == 4005 and len(histogram.counts) == 2 * BINS
    assert histogram.low == min(b.min() for b in batches) and histogram.bound >= histogram.high
    exact = np.concatenate(batches)
    mean = float(histogram.counts @ histogram.centres) / 4005
    assert abs(mean - exact.sum() / 4005) < histogram.bound / BINS


@pytest.mark.parametrize("method", list(RangeMethod))
def test_zero_has_an_exact_code(method: RangeMethod) -> None:
    for data in (np.linspace(3, 9, 100), np.linspace(-9, -3, 100), np.linspace(-2, 5, 100), np.zeros(4)):
        chosen = choose_range(filled(data), method)
        assert 0 <= chosen.zero <= 255 and chosen.scale > 0
        assert round_activation(np.zeros(1, np.float32), chosen)[0] == 0


def test_mse_gives_up_rare_outliers() -> None:
    data = np.concatenate([np.random.default_rng(1).standard_normal(100_000), [50.0]]).astype(np.float32)
    errors = {}
    for method in RangeMethod:
        chosen = choose_range(filled(data), method)
        errors[method] = float(np.square(round_activation(data, chosen) - data)[:-1].mean())
    assert errors[RangeMethod.MSE] < errors[RangeMethod.MINMAX]
    assert errors[RangeMethod.PERCENTILE] < 0.1 * errors[RangeMethod.MINMAX]


def test_entropy_keeps_a_uniform_range_and_cuts_a_long_tail() -> None:
    rng = np.random.default_rng(4)
    flat = filled(rng.uniform(0, 5, 50_000))
    assert choose_range(flat, RangeMethod.ENTROPY).scale > 0.97 * choose_range(flat, RangeMethod.MINMAX).scale
    tailed = filled(np.concatenate([rng.standard_normal(200_000), rng.uniform(20, 40, 10)]))
    assert choose_range(tailed, RangeMethod.ENTROPY).scale < 0.6 * choose_range(tailed, RangeMethod.MINMAX).scale


def test_mse_is_never_worse_than_minmax_in_total() -> None:
    rng = np.random.default_rng(2)
    for data in (rng.standard_normal(5000), rng.standard_normal(5000) ** 3, rng.uniform(-1, 4, 5000)):
        histogram = filled(data)
        totals = [
            float(np.square(round_activation(data, choose_range(histogram, m)) - data).sum())
            for m in (RangeMethod.MSE, RangeMethod.MINMAX)
        ]
        assert totals[0] <= 1.02 * totals[1]


def test_channel_statistics() -> None:
    x = np.random.default_rng(3).standard_normal((4, 10, 6)).astype(np.float32) + np.arange(6, dtype=np.float32)
    found = ChannelStatistics(6)
    for batch in x:
        found.add(batch)
    rows = x.reshape(-1, 6)
    np.testing.assert_array_equal(found.high, rows.max(axis=0))
    np.testing.assert_array_equal(found.low, np.minimum(rows.min(axis=0), 0))
    np.testing.assert_allclose(found.power, (rows.astype(np.float64) ** 2).mean(axis=0), rtol=1e-6)
