"""Small models to heal, and contexts whose inputs mean something to them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import clone_model, make_names_unique
from graphopt.passes.drop_layers import DropLayers
from graphopt.passes.heal import Heal
from graphopt.runtime.session import Session
from tests.fake_context import FakeContext

WIDTH, HIDDEN, CLASSES = 8, 24, 5


def perceptron(seed: int = 0, *, last: str = "", hidden: int = HIDDEN) -> ir.Model:
    """x [N, 8] -> hidden units -> y [N, 5], with ``last`` (e.g. Softmax) at the end."""
    rng = np.random.default_rng(seed)
    arrays = {
        "W": rng.standard_normal((WIDTH, hidden)) / 3,
        "b": rng.standard_normal(hidden) / 3,
        "V": rng.standard_normal((hidden, CLASSES)) / 3,
    }
    nodes = [
        helper.make_node("Gemm", ["x", "W", "b"], ["h"]),
        helper.make_node("Tanh", ["h"], ["a"]),
        helper.make_node("MatMul", ["a", "V"], ["z" if last else "y"]),
    ]
    if last:
        nodes.append(helper.make_node(last, ["z"], ["y"], axis=-1))
    graph = helper.make_graph(
        nodes,
        "perceptron",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(proto)
    model = ir.from_proto(proto)
    make_names_unique(model)  # as in every opened file
    return model


def tower(layers: int = 4, *, seed: int = 0) -> ir.Model:
    """x [N, 8] through ``x + tanh(x W) V`` again and again, to y [N, 8]; ``out{i}`` is what layer i makes."""
    rng = np.random.default_rng(seed)
    nodes, arrays, value = [], {}, "x"
    for i in range(layers):
        arrays[f"W{i}"] = rng.standard_normal((WIDTH, HIDDEN)) / 3
        arrays[f"V{i}"] = rng.standard_normal((HIDDEN, WIDTH)) / 6
        out = f"out{i}" if i < layers - 1 else "y"
        nodes += [
            helper.make_node("MatMul", [value, f"W{i}"], [f"h{i}"]),
            helper.make_node("Tanh", [f"h{i}"], [f"a{i}"]),
            helper.make_node("MatMul", [f"a{i}", f"V{i}"], [f"z{i}"]),
            helper.make_node("Add", [value, f"z{i}"], [out]),
        ]
        value = out
    graph = helper.make_graph(
        nodes,
        "tower",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WIDTH])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    make_names_unique(model)
    return model


def damaged(model: ir.Model, *, noise: float = 0.3, seed: int = 1) -> ir.Model:
    """The same graph with noise on every float weight."""
    rng = np.random.default_rng(seed)
    copy = model.clone()
    for value in copy.graph.initializers.values():
        assert value.const_value is not None
        array = value.const_value.numpy()
        if array.dtype.kind != "f":
            continue
        value.const_value = ir.tensor(
            (array + noise * rng.standard_normal(array.shape)).astype(array.dtype), name=value.name
        )
    return copy


class Inputs(FakeContext):
    """Batches of normal rows instead of synthetic ones."""

    def __init__(self, original: ir.Model, *, batches: int = 24, rows: int = 16) -> None:
        super().__init__(original)
        rng = np.random.default_rng(7)
        made = [{"x": rng.standard_normal((rows, WIDTH)).astype(np.float32)} for _ in range(batches)]
        self.splits = {"calibration": made[: batches * 3 // 4], "selection": made[batches * 3 // 4 :]}


def distance(a: ir.Model, b: ir.Model, context: Inputs) -> float:
    """Mean squared difference of the outputs on held-out inputs."""
    left, right = Session(a), Session(b)
    return float(np.mean([np.square(left.run(f)["y"] - right.run(f)["y"]).mean() for f in context.splits["selection"]]))


def healed(student: ir.Model, context: Inputs, **parameters: object) -> ir.Model:
    """A copy of ``student`` after heal."""
    step = Heal(**{"budget": "150steps", "learning_rate": 1e-2, **parameters})  # type: ignore[arg-type]
    plan = step.plan(GraphView(student), context)
    result = clone_model(student)
    step.apply(GraphEditor(result), plan)
    return result


def shortened(original: ir.Model, *layers: str) -> ir.Model:
    """A copy without these layers."""
    step = DropLayers(layers=layers)
    result = clone_model(original)
    editor = GraphEditor(result)
    step.apply(editor, step.plan(GraphView(original), Inputs(original)))
    editor.drop_dead()
    return result
