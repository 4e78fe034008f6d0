"""What people read: numbers, tables at 100 columns, and a verdict as the last line."""

import io
import json

import numpy as np
import onnx_ir as ir
import pytest
from rich.console import Console

import graphopt
from graphopt.pipeline.inspect import inspect_model
from graphopt.pipeline.overview import HoldFacts
from graphopt.pipeline.registry import discover
from graphopt.pipeline.result import Result
from graphopt.report import units
from graphopt.report.overview import explain, print_overview
from graphopt.report.passes import describe_json
from graphopt.report.plot import draw
from graphopt.report.terminal import passes_table, print_result
from tests.report.models import residual_mlp

#: Weights of a product, a normalisation and a product.
SHAPES = {"w": (8, 16), "g": (16,), "v": (16, 4)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (units.megabytes(90_804_217), "90.80 MB"),
        (units.megabytes(1_300_000_000), "1300.0 MB"),
        (units.megabytes(12_800), "12.8 kB"),
        (units.megabytes(40), "40 B"),
        (units.megabytes(None), "-"),
        (units.amount(22_565_376), "22.57 M"),
        (units.amount(3136), "3136"),
        (units.amount(295_700), "295.7 k"),
        (units.ratio(0.314), "0.31x"),
        (units.seconds(0.0123), "12 ms"),
        (units.seconds(76.7), "76.7 s"),
        (units.seconds(109.2), "109 s"),
        (units.small(0), "0"),
        (units.small(1.5e-6), "1.5e-06"),
        (units.cosine(0.9999999999), "1.0000"),
        (units.cosine(0.99999), "1-1e-05"),
        (units.cosine(0.9521), "0.9521"),
        (units.share(1, 3), "33.3 %"),
        (units.share(1, 0), "-"),
    ],
)
def test_units(text, expected):
    assert text == expected


def rendered(result, verbose=0):
    out = io.StringIO()
    print_result(result, Console(file=out, width=100), verbose=verbose)
    return out.getvalue()


def test_a_failed_run_says_why_and_ends_with_failed(plugin, mlp):
    result = graphopt.optimize(mlp, "crash,wrong-numbers,dangling,nothing-to-do")
    text = rendered(result)
    last = text.strip().splitlines()[-1]
    assert last.startswith("FAILED crash was rolled back: ZeroDivisionError")
    assert "and 1 more failure" in last
    assert "left alone graph: nothing of interest" in text
    assert "rolled-back" in text
    tables = [line for line in text.splitlines() if "─" in line or "rolled-back" in line]
    assert all(len(line) <= 100 for line in tables)


def test_verbose_shows_sites_and_the_recipe(plugin, mlp):
    result = graphopt.optimize(mlp, "keeps-its-word", keep_slower=True)
    text = rendered(result, verbose=1)
    assert "as it was -> as it should not be" in text
    assert "keep_slower: true" in text


def test_markup_in_names_is_text(plugin, mlp):
    result = graphopt.optimize(mlp, "nothing-to-do")
    result.passes[-1].notes = ["[bold]not markup[/] [oops"]
    assert "[bold]not markup[/] [oops" in rendered(result)


def test_json_round_trips(plugin, mlp):
    result = graphopt.optimize(mlp, "nothing-to-do,crash")
    again = Result.model_validate_json(result.to_json())
    assert again.to_json() == result.to_json()
    assert json.loads(result.to_json())["status"] == "FAILED"


def test_overview(mlp):
    overview = inspect_model(mlp)
    assert [(group.role, group.size) for group in overview.prunable] == [("neurons", 64)]
    assert {touch.split("[")[0] for touch in overview.prunable[0].touches} == {"w1", "b1", "w2"}
    assert overview.frozen
    assert all(group.reasons for group in overview.frozen)
    out = io.StringIO()
    print_overview(overview, Console(file=out, width=100))
    text = out.getvalue()
    assert "Groups that can be pruned: together 100.0 % of parameters\n" in text
    assert "graph input 'x' (axis 1)" in text
    assert all(len(line) <= 100 for line in out.getvalue().splitlines() if "─" in line)


