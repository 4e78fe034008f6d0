"""Weights that are another one's transposed copy are stored once, where that costs nothing."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.passes.cleaning.twins import SMALLEST, share_transposed_initializers
from graphopt.passes.cleanup import Cleanup
from graphopt.slicing import mask_units, slice_units
from graphopt.transform import Plan
from tests.axis_models import analyse, distance, feeds, outputs, rebuilt, set_tensor, text_model
from tests.fake_context import FakeContext

ROWS, WIDTH = 4200, 64
TIED = "(int64[B,S] ids) => (float[B,S,4200] logits)"


def tied(body: str = "", *, head: str = "logits = MatMul (n, H)", dtype: type = np.float32) -> ir.Model:
    """Ids -> rows of E -> norm -> the same table, stored once more as its columns."""
    lines = f"e = Gather (E, ids)\nn = LayerNormalization (e, g)\n{body}\n{head}"
    model = text_model(TIED, f"E[{ROWS},{WIDTH}] H[{WIDTH},{ROWS}] g[{WIDTH}]", lines, opset=20)
    table = np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(dtype)
    set_tensor(model, "E", table)
    return set_tensor(model, "H", np.ascontiguousarray(table.T))


def cleaned(model: ir.Model) -> ir.Model:
    transform = Cleanup()
    plan: Plan = transform.plan(GraphView(model), FakeContext(model))
    editor = GraphEditor(model.clone())
    transform.apply(editor, plan)
    again = transform.plan(GraphView(editor.model), FakeContext(editor.model))
    assert again.empty, "a second run finds nothing"
    return editor.model


def test_the_head_reads_the_table_through_a_transpose():
    model = tied()
    shared = cleaned(model)
    assert set(shared.graph.initializers) == {"E", "g"}
    (turned,) = [n for n in shared.graph if n.op_type == "Transpose"]
    assert turned.inputs[0] is shared.graph.initializers["E"]
    assert [use.node.op_type for use in turned.outputs[0].uses()] == ["MatMul"]
    fed = feeds(model)
    assert distance(outputs(model, fed), outputs(shared, fed)) <= 1e-6


def test_the_table_is_kept_even_where_the_copy_comes_first():
    model = tied()
    table = model.graph.initializers.pop("E")
    model.graph.register_initializer(table)
    assert list(model.graph.initializers) == ["H", "g", "E"]
    assert set(cleaned(model).graph.initializers) == {"E", "g"}


def test_both_lose_the_same_width():
    model = cleaned(tied())
    (group,) = [g for g in analyse(model).groups if g.role == "hidden"]
    assert group.parameters == ROWS * WIDTH + WIDTH, "the table counts once"
    removal = {group.name: [0, 7, 63]}
    masked, sliced = (rebuilt(model, removal, edit) for edit in (mask_units, slice_units))
    assert sliced.graph.initializers["E"].shape == (ROWS, WIDTH - 3)
    fed = feeds(model)
    assert distance(outputs(masked, fed), outputs(sliced, fed)) <= 1e-5


@pytest.mark.parametrize(
    "change", ["one element", "the sign of a zero", "another type", "small", "read as it is", "an output"]
)
def test_near_misses_stay_as_they_are(change):
    model = tied()
    head = model.graph.initializers["H"].const_value.numpy().copy()
    table = model.graph.initializers["E"].const_value.numpy().copy()
    if change == "one element":
        head[1234 % WIDTH, 4100] += 1e-3
    elif change == "the sign of a zero":
        head[5, 6], table[6, 5] = -0.0, 0.0
    elif change == "small":
        model = text_model(
            "(float[B,8] x) => (float[B,8] y)", "A[8,16] B[16,8]", "h = MatMul (x, A)\na = Erf (h)\ny = MatMul (a, B)"
        )
        table = model.graph.initializers["A"].const_value.numpy()
        set_tensor(model, "B", np.ascontiguousarray(table.T))
        assert share_transposed_initializers(GraphEditor(model), 0) == 0
        return
    set_tensor(model, "H", head)
    set_tensor(model, "E", table)
    if change == "another type":
        set_tensor(model, "E", table.astype(np.float16))
    elif change == "read as it is":
        for name in ("E", "H"):  # a Gather reads either
            node = ir.node("Gather", [model.graph.initializers[name], model.graph.inputs[0]], name=f"more {name}")
            model.graph.append(node)
    elif change == "an output":
        model.graph.outputs.append(model.graph.initializers["H"])
    assert table.nbytes >= SMALLEST
    assert share_transposed_initializers(GraphEditor(model), 0) == 0
