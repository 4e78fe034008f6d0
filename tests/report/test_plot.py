"""The drawn structure: well-formed, complete, and folded where it repeats."""

from __future__ import annotations

from xml.etree import ElementTree

import onnx_ir as ir
import pytest

from graphopt.pipeline.inspect import inspect_model
from graphopt.pipeline.overview import Overview
from graphopt.report.folding import fold_groups, fold_stages, layer_range
from graphopt.report.plot import draw
from tests.report.models import residual_mlp

SVG = "{http://www.w3.org/2000/svg}"


def texts(svg: str) -> list[str]:
    return ["".join(item.itertext()) for item in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.fixture
def overview(tmp_path) -> Overview:
    """Four residual blocks of 64 neurons on a width of 16."""
    ir.save(residual_mlp(layers=4), tmp_path / "m.onnx")
    return inspect_model(tmp_path / "m.onnx")


def test_every_role_and_its_number_of_groups_is_in_the_legend(overview):
    shown = texts(draw(overview))
    assert "neurons" in shown and "4 x 64" in shown
    assert "not prunable" in shown
    assert any(text.startswith("4 groups can be pruned") for text in shown)


def test_layers_that_are_alike_are_drawn_once(overview):
    shown = texts(draw(overview))
    assert sum(text.startswith("layers 0-3") for text in shown) == 1
    assert sum("64 neurons" in text for text in shown) == 1
    assert {"x", "y"} <= set(shown)


def test_a_layer_that_differs_is_drawn_on_its_own(tmp_path):
    ir.save(residual_mlp(layers=4, widths=(64, 64, 48, 64)), tmp_path / "m.onnx")
    shown = texts(draw(inspect_model(tmp_path / "m.onnx")))
    assert [text.split(" (")[0].strip() for text in shown if text.startswith("layer")] == [
        "layers 0-1",
        "layer 2",
        "layer 3",
    ]


def test_parameters_of_stages_and_folds_add_up_to_the_models(overview):
    total = sum(role.parameters for role in overview.roles)
    assert sum(stage.parameters for stage in overview.stages) == total
    groups = (*overview.prunable, *overview.frozen)
    assert sum(sum(fold.parameters) for fold in fold_stages(overview.stages, groups)) == total
    assert sum(stage.share for stage in overview.stages) == pytest.approx(1)


def test_names_are_escaped_and_control_characters_replaced(overview):
    overview.model.path = 'a<b>&"c"\x07.onnx'
    overview.inputs[0].name = "<script>alert(1)</script>"
    overview.stages[0].weights[0].name = "w & <w>\x00"
    svg = draw(overview)
    assert "<script>" not in svg
    assert 'a<b>&"c"\ufffd.onnx' in texts(svg)


def test_shares_of_time_are_drawn_where_they_were_measured(tmp_path, overview):
    assert "share of time" not in texts(draw(overview))
    timed = inspect_model(tmp_path / "m.onnx", measure_time=True)
    assert "share of time" in texts(draw(timed))


def test_a_model_that_does_not_run_is_drawn_with_the_reason(tmp_path):
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 18, "no": 1]>
        g (float[batch, 4] x) => (float[batch, 4] y) { y = no.Op(x) }"""
    )
    ir.save(model, tmp_path / "m.onnx")
    assert any("need a run" in text for text in texts(draw(inspect_model(tmp_path / "m.onnx"))))


def test_groups_that_repeat_are_one_fold(overview):
    (fold,) = fold_groups(overview, overview.prunable)
    assert (fold.count, fold.where) == ("4 x 64", "layers 0-3")
    assert fold.cover.parameters == sum(group.parameters for group in overview.prunable)


def test_layer_ranges():
    assert layer_range([3]) == "layer 3"
    assert layer_range([0, 1, 2, 4]) == "layers 0-2, 4"
