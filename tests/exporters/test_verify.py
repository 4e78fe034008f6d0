"""Comparison with torch and the sizes it is made at."""

from __future__ import annotations

import numpy as np
import pytest

from graphopt.exporters.inputs import other_sizes
from graphopt.exporters.report import Check
from graphopt.exporters.verify import compare, reason, summary

ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("found", "problem"),
    [
        ([ONES], None),
        ([ONES * (1 + 5e-5)], None),
        ([ONES * (1 + 5e-4)], "differs from torch by 5.0e-04, allowed 1e-04"),
        ([ONES[:1]], "output 0 has shape (2, 3) in torch and (1, 3) in the file"),
        ([ONES, ONES], "torch returns 1 outputs, the file 2"),
        ([np.full((2, 3), np.nan, np.float32)], "output 0 is not finite in the same places"),
    ],
)
def test_compare_floats(found: list[np.ndarray], problem: str | None) -> None:
    assert compare([ONES], found, 1e-4)[1] == problem


def test_compare_is_relative_to_the_scale_of_each_output() -> None:
    large = np.array([1e6, 1.0], np.float32)
    assert compare([large], [large + 10], 1e-4)[1] is None
    small = np.array([1e-9], np.float32)
    assert compare([small], [small * 3], 1e-4)[1] is None


def test_compare_integers_exactly() -> None:
    assert compare([np.array([1, 2, 3])], [np.array([1, 2, 4])], 1e-4)[1] == "output 0 (int64) differs in 1 of 3 values"


def test_compare_accepts_equal_infinities() -> None:
    masked = np.array([0.5, -np.inf, np.nan], np.float32)
    assert compare([masked], [masked.copy()], 1e-4) == (0.0, None)


def test_sizes_to_check_tell_axes_apart() -> None:
    (double, near), (ones,) = other_sizes({"batch": 2, "sequence": 2})
    assert len(set(double.values())) == len(set(near.values())) == 2
    assert ones == {"batch": 1, "sequence": 1}
    assert other_sizes({}) == []


def test_summary_says_where_a_file_was_refused() -> None:
    checks = [Check({"batch": 2}, None, "no kernel", refused=True), Check({"batch": 1}, 1e-7)]
    assert summary(checks) == "not run at batch=2: no kernel; agrees with torch at (batch=1)"
    assert summary(checks[:1]) == "not run: no kernel"


def test_reason_is_one_line_from_the_root() -> None:
    try:
        try:
            raise ValueError("\n\n  the root\nand advice")
        except ValueError as error:
            raise RuntimeError("a long story\nwith a graph") from error
    except RuntimeError as error:
        assert reason(error) == "ValueError: the root"
