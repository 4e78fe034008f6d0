"""The part behind a change, run on what stands before it, answers like the whole changed model: bit by bit."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.editing import GraphEditor
from graphopt.model import clone_model, make_names_unique
from graphopt.probing.tails import Trunk
from graphopt.runtime.session import Session

WIDTH = 8


def model() -> ir.Model:
    """Two outputs, one of them early; a value that skips far ahead; a body that reads from outside."""
    rng = np.random.default_rng(0)
    names = ("w1", "w2", "w3", "w4")
    found = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 8] x, bool c) => (float[N, 8] early, float[N, 8] y)
        <float[8, 8] w1, float[8, 8] w2, float[8, 8] w3, float[8, 8] w4> {
            a = MatMul(x, w1)
            early = Relu(a)
            b = MatMul(early, w2)
            d = If (c) <then_branch = t () => (float[N, 8] p) { p = MatMul(a, w3) },
                        else_branch = e () => (float[N, 8] q) { q = Neg(b) }>
            s = Add(d, a)
            y = MatMul(s, w4)
        }""",
        initializers=[ir.tensor(rng.standard_normal((8, 8)).astype(np.float32), name=name) for name in names],
    )
    make_names_unique(found)
    return found


def changed(original: ir.Model, weight: str) -> ir.Model:
    clone = clone_model(original)
    value = clone.graph.initializers[weight]
    assert value.const_value is not None
    GraphEditor(clone).set_initializer(value, value.const_value.numpy() * np.float32(0.5))
    return clone


@pytest.mark.parametrize(("weight", "position"), [("w1", 0), ("w2", 2), ("w3", 3), ("w4", 5)])
def test_a_tail_puts_out_what_the_whole_does(weight: str, position: int) -> None:
    original = model()
    trunk, variant = Trunk(original), changed(original, weight)
    cut = trunk.first_difference(variant)
    assert cut == position
    whole = clone_model(variant)
    tail = trunk.tail(variant, trunk.alive([cut])[cut])
    outputs = [v.name or "" for v in original.graph.outputs]
    for taken in (True, False):
        feed = {"x": np.random.default_rng(1).standard_normal((3, WIDTH)).astype(np.float32), "c": np.array(taken)}
        wanted = Session(whole, threads=1).run(feed)
        values = Session(original, threads=1, outputs=[*outputs, *tail.reads]).run(feed)
        found = Session(tail.model, threads=1).run({**feed, **values})
        for name in outputs:
            np.testing.assert_array_equal(found.get(name, values[name]), wanted[name])


def test_the_part_before_the_change_is_gone_and_only_living_values_are_read() -> None:
    original = model()
    trunk, variant = Trunk(original), changed(original, "w4")
    tail = trunk.tail(variant, trunk.alive([5])[5])
    assert [node.op_type for node in tail.model.graph] == ["MatMul"]
    assert tail.reads == ("s",) and tail.outputs == ("y",)
    assert {name: [v.name for v in alive] for name, alive in trunk.alive([0, 2]).items()} == {
        0: ["x", "c"],
        2: ["c", "a", "early"],
    }


def test_an_equal_model_differs_nowhere() -> None:
    original = model()
    trunk = Trunk(original)
    assert trunk.first_difference(clone_model(original)) == len(trunk.nodes)
    other = clone_model(original)
    body = other.graph[3].attributes["else_branch"].as_graph()
    body[0].op_type = "Abs"
    assert trunk.first_difference(other) == 3
