"""drop-layers: what is left computes what the model would have without those layers."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.errors import UsageError
from graphopt.model import clone_model
from graphopt.passes.drop_layers import DropLayers
from graphopt.runtime.session import Session
from tests.fake_context import FakeContext

LAYERS = 4


def trunk(
    scales: tuple[float, ...] = (0.5, 0.01, 0.4, 0.02), *, cache: bool = False, post_norm: bool = False
) -> ir.Model:
    """x + f(x), four times, f = Relu(x W) V with weights of the given sizes; optionally normalised after each sum."""
    rng = np.random.default_rng(0)
    nodes, weights, value = [], [], "x"
    for i, scale in enumerate(scales):
        a = " ".join(f"{v:.4f}," for v in (scale * rng.standard_normal(24)).ravel()).rstrip(",")
        b = " ".join(f"{v:.4f}," for v in rng.standard_normal(24).ravel()).rstrip(",")
        weights += [f"float[4,6] W{i} = {{{a}}}", f"float[6,4] V{i} = {{{b}}}"]
        last = "y" if i == len(scales) - 1 else f"s{i}"
        total = f"t{i}" if post_norm else last
        nodes += [f"h{i} = MatMul({value}, W{i})", f"r{i} = Relu(h{i})", f"f{i} = MatMul(r{i}, V{i})"]
        nodes.append(f"{total} = Add({value}, f{i})")
        if post_norm:
            weights.append(f"float[4] g{i} = {{1.1, 0.9, 1.2, 1.0}}")
            nodes.append(f"{last} = LayerNormalization({total}, g{i})")
        value = last
    outputs = "float[N,4] y" + (", float[N,6] r2" if cache else "")
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
    trunk (float[N,4] x) => ({outputs}) <{", ".join(weights)}> {{ {" ".join(nodes)} }}"""
    return ir.from_onnx_text(text)


def dropped(model: ir.Model, context: FakeContext | None = None, **parameters: object) -> tuple[ir.Model, list[str]]:
    step = DropLayers(**parameters)
    plan = step.plan(GraphView(model), context or FakeContext(model))
    result = clone_model(model)
    editor = GraphEditor(result)
    if not plan.empty:
        step.apply(editor, plan)
        editor.drop_dead()
    return result, [change.site for change in plan.changes]


@pytest.mark.parametrize("post_norm", [False, True])
def test_the_layers_that_do_least_go(post_norm: bool) -> None:
    model = trunk(post_norm=post_norm)
    result, gone = dropped(model, ratio=0.5)
    assert gone == ["layers.1", "layers.3"]
    assert len(result.graph.initializers) == len(model.graph.initializers) // 2
    x = np.random.default_rng(1).standard_normal((5, 4)).astype(np.float32)
    weights = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    expected = x
    for i in (0, 2):
        expected = expected + np.maximum(expected @ weights[f"W{i}"], 0) @ weights[f"V{i}"]
        if post_norm:
            centred = expected - expected.mean(-1, keepdims=True)
            expected = centred / np.sqrt(centred.var(-1, keepdims=True) + 1e-5) * weights[f"g{i}"]
    assert np.allclose(Session(result).run({"x": x})["y"], expected, atol=1e-5)


def test_neighbours_that_go_together_are_skipped_together() -> None:
    result, gone = dropped(trunk((0.01, 0.02, 0.5, 0.01)), ratio=0.75)
    assert gone == ["layers.0", "layers.1", "layers.3"]
    assert [node.op_type for node in result.graph][:4] == ["MatMul", "Relu", "MatMul", "Add"]
    assert result.graph[0].inputs[0] is result.graph.inputs[0]
    assert result.graph.outputs[0].name == "y"


def test_one_layer_stays_and_a_replay_drops_the_same() -> None:
    model = trunk()
    plan = DropLayers(ratio=0.99).plan(GraphView(model), FakeContext(model))
    assert len(plan.changes) == LAYERS - 1
    assert any("every trunk keeps one" in note for note in plan.notes)
    again, gone = dropped(model, layers=plan.resolved["layers"])
    assert gone == [change.site for change in plan.changes]
    assert len(again.graph) == 4


def test_a_layer_that_something_else_reads_stays() -> None:
    model = trunk((0.5, 0.4, 0.01, 0.02), cache=True)
    plan = DropLayers(ratio=0.25).plan(GraphView(model), FakeContext(model))
    assert [(item.site, item.reason) for item in plan.declined] == [("layers.2", "something else reads its 'r2'")]
    assert [change.site for change in plan.changes] == ["layers.3"]


def test_without_data_every_other_layer_goes() -> None:
    model = trunk()
    result, gone = dropped(model, FakeContext(model, has_data=False), ratio=0.5)
    assert gone == ["layers.0", "layers.2"]
    assert len(result.graph) == 8


def test_near_misses() -> None:
    model = trunk()
    assert "is none" in DropLayers(ratio=0.1).plan(GraphView(model), FakeContext(model)).declined[-1].reason
    with pytest.raises(UsageError, match=r"no layer 'layers\.9'"):
        dropped(model, layers=("layers.9",))
    _, gone = dropped(model, ratio=0.5, exclude=("layers.1",))
    assert "layers.1" not in gone
    single = trunk((0.5,))
    assert "no residual trunk" in DropLayers().plan(GraphView(single), FakeContext(single)).declined[-1].reason


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_transformers_lose_a_layer_and_still_run(family: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from graphopt.model import open_model
    from tests.models import tiny

    made = getattr(tiny, family)(tmp_path)
    model = open_model(made.path)
    result, gone = dropped(model, FakeContext(model, has_data=False), ratio=0.4)
    assert gone
    before, after = (len(GraphView(m).structure.layers) for m in (model, result))
    assert after == before - len(gone)
    for batch, length in ((2, 6), (1, 1)):
        assert Session(result).run(made.feed(batch, length, 0))


def test_layers_that_change_the_width_stay_though_the_file_states_no_shapes() -> None:
    rng = np.random.default_rng(0)
    widths, nodes, weights, value = (4, 6, 8, 10), [], [], "x"
    for i, (width, wider) in enumerate(pairwise(widths)):
        for name, rows, columns in ((f"W{i}", width, width), (f"P{i}", width, wider)):
            numbers = ", ".join(f"{v:.4f}" for v in rng.standard_normal(rows * columns))
            weights.append(f"float[{rows},{columns}] {name} = {{{numbers}}}")
        last = "y" if i == len(widths) - 2 else f"o{i}"
        nodes += [f"h{i} = MatMul({value}, W{i})", f"r{i} = Relu(h{i})", f"s{i} = Add({value}, r{i})"]
        nodes.append(f"{last} = MatMul(s{i}, P{i})")
        value = last
    model = ir.from_onnx_text(
        f"""<ir_version: 9, opset_import: ["" : 18]>
        trunk (float[N,4] x) => (float[N,10] y) <{", ".join(weights)}> {{ {" ".join(nodes)} }}"""
    )
    plan = DropLayers(ratio=0.5).plan(GraphView(model), FakeContext(model))
    assert GraphView(model).structure.layers
    assert plan.empty
    assert any(item.reason == "its output is not of the shape of its input" for item in plan.declined)
