"""graphopt passes inside onnx_ir pipelines, and the other way round."""

from __future__ import annotations

import onnx_ir as ir
import onnx_ir.passes.common as common
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import PassError
from graphopt.interop import NoMeasurements, from_ir_pass, to_ir_pass
from graphopt.passes.cleanup import Cleanup

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N] x) => (float[N] y) { a = Neg(x)  b = Identity(a)  y = Abs(b)  dead = Exp(x) }"""


def ops(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def test_an_onnx_ir_pass_plans_and_applies() -> None:
    model = ir.from_onnx_text(TEXT)
    step = from_ir_pass(common.RemoveUnusedNodesPass, name="remove-unused")()
    plan = step.plan(GraphView(model), NoMeasurements(model))
    assert ops(model) == ["Neg", "Identity", "Abs", "Exp"], "a plan edits nothing"
    assert [(c.before, c.after) for c in plan.changes] == [("4 nodes", "3 nodes")]
    step.apply(GraphEditor(model), plan)
    assert ops(model) == ["Neg", "Identity", "Abs"]
    again = step.plan(GraphView(model), NoMeasurements(model))
    assert again.empty and "nothing to change" in again.notes[0]


def test_a_graphopt_pass_runs_in_an_onnx_ir_sequence() -> None:
    model = ir.from_onnx_text(TEXT)
    result = ir.passes.Sequential(to_ir_pass(Cleanup()), common.CheckerPass())(model)
    assert result.modified and ops(result.model) == ["Neg", "Abs"]
    assert not to_ir_pass(Cleanup())(result.model).modified


def test_measuring_without_inputs_is_refused() -> None:
    model = ir.from_onnx_text(TEXT)
    context = NoMeasurements(model)
    with pytest.raises(PassError, match="no inputs"):
        context.divergence(model)
    with pytest.raises(PassError, match="no inputs"):
        context.latency({"a": model})
    with pytest.raises(PassError, match="no inputs"):
        context.node_seconds(model)
