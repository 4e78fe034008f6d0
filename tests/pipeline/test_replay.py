"""Check 8: the recipe stored in the report, and in the model, replays to a byte-identical file."""

import json

import numpy as np
import pytest

import graphopt
from graphopt.model import open_model, provenance

RECIPE = "wrong-numbers,slow,noise(amount=1.0),choose,keeps-its-word"


@pytest.fixture
def first(plugin, mlp, tmp_path):
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(1).standard_normal((40, 32)).astype(np.float32))
    options = {"data": str(tmp_path / "inputs.npz"), "min_cosine": 0.99, "seed": 5}
    result = graphopt.optimize(mlp, RECIPE, output=tmp_path / "first.onnx", keep_best=True, keep_slower=True, **options)
    assert result.path is not None
    (tmp_path / "report.json").write_text(result.to_json())
    result.recipe.save(tmp_path / "recipe.yaml")
    return result


@pytest.mark.parametrize("source", ["report.json", "recipe.yaml", "first.onnx"])
def test_replays_to_the_same_bytes(first, mlp, tmp_path, source):
    options = {"data": str(tmp_path / "inputs.npz")} if source == "first.onnx" else {}
    again = graphopt.optimize(mlp, recipe=tmp_path / source, output=tmp_path / "again.onnx", **options)
    assert again.passed, again.reasons
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "first.onnx").read_bytes()


def test_the_resolved_recipe_pins_every_decision(first):
    steps = {step.name: step for step in first.recipe.passes}
    assert steps["wrong-numbers"].skip == "guard"
    assert steps["choose"].params["mode"] in ("even", "odd")
    assert 0 < steps["noise"].params["amount"] < 1
    assert first.recipe.guard.keep_slower
    assert first.recipe.target


def test_what_was_asked_for_was_not_chosen(plugin, mlp):
    (free,) = graphopt.optimize(mlp, "choose", cleanup=False, keep_slower=True).passes
    assert free.chosen == {"mode": free.resolved["mode"]}
    (told,) = graphopt.optimize(mlp, f"choose(mode={free.resolved['mode']})", cleanup=False, keep_slower=True).passes
    assert told.resolved == free.resolved
    assert told.chosen == {}


def test_the_model_says_where_it_comes_from(first, mlp, tmp_path):
    stored = provenance(open_model(first.path))
    assert stored["input"] == first.input.digest
    assert stored["version"] == graphopt.__version__
    assert [entry["name"] for entry in json.loads(stored["passes"])][-1] == "keeps-its-word"
    assert str(tmp_path) not in json.dumps(stored)


def test_a_slower_pass_left_out_once_stays_out(plugin, mlp, tmp_path):
    result = graphopt.optimize(mlp, "slow", output=tmp_path / "a.onnx")
    assert [step.skip for step in result.recipe.passes if step.name == "slow"] == ["slower"]
    graphopt.optimize(mlp, result.recipe, output=tmp_path / "b.onnx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_a_model_that_needs_nothing_does_not_grow(mlp, tmp_path):
    once = graphopt.optimize(mlp, "cleanup", output=tmp_path / "once.onnx")
    again = graphopt.optimize(once.path, "cleanup", output=tmp_path / "again.onnx")
    assert [item.status for item in again.passes] == ["unchanged"]
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "once.onnx").read_bytes()
