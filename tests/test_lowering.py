"""Convolutions and products as matrix products: rows times weight give what ONNX Runtime computes."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.lowering import POSITIONS, Lowering
from graphopt.runtime.session import Session
from tests.axis_models import text_model

CONVOLUTIONS = {
    "plain": ("W[6,4,3,3]", ""),
    "padded": ("W[6,4,3,3]", "pads = [1, 2, 1, 0]"),
    "strided": ("W[6,4,3,2]", "strides = [2, 3]"),
    "dilated": ("W[6,4,3,3]", "dilations = [2, 1], pads = [2, 1, 2, 1]"),
    "same upper": ("W[6,4,3,4]", 'auto_pad = "SAME_UPPER", strides = [2, 2]'),
    "same lower": ("W[6,4,4,3]", 'auto_pad = "SAME_LOWER", strides = [2, 1]'),
    "pointwise": ("W[6,4,1,1]", ""),
}


def lowered(model: ir.Model) -> Lowering:
    found = Lowering.of(next(iter(model.graph)))
    assert found is not None
    return found


def convolution(case: str) -> ir.Model:
    weights, attributes = CONVOLUTIONS[case]
    label = f" <{attributes}>" if attributes else ""
    return text_model("(float[B,4,13,11] x) => (float[B,6,P,Q] y)", weights, f"y = Conv{label} (x, W)")


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_patches_times_weight_are_the_output(case: str) -> None:
    model = convolution(case)
    lowering = lowered(model)
    x = np.random.default_rng(0).standard_normal((3, 4, 13, 11)).astype(np.float32)
    y = Session(model).run({"x": x})["y"]
    rows, targets = lowering.patches(x, y.shape, 5), lowering.targets(y, 5)
    assert rows.shape == (3, min(POSITIONS, y[0, 0].size), lowering.width) and targets.shape == (*rows.shape[:2], 6)
    np.testing.assert_allclose(rows @ lowering.by_patch(), targets, rtol=1e-4, atol=1e-4)


def test_a_convolution_over_one_axis() -> None:
    body = "y = Conv <strides = [2], pads = [1, 1]> (x, W)"
    model = text_model("(float[B,4,200] x) => (float[B,6,P] y)", "W[6,4,3]", body)
    x = np.random.default_rng(0).standard_normal((2, 4, 200)).astype(np.float32)
    y = Session(model).run({"x": x})["y"]
    lowering = lowered(model)
    assert y.shape[2] > POSITIONS
    rows = lowering.patches(x, y.shape, 0) @ lowering.by_patch()
    np.testing.assert_allclose(rows, lowering.targets(y, 0), rtol=1e-4, atol=1e-4)
    assert not np.array_equal(lowering.targets(y, 0), lowering.targets(y, 1)), "other positions in other batches"


FORMS = {
    "Conv": convolution("plain"),
    "ConvTranspose": text_model("(float[B,4,5,5] x) => (float[B,6,P,Q] y)", "W[4,6,2,2]", "y = ConvTranspose(x, W)"),
    "MatMul": text_model("(float[B,4] x) => (float[B,6] y)", "W[4,6]", "y = MatMul(x, W)"),
    "Gemm": text_model("(float[B,4] x) => (float[B,6] y)", "W[6,4]", "y = Gemm <transB = 1, alpha = 0.5> (x, W)"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_survives_the_way_there_and_back(form: str) -> None:
    lowering = lowered(FORMS[form])
    weight = lowering.weight.const_value
    assert weight is not None and len(lowering.by_channel()) == 4
    np.testing.assert_allclose(lowering.stored(lowering.by_channel()), weight.numpy(), rtol=1e-6)
    np.testing.assert_allclose(lowering.from_patch(lowering.by_patch()), lowering.by_channel(), rtol=1e-6)
    fewer = lowering.stored(lowering.by_channel()[:3])
    assert fewer.shape[lowering.contracted] == 3 and fewer.ndim == weight.numpy().ndim


REFUSED = {
    "grouped": ("(float[B,4,5,5] x) => (float[B,4,5,5] y)", "W[4,1,1,1]", "y = Conv <group = 4> (x, W)"),
    "two activations": ("(float[B,4] x, float[4,4] W) => (float[B,4] y)", "", "y = MatMul(x, W)"),
    "a transposed activation": ("(float[4,B] x) => (float[B,6] y)", "W[4,6]", "y = Gemm <transA = 1> (x, W)"),
    "another op": ("(float[B,4] x) => (float[B,4] y)", "W[4]", "y = Add(x, W)"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_near_miss(case: str) -> None:
    assert Lowering.of(next(iter(text_model(*REFUSED[case]).graph))) is None
