"""Properties of every exact pass: equal outputs on random graphs at several shapes, whatever things are called."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.interop import NoMeasurements
from graphopt.model import clone_model, make_names_unique, signature
from graphopt.passes.cleanup import Cleanup
from graphopt.passes.fuse import Fuse
from graphopt.runtime import Session
from tests.axis_graphs import models
from tests.conformance.running import difference

SHAPES = ((1, 1), (2, 5), (3, 4))


def exactly(model: ir.Model) -> ir.Model:
    """The model through ``cleanup``, then ``fuse``, its interface unchanged."""
    for step in (Cleanup(), Fuse()):
        result = clone_model(model)
        plan = step.plan(GraphView(model), NoMeasurements(model))
        step.apply(GraphEditor(result), plan)
        assert signature(result) == signature(model)
        model = result
    onnx.checker.check_model(ir.to_proto(model))
    return model


def same(before: ir.Model, after: ir.Model, feed: dict[str, np.ndarray]) -> None:
    """Compare without ONNX Runtime's own fusions, which differ with the form of a graph."""
    a, b = (Session(model, optimize=False, threads=1).run(feed) for model in (before, after))
    assert list(a) == list(b)
    for name, array in a.items():
        # sums are reordered: errors are of the size of the largest element
        scale = max(1.0, float(np.abs(array).max(initial=0))) if array.dtype.kind == "f" else 1.0
        fault = difference(array / scale, b[name] / scale) if array.dtype.kind == "f" else difference(array, b[name])
        assert fault is None, f"{name}: {fault}"


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=models())
def test_random_graphs_give_equal_outputs(model: ir.Model) -> None:
    after = exactly(model)
    for seed, (batch, length) in enumerate(SHAPES):
        rng = np.random.default_rng(seed)
        feed = {
            "x": rng.standard_normal((batch, length, 4)).astype(np.float32),
            "mask": rng.integers(0, 2, (batch, length, 1)).astype(np.float32),
        }
        same(model, after, feed)


@pytest.mark.parametrize("label", ["a/b/c", "层.0", "", "weird name\\n", "x"])
def test_names_mean_nothing(label: str) -> None:
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x, bool c) => (float[N,4] y, float[N,4] z)
        <float[4] w = {1, 2, 3, 4}, float[4] v = {1, 2, 3, 4}> {
            a = Add(x, w)
            b = Identity(a)
            y = If (c) <
                then_branch = t () => (float[N,4] r) { q = Add(b, v)  r = Relu(q) },
                else_branch = e () => (float[N,4] r) { q = Mul(b, w)  r = Neg(q) }
            >
            z = Add(x, v)
        }"""
    )
    new = {"a": f"{label}/a" if label else "a_", "w": f"{label}w", "v": f"{label}v"}
    pending = [proto.graph]
    for graph in pending:
        for tensor in graph.initializer:
            tensor.name = new.get(tensor.name, tensor.name)
        for node in graph.node:
            node.name = label  # one name for all of them, in every scope
            for names in (node.input, node.output):
                renamed = [new.get(name, name) for name in names]
                del names[:]
                names.extend(renamed)
            pending.extend(attr.g for attr in node.attribute if attr.HasField("g"))
    model = ir.from_proto(proto)
    make_names_unique(model)
    after = exactly(model)
    assert len(list(after.graph)) < len(list(model.graph))
    for choice in (True, False):
        same(model, after, {"x": np.arange(8, dtype=np.float32).reshape(2, 4), "c": np.array(choice)})
