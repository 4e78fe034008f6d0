"""Codes of matrices."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.quantization import weights
from graphopt.quantization.weights import quantize


def random(rows: int, columns: int) -> np.ndarray:
    rng = np.random.default_rng(rows)
    return (rng.standard_normal((rows, columns)) * rng.uniform(0.01, 10, (1, columns))).astype(np.float32)


@pytest.mark.parametrize("axis", [0, 1])
def test_error_is_at_most_half_a_step(axis: int) -> None:
    W = random(50, 30)
    found = quantize(W, axis)
    assert found.codes.dtype == np.int8 and found.codes.min() >= -127
    step = np.expand_dims(found.scale, 1 - axis)
    assert (np.abs(found.dense() - W) <= 0.501 * step).all()
    np.testing.assert_array_equal(np.abs(found.codes).max(axis=1 - axis), 127)


@pytest.mark.parametrize("axis", [0, 1])
def test_blocks_change_nothing(axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    W = random(50, 30)
    whole = quantize(W, axis)
    monkeypatch.setattr(weights, "_PIECE", 90)
    pieces = quantize(W, axis)
    np.testing.assert_array_equal(whole.codes, pieces.codes)
    np.testing.assert_array_equal(whole.scale, pieces.scale)


def test_zeros_and_one_scale() -> None:
    W = random(8, 6)
    W[:, 2] = 0
    assert quantize(W, 1).dense()[:, 2].max() == 0
    assert quantize(W, 1, per_channel=False).scale.shape == (1,)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    W = random(8, 6)
    W[1, 1] = bad
    with pytest.raises(ValueError, match="not finite"):
        quantize(W, 1)
