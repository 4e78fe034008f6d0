from __future__ import annotations

import json

import numpy as np
import pytest

from graphopt.errors import UsageError
from graphopt.runtime.metrics import MAX_SQNR_DB, ComparisonAccumulator, compare_outputs, first_problem

RNG = np.random.default_rng(0)
A = RNG.normal(size=(4, 5, 8)).astype(np.float32)


def test_equal_outputs() -> None:
    found = compare_outputs({"y": A}, {"y": A.copy()})["y"]
    assert (found.max_abs, found.max_rel, found.sqnr_db, found.elements) == (0, 0, MAX_SQNR_DB, A.size)
    assert found.cosine == pytest.approx(1) and found.min_cosine == pytest.approx(1)
    assert found.kl is None and found.match is None and found.problem is None
    json.dumps(found.to_dict())


def test_known_figures() -> None:
    found = compare_outputs({"y": np.array([[3.0, 4.0], [1.0, 0.0]])}, {"y": np.array([[3.0, 4.0], [0.0, 1.0]])})["y"]
    assert found.max_abs == 1 and found.max_rel == 0.25 and found.cosine == 0.5 and found.min_cosine == 0
    assert found.sqnr_db == pytest.approx(10 * np.log10(26 / 2))


def test_batches_add_up() -> None:
    b = A + RNG.normal(scale=0.1, size=A.shape).astype(np.float32)
    together = compare_outputs({"logits": A}, {"logits": b})["logits"]
    accumulator = ComparisonAccumulator()
    for i in range(4):
        accumulator.update({"logits": A[i : i + 1]}, {"logits": b[i : i + 1]})
    apart = accumulator.result()["logits"]
    for name, value in together.to_dict().items():
        assert getattr(apart, name) == (pytest.approx(value) if isinstance(value, float) else value)


def test_logits() -> None:
    b = A.copy()
    b[0, 0] = -b[0, 0]
    found = compare_outputs({"logits": A}, {"logits": b})["logits"]
    assert found.top1 == pytest.approx(19 / 20) and found.kl is not None and found.kl > 0
    p = np.exp(A) / np.exp(A).sum(-1, keepdims=True)
    assert compare_outputs({"y": p}, {"y": p})["y"].top1 == 1  # probabilities are recognised by their values
    assert compare_outputs({"hidden": A}, {"hidden": A})["hidden"].top1 is None
    blocked = A.copy()
    blocked[..., 0] = -np.inf
    same = compare_outputs({"logits": blocked}, {"logits": blocked})["logits"]
    assert same.kl == pytest.approx(0, abs=1e-9) and same.problem is None


def test_values_that_are_not_finite() -> None:
    a, b = A.copy(), A.copy()
    a[0, 0, :3] = b[0, 0, :3] = [np.nan, np.inf, -np.inf]
    assert compare_outputs({"y": a}, {"y": b})["y"].problem is None
    assert compare_outputs({"y": a}, {"y": A})["y"].problem is None  # the candidate is better
    found = compare_outputs({"y": A}, {"y": b})
    assert "NaN in 3 of 160" in (found["y"].problem or "") and "output 'y'" in (first_problem(found) or "")
    b = A.copy()
    b[1, 1, 1] = np.inf
    assert "Inf in 1" in (compare_outputs({"y": A}, {"y": b})["y"].problem or "")
    assert compare_outputs({"y": np.array([[np.inf, 1]])}, {"y": np.array([[-np.inf, 1]])})["y"].problem is not None


@pytest.mark.parametrize("name", ["logits", "y"])
def test_rows_of_zeros_and_odd_ranks(name: str) -> None:
    zero = np.zeros((2, 3), np.float32)
    assert compare_outputs({name: zero}, {name: zero})[name].cosine == 1
    assert compare_outputs({name: zero}, {name: zero + 1})[name].cosine == 0
    for shape in ((), (5,), (5, 1), (0, 4)):
        array = np.ones(shape, np.float32)
        assert compare_outputs({name: array}, {name: array})[name].problem is None


def test_exact_kinds() -> None:
    found = compare_outputs(
        {"i": np.array([1, 2, 3, 4]), "b": np.array([True]), "s": np.array(["a", "b"], object)},
        {"i": np.array([1, 2, 3, 5]), "b": np.array([True]), "s": np.array(["a", "c"], object)},
    )
    assert (found["i"].match, found["b"].match, found["s"].match) == (0.75, 1.0, 0.5)
    assert found["i"].cosine is None


def test_what_cannot_be_compared() -> None:
    assert "shape [4, 5, 8] became [4, 5, 7]" in (compare_outputs({"y": A}, {"y": A[..., :7]})["y"].problem or "")
    assert "type float32 became float64" in (compare_outputs({"y": A}, {"y": A.astype("f8")})["y"].problem or "")
    with pytest.raises(UsageError, match="z"):
        compare_outputs({"y": A}, {"y": A, "z": A})


def test_lists_are_compared_element_by_element() -> None:
    found = compare_outputs({"y": [A, A]}, {"y": [A, A + 1]})  # type: ignore[dict-item]
    assert found["y[0]"].max_abs == 0 and found["y[1]"].max_abs == pytest.approx(1, abs=1e-6)
