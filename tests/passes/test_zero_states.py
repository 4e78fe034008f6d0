"""Initial states that are zero are dropped; those that may not be stay."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, signature
from graphopt.passes.cleanup import Cleanup
from tests.axis_models import distance, feeds, outputs, set_tensor, text_model

INTERFACE = "(float[S,2,3] x) => (float[S,1,2,4] y)"
LSTM = "W[1,16,3] R[1,16,4] h[1,2,4] c[1,2,4] p[1,12]"


def cleaned(model: ir.Model) -> ir.Model:
    step, result = Cleanup(), clone_model(model)
    step.apply(GraphEditor(result), step.plan(GraphView(result), None))  # type: ignore[arg-type]
    assert signature(result) == signature(model)
    fed = feeds(model) if model.graph.inputs[0].name == "x" else []
    fed = [{**feed, "x": np.resize(feed["x"], (len(feed["x"]), 2, 3))} for feed in fed]
    assert distance(outputs(model, fed), outputs(result, fed)) < 1e-6
    return result


def states(model: ir.Model) -> list[str | None]:
    node = next(n for n in model.graph if n.op_type in ("LSTM", "GRU", "RNN"))
    return [value.name if value is not None else None for value in node.inputs[5:7]]


def zeroed(model: ir.Model, *names: str) -> ir.Model:
    for name in names:
        tensor = model.graph.initializers[name].const_value
        assert tensor is not None
        set_tensor(model, name, np.zeros_like(tensor.numpy()))
    return model


def test_zero_constants_go() -> None:
    body = "y, last, cell = LSTM <hidden_size = 4> (x, W, R, , , h, c)"
    assert states(cleaned(zeroed(text_model(INTERFACE, LSTM, body), "h", "c"))) in ([None, None], [])


def test_a_zero_that_is_cut_from_a_larger_one_goes() -> None:
    body = """z = ConstantOfShape(n)
        s = Slice(z, b, e, a)
        y, last, cell = LSTM <hidden_size = 4> (x, W, R, , , s, s)"""
    model = text_model(INTERFACE, LSTM, body, ints="n = 3 2 4; b = 1; e = 2; a = 0")
    assert states(cleaned(model)) in ([None, None], [])


@pytest.mark.parametrize("op", ["GRU", "RNN"])
def test_other_layers(op: str) -> None:
    gates = {"GRU": 12, "RNN": 4}[op]
    body = f"y, last = {op} <hidden_size = 4> (x, W, R, , , h)"
    model = text_model(INTERFACE, f"W[1,{gates},3] R[1,{gates},4] h[1,2,4]", body)
    assert states(cleaned(model)) == ["h"]
    assert states(cleaned(zeroed(model, "h"))) in ([None], [])


def test_one_of_two_and_the_peepholes_behind_them_stay() -> None:
    body = "y, last, cell = LSTM <hidden_size = 4> (x, W, R, , , h, c, p)"
    after = cleaned(zeroed(text_model(INTERFACE, LSTM, body), "h"))
    assert states(after) == [None, "c"]
    node = next(iter(after.graph))
    assert node.inputs[7] is not None and node.inputs[7].name == "p"


def test_a_state_that_is_fed_stays() -> None:
    interface = "(float[S,2,3] x, float[1,2,4] h) => (float[S,1,2,4] y)"
    body = "y, last, cell = LSTM <hidden_size = 4> (x, W, R, , , h)"
    assert states(cleaned(text_model(interface, "W[1,16,3] R[1,16,4]", body)))[0] == "h"
