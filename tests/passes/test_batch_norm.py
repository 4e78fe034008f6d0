"""Batch normalisations folded into what stands before them, and those that have to stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, signature
from graphopt.passes.cleanup import Cleanup
from tests.axis_models import distance, feeds, outputs, text_model

NORM = "g[8] b[8] m[8] v[8]"
IMAGE = "(float[B,4,6,5] x) => (float[B,8,P,Q] y)"


def model(signature: str, weights: str, body: str) -> ir.Model:
    made = text_model(signature, f"{weights} {NORM}", body)
    variance = made.graph.initializers["v"]
    assert variance.const_value is not None
    variance.const_value = ir.tensor(np.abs(variance.const_value.numpy()) + 0.5, name="v")
    return made


def cleaned(made: ir.Model) -> ir.Model:
    step, result = Cleanup(), clone_model(made)
    step.apply(GraphEditor(result), step.plan(GraphView(result), None))  # type: ignore[arg-type]
    assert signature(result) == signature(made)
    return result


def kinds(made: ir.Model) -> list[str]:
    return [node.op_type for node in made.graph]


FOLDED = {
    "Conv": (IMAGE, "W[8,4,3,3]", "c = Conv(x, W)"),
    "Conv with bias, stride and epsilon": (IMAGE, "W[8,4,3,3] a[8]", "c = Conv <strides = [2, 1]> (x, W, a)"),
    "grouped Conv": (IMAGE, "W[8,2,1,1]", "c = Conv <group = 2> (x, W)"),
    "ConvTranspose": (IMAGE, "W[4,8,2,2] a[8]", "c = ConvTranspose <strides = [2, 2]> (x, W, a)"),
    "grouped ConvTranspose": (IMAGE, "W[4,4,2,3]", "c = ConvTranspose <group = 2> (x, W)"),
    "Gemm": ("(float[B,4] x) => (float[B,8] y)", "W[8,4] a[8]", "c = Gemm <transB = 1, beta = 0.5> (x, W, a)"),
    "MatMul": ("(float[B,4] x) => (float[B,8] y)", "W[4,8]", "c = MatMul(x, W)"),
}


@pytest.mark.parametrize("case", FOLDED)
def test_folded(case: str) -> None:
    interface, weights, body = FOLDED[case]
    before = model(interface, weights, f"{body}\ny = BatchNormalization <epsilon = 0.01> (c, g, b, m, v)")
    if case == "MatMul":  # only a known rank tells that the columns are the channels
        next(iter(before.graph)).outputs[0].shape = ir.Shape(["B", 8])
    after = cleaned(before)
    assert kinds(after) == (["MatMul", "Add"] if case == "MatMul" else [kinds(before)[0]])
    fed = feeds(before)
    assert distance(outputs(before, fed), outputs(after, fed)) < 1e-6


STAYING = {
    "an activation between": "c = Conv(x, W)\nr = Relu(c)\ny = BatchNormalization(r, g, b, m, v)",
    "a second reader": "c = Conv(x, W)\nn = BatchNormalization(c, g, b, m, v)\ny = Add(n, c)",
    "before the convolution": "n = BatchNormalization(x, g4, b4, m4, v4)\ny = Conv(n, W)",
}


@pytest.mark.parametrize("case", STAYING)
def test_near_miss(case: str) -> None:
    before = model(IMAGE, "W[8,4,1,1] g4[4] b4[4] m4[4] v4[4]", STAYING[case])
    before.graph.initializers["v4"].const_value = ir.tensor(np.full(4, 0.7, np.float32), name="v4")
    after = cleaned(before)
    assert "BatchNormalization" in kinds(after)
    fed = feeds(before)
    assert distance(outputs(before, fed), outputs(after, fed)) < 1e-6


def test_a_shared_weight_is_copied_for_the_one_that_changes() -> None:
    body = "c = Conv(x, W)\nn = BatchNormalization(c, g, b, m, v)\nd = Conv(x, W)\ny = Add(n, d)"
    before = model("(float[B,4,6,5] x) => (float[B,8,4,3] y)", "W[8,4,3,3]", body)
    after = cleaned(before)
    assert sorted(kinds(after)) == ["Add", "Conv", "Conv"] and "W" in after.graph.initializers
    fed = feeds(before)
    assert distance(outputs(before, fed), outputs(after, fed)) < 1e-6
