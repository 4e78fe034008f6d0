"""Grids of few bits: how far codes can be off, what each way to find scales is best at, and the bytes of a file."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.quantization.gptq import compensated
from graphopt.quantization.grids import Grid, expanded, fit_error, fit_half_quadratic, fit_range, rounded, spread
from graphopt.quantization.packing import offset, packed
from graphopt.quantization.weights import quantize

GRIDS = [Grid(bits, block, symmetric) for bits in (2, 4, 8) for block in (0, 16) for symmetric in (True, False)]
FITS = [fit_range, fit_error, fit_half_quadratic]


def random(rows: int = 40, columns: int = 12, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.standard_t(4, (rows, columns)) * rng.uniform(0.01, 10, (1, columns))).astype(np.float32)


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_codes_reach_the_extremes_and_are_half_a_step_off_at_most(grid: Grid) -> None:
    W = random()
    steps = fit_range(W, grid)
    codes = rounded(W, steps, grid)
    assert codes.min() >= grid.low and codes.max() <= grid.high
    assert steps.scale.shape == (3 if grid.block else 1, 12)
    slack = 0.501 if grid.symmetric else 1.001  # a zero point is rounded as well
    assert (np.abs(expanded(codes, steps, grid) - W) <= slack * spread(steps.scale, grid, len(W))).all()


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_fitted_scales_have_no_larger_error(grid: Grid) -> None:
    W, weight = random(), np.random.default_rng(1).uniform(0.01, 10, 40)

    def error(steps: object, counted: np.ndarray) -> float:
        lost = expanded(rounded(W, steps, grid), steps, grid) - W  # type: ignore[arg-type]
        return float((lost**2 * counted[:, None]).sum())

    plain, ones = fit_range(W, grid), np.ones(40)
    even, fitted = fit_error(W, grid), fit_error(W, grid, weight)
    assert error(even, ones) <= 1.0001 * error(plain, ones)
    assert error(fitted, weight) <= 1.0001 * min(error(plain, weight), error(even, weight))
    assert grid.bits == 8 or error(fitted, weight) < 0.95 * error(plain, weight)


@pytest.mark.parametrize("grid", [g for g in GRIDS if g.bits < 8], ids=str)
def test_the_half_quadratic_solver_lowers_its_norm(grid: Grid) -> None:
    W = random()

    def norm(steps: object) -> float:
        return float((np.abs(expanded(rounded(W, steps, grid), steps, grid) - W) ** 0.7).sum())  # type: ignore[arg-type]

    assert norm(fit_half_quadratic(W, grid)) < 0.995 * norm(fit_range(W, grid))


@pytest.mark.parametrize("fit", FITS)
def test_scales_are_numbers_that_the_stored_type_holds(fit: object) -> None:
    W = random() * 1e-4
    W[:, 3] = 0
    for grid in GRIDS:
        scale = fit(W, grid, None, np.dtype(np.float16)).scale  # type: ignore[operator]
        assert (scale > 0).all() and (scale == scale.astype(np.float16)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    W = random()
    W[1, 1] = bad
    for grid in GRIDS:
        with pytest.raises(ValueError, match="not finite"):
            fit_range(W, grid)


# -- GPTQ -----------------------------------------------------------------------------------------------------------
def inputs(rows: int = 400, width: int = 150, rank: int = 12) -> np.ndarray:
    rng = np.random.default_rng(2)
    return rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, width)) + 0.1 * rng.standard_normal(
        (rows, width)
    )


@pytest.mark.parametrize("grid", [Grid(4, 32), Grid(4, 32, False), Grid(2, 16, False)], ids=str)
def test_gptq_loses_less_of_the_product_and_more_of_the_weight(grid: Grid) -> None:
    x, W = inputs(), random(150, 20)
    second, steps = x.T @ x / len(x), fit_range(W, grid)
    nearest, chosen = rounded(W, steps, grid), compensated(W, second, steps, grid)
    assert chosen.dtype == nearest.dtype and chosen.min() >= grid.low and chosen.max() <= grid.high
    lost = [expanded(codes, steps, grid) - W for codes in (nearest, chosen)]
    assert ((x @ lost[1]) ** 2).sum() < 0.3 * ((x @ lost[0]) ** 2).sum()
    assert (lost[1] ** 2).sum() > (lost[0] ** 2).sum()


def test_gptq_on_independent_inputs_is_rounding_to_nearest() -> None:
    W, grid = random(150, 20), Grid(4, 32)
    steps = fit_range(W, grid)
    energy = np.random.default_rng(3).uniform(0.1, 10, 150)
    np.testing.assert_array_equal(compensated(W, np.diag(energy), steps, grid), rounded(W, steps, grid))


def test_gptq_stands_inputs_that_never_fire() -> None:
    x, W, grid = inputs(), random(150, 20), Grid(4, 32)
    x[:, 10:20] = 0
    found = compensated(W, x.T @ x / len(x), fit_range(W, grid), grid)
    np.testing.assert_array_equal(found[10:20], rounded(W, fit_range(W, grid), grid)[10:20])
    compensated(W, np.zeros((150, 150)), fit_range(W, grid), grid)


# -- codes of matrices ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_both_orientations_have_the_same_codes(grid: Grid) -> None:
    W = random()
    down, across = quantize(W, 1, grid=grid), quantize(np.ascontiguousarray(W.T), 0, grid=grid)
    np.testing.assert_array_equal(down.codes, across.codes.T)
    np.testing.assert_array_equal(down.scale, across.scale)
    np.testing.assert_array_equal(down.dense(), across.dense().T)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_bytes_read_back(bits: int, symmetric: bool) -> None:
    codes = quantize(random(40, 12), 1, grid=Grid(bits, 16, symmetric))
    found = packed(codes)
    assert found.shape == (12, 48 * bits // 8) and found.dtype == np.uint8
    each = 8 // bits
    unpacked = np.stack([(found >> (bits * place)) & ((1 << bits) - 1) for place in range(each)], axis=-1)
    np.testing.assert_array_equal(unpacked.reshape(12, 48)[:, :40], offset(codes).T)
    assert codes.nbytes == 40 * 12 * bits // 8 + 36 * 4 + (0 if symmetric else 36 * bits // 8)
