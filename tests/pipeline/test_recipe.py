import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.errors import UsageError
from graphopt.pipeline.recipe import Recipe, Step
from graphopt.pipeline.recipe_file import load_recipe, preset_names
from graphopt.pipeline.registry import discover
from graphopt.pipeline.schema import recipe_schema

FULL = Recipe.make(
    {
        "passes": [
            "fuse",
            {"prune": {"ratio": 0.3}},
            {"name": "int8", "params": {"mode": "dynamic"}, "skip": "slower"},
        ],
        "data": "inputs.npz",
        "guard": {"min_cosine": 0.9, "metric": "m:f", "max_drop": 1.0},
        "targets": {"max_megabytes": 23},
        "seed": 7,
        "provider": "cuda",
    }
)


def test_step_forms():
    assert Step.model_validate("prune(ratio=0.3)") == Step(name="prune", params={"ratio": 0.3})
    assert Step.model_validate({"prune": {"ratio": 0.3}}) == Step(name="prune", params={"ratio": 0.3})
    assert Step.model_validate({"prune": None}) == Step(name="prune")


@pytest.mark.parametrize("suffix", ["yaml", "json"])
def test_files_round_trip(tmp_path, suffix):
    path = tmp_path / f"recipe.{suffix}"
    FULL.save(path)
    assert load_recipe(path) == FULL


values = st.one_of(st.booleans(), st.integers(-5, 5), st.floats(0, 1), st.text(max_size=5), st.lists(st.integers(0, 3)))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from("abc"), values), st.integers(0, 2**31), st.none() | st.floats(0, 1))
def test_any_recipe_round_trips(params, seed, cosine):
    recipe = Recipe.make({"passes": [{"name": "p", "params": params}], "seed": seed}).override(min_cosine=cosine)
    assert Recipe.make(json.loads(recipe.to_json())) == recipe


def test_yaml_is_what_people_write(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("passes:\n  - fuse\n  - prune: {ratio: 0.3}\n  - int8(mode=dynamic)\nguard: {min_cosine: 0.9}\n")
    names = [(step.name, step.params) for step in load_recipe(path).passes]
    assert names == [("fuse", {}), ("prune", {"ratio": 0.3}), ("int8", {"mode": "dynamic"})]


def test_extends_preset_and_file(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: edge-small\nseed: 3\nguard: {max_drop: 2.0}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\npasses: [fuse]\n")
    recipe = load_recipe(tmp_path / "mine.yaml")
    assert [step.name for step in recipe.passes] == ["fuse"]
    assert (recipe.seed, recipe.guard.min_cosine, recipe.guard.max_drop) == (3, 0.9, 2.0)


def test_extends_in_a_circle(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(UsageError, match="circle"):
        load_recipe(tmp_path / "a.yaml")


def test_data_is_found_beside_the_recipe(tmp_path):
    (tmp_path / "inputs.npz").write_bytes(b"")
    (tmp_path / "r.yaml").write_text("passes: [fuse]\ndata: inputs.npz\n")
    assert load_recipe(tmp_path / "r.yaml").data == str(tmp_path / "inputs.npz")


@pytest.mark.parametrize("name", preset_names())
def test_presets_load(name):
    assert load_recipe(name).passes


def test_presets_are_the_promised_ones():
    assert {"cpu-vnni", "cpu-arm64", "cuda", "edge-small", "tiny"} <= set(preset_names())


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("passes: [fuse]\nnonsense: 1\n", "nonsense"),
        ("passes: [fuse]\nguard: {min_cosine: 2}\n", "guard.min_cosine=2"),
        ("passes: ['a,b']\n", "more than one pass"),
        ("- fuse\n", "expected a mapping"),
        ("passes: [fuse\n", "not valid YAML"),
        (f"passes: {'[' * 3000}", "not valid YAML"),
        ("passes: 3\n", "expected a list of passes"),
        ("passes: {fuse: {}}\n", "expected a list of passes"),
        ("passes: [{prune: {}, fuse: {}}]\n", "expected one pass, found prune, fuse"),
        ("passes: []\nstatus: PASSED\nrecipe: 3\n", "holds no recipe"),
        ("passes: [fuse]\nguard: {min_cosine: -5, max_drop: -5}\n", "guard.max_drop=-5"),
    ],
)
def test_bad_recipes_are_one_line(tmp_path, text, word):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_recipe(path)
    assert word in str(caught.value)
    assert str(caught.value).startswith(f"recipe {path}: ")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


def test_unknown_recipe_lists_presets():
    with pytest.raises(UsageError, match="edge-small"):
        load_recipe("no-such-preset")


def test_nothing_of_this_machine_goes_into_a_model():
    recipe = Recipe.make("fuse").override(data="/home/me/x.npz", tokenizer="/t/tokenizer.json", metric="/a/m.py:score")
    assert "/" not in json.dumps(recipe.portable())


def test_schema_accepts_and_knows_parameters():
    schema = recipe_schema(discover())
    assert schema["properties"]["passes"]
    assert "cleanup" in schema["$defs"]
    assert "fold_limit" in schema["$defs"]["cleanup"]["properties"]
    json.dumps(schema)


def test_an_unknown_target_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown target; known: cpu-vnni"):
        Recipe.make({"passes": "cleanup", "target": "nonsense"})