def test_the_table_of_passes_fits_80_columns(plugin, mlp):
    result = graphopt.optimize(mlp, "prune-neurons(ratio=0.25,criterion=magnitude,round_to=8),crash")
    out = io.StringIO()
    Console(file=out, width=80).print(passes_table(result))
    lines = out.getvalue().splitlines()
    assert all(len(line.rstrip()) <= 80 for line in lines)
    for name in ("cleanup ", "prune-neurons(", "crash ", "rolled-back"):
        assert any(name in line for line in lines)


def test_reasons_are_shortened_unless_verbose(mlp):
    overview = inspect_model(mlp)
    overview.frozen[0].held_by = [HoldFacts(reason=f"reason {number}") for number in range(4)]
    for verbose, expected in ((0, "and 2 more reasons (-v)"), (1, "reason 3")):
        out = io.StringIO()
        print_overview(overview, Console(file=out, width=100), verbose=verbose)
        assert expected in out.getvalue()


def test_shares_are_shares(tmp_path):
    """No share is above the whole, unions are between their largest member and the sum, and times add up."""
    ir.save(residual_mlp(), tmp_path / "m.onnx")
    overview = inspect_model(tmp_path / "m.onnx", measure_time=True)
    assert overview.timing is not None and overview.timing.seconds > 0
    assert sum(role.time_share for role in overview.roles) == pytest.approx(1)
    assert sum(stage.time_share for stage in overview.stages) == pytest.approx(1)
    for kind in (*overview.kinds, *overview.cover.values()):
        assert 0 <= kind.share <= 1 and 0 <= kind.time_share <= 1
    everything = {group.name: group for group in (*overview.prunable, *overview.frozen)}
    for kind in overview.kinds:
        members = [everything[name].share for name in kind.groups]
        assert max(members) - 1e-9 <= kind.share <= sum(members) + 1e-9


def test_units_inside_a_body_have_the_time_of_the_node_around_it(tmp_path):
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[batch, 8] x, bool c) => (float[batch, 8] y)
        <float[8, 16] w, float[16, 8] v>
        { y = If (c) <
            then_branch = t () => (float[batch, 8] p) { a = MatMul(x, w) b = Relu(a) p = MatMul(b, v) },
            else_branch = e () => (float[batch, 8] q) { q = Relu(x) }
        > }""",
        initializers=[ir.tensor(np.ones(s, np.float32), name=n) for n, s in {"w": (8, 16), "v": (16, 8)}.items()],
    )
    ir.save(model, tmp_path / "m.onnx")
    overview = inspect_model(tmp_path / "m.onnx", measure_time=True)
    (inner,) = [group for group in (*overview.prunable, *overview.frozen) if group.size == 16]
    assert (inner.share, inner.time_share) == (1, pytest.approx(1))
    assert overview.stages[0].parameters == 256
    draw(overview)


def test_a_frozen_group_names_the_node_the_operand_and_the_axis(tmp_path):
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 18]>
        g (float[batch, 8] x) => (float[batch, 4] y)
        { a = MatMul(x, w) b = LayerNormalization(a, g) y = MatMul(b, v) }""",
        initializers=[ir.tensor(np.ones(shape, np.float32), name=n) for n, shape in SHAPES.items()],
    )
    ir.save(model, tmp_path / "m.onnx")
    (hidden,) = [group for group in inspect_model(tmp_path / "m.onnx").frozen if group.role == "hidden"]
    hold = hidden.held_by[0]
    assert (hold.op, hold.operand, hold.value, hold.axis) == ("LayerNormalization", "input 0", "a", 1)
    assert explain(hold).endswith("(input 0, 'a', axis 1)")
    assert hold.node in hold.reason
    out = io.StringIO()
    print_overview(inspect_model(tmp_path / "m.onnx"), Console(file=out, width=100))
    assert hidden.lossy and "prune(roles=[" in out.getvalue()


def test_parameters_are_described_as_users_write_them():
    facts = {item["name"]: item for item in json.loads(describe_json(discover().load("prune")))["parameters"]}
    assert facts["ratio"]["type"] == "float (>= 0, < 1) | 'auto'"
    assert facts["round_to"]["type"] == "int | None"
    assert facts["round_to"]["description"].endswith("(>= 1)")
    assert facts["exclude"]["type"] == "list of str"
    facts = {item["name"]: item for item in json.loads(describe_json(discover().load("int8")))["parameters"]}
    assert facts["qat"]["type"].startswith("{budget, learning_rate, ") and facts["qat"]["type"].endswith("} | bool")
