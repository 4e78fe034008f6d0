"""``quantize`` from the outside: what it declines, what it refuses, and the bounds of a whole run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt.analysis.view import GraphView
from graphopt.errors import UsageError
from graphopt.model import make_names_unique, save_model
from graphopt.passes.quantize import Quantize
from tests.fake_context import FakeContext
from tests.report.models import residual_mlp


def planned(has_data: bool = True, **parameters: object):  # type: ignore[no-untyped-def]
    model = residual_mlp(layers=2)
    make_names_unique(model)
    return Quantize(**parameters).plan(GraphView(model), FakeContext(model, has_data=has_data))  # type: ignore[arg-type]


def test_without_inputs_it_says_what_it_needs() -> None:
    plan = planned(has_data=False)
    assert plan.empty and "--data" in plan.declined[0].reason


def test_groups_that_are_not_there_and_forms_they_do_not_have() -> None:
    with pytest.raises(UsageError, match="no group of sites 'nowhere'"):
        planned(assign={"nowhere": "int4"})
    with pytest.raises(ValueError, match="int3"):
        Quantize(assign={"n": "int3"})


def test_excluded_nodes_stay_float() -> None:
    assert planned(exclude_ops=["MatMul"]).empty


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    file = tmp_path / "x.npz"
    np.savez(file, x=np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32))
    return file


def test_a_wanted_size_is_met_by_the_written_file(tmp_path: Path, inputs: Path) -> None:
    model = residual_mlp(widths=(512, 512, 512))
    source, target = tmp_path / "m.onnx", tmp_path / "small.onnx"
    save_model(model, source)
    wanted = 0.6 * source.stat().st_size / 1e6
    result = graphopt.optimize(
        source, "quantize(forms=[float16,int4])", data=inputs, output=target, max_megabytes=wanted
    )
    assert result.passed, result.reasons
    assert target.stat().st_size <= wanted * 1e6
    (row,) = [item for item in result.passes if item.name == "quantize"]
    replayed = graphopt.optimize(source, row.name, data=inputs, recipe=target)
    assert replayed.passed


def test_a_size_out_of_reach_fails_and_writes_nothing_unless_asked(tmp_path: Path, inputs: Path) -> None:
    source, target = tmp_path / "m.onnx", tmp_path / "small.onnx"
    save_model(residual_mlp(layers=2), source)
    fields = {"data": inputs, "output": target, "max_megabytes": 1e-4}
    result = graphopt.optimize(source, "quantize(forms=[float16])", **fields)  # type: ignore[arg-type]
    assert not result.passed and not target.exists()
    assert any("0.0001 MB" in reason for reason in result.reasons)
    result = graphopt.optimize(source, "quantize(forms=[float16])", keep_best=True, **fields)  # type: ignore[arg-type]
    assert not result.passed and target.stat().st_size < source.stat().st_size
