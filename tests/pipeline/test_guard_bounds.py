import ml_dtypes
import numpy as np
import pytest

from graphopt.pipeline.bounds import TightCheck


def check(expected, found):
    result = TightCheck()
    result.add({"y": np.asarray(expected)}, {"y": np.asarray(found)}, "a probe")
    return result


def test_error_is_relative_to_the_outputs_scale():
    assert check(np.float32([100.0, 0.001]), np.float32([100.0, 0.002])).worst == pytest.approx(1e-5)


def test_the_same_error_counts_in_a_small_output():
    assert check(np.float32([0.001]), np.float32([0.002])).worst > 1e-2


def test_mask_values_are_no_part_of_the_scale():
    expected = np.float32([1.0, -3.4e38])
    assert check(expected, np.float32([1.1, -3.4e38])).worst == pytest.approx(0.1, rel=1e-3)


def test_nan_in_the_same_places_is_equal():
    assert check(np.float32([np.nan, 1, np.inf]), np.float32([np.nan, 1, np.inf])).fault == ""
    assert "NaN" in check(np.float32([0.0, 1]), np.float32([np.nan, 1])).fault
    assert check(np.float32([np.inf]), np.float32([-np.inf])).fault


def test_integers_must_be_equal():
    assert check(np.int64([1, 2]), np.int64([1, 2])).fault == ""
    assert "1 of 2 elements" in check(np.int64([1, 2]), np.int64([1, 3])).fault


def test_shape_and_type_must_be_equal():
    assert "instead of" in check(np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)).fault
    assert "instead of" in check(np.zeros(2, np.float32), np.zeros(2, np.float64)).fault


def test_half_precision_is_noticed():
    assert check(np.ones(2, np.float16), np.ones(2, np.float16)).half
    assert check(np.ones(2, ml_dtypes.bfloat16), np.ones(2, ml_dtypes.bfloat16)).half


def test_empty_outputs_pass():
    assert check(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)).worst == 0


def test_sequence_outputs_are_compared_element_by_element():
    result = TightCheck()
    result.add({"s": [np.ones(2), np.ones(3)]}, {"s": [np.ones(2), np.zeros(3)]}, "a probe")
    assert result.worst == 1.0
    assert "s[1]" in result.where
