"""What stands before the first pass: a reference that runs here, a repaired one, or none."""

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt.errors import ModelError, UsageError
from graphopt.pipeline.result import Status

#: The schema lets a mask [B, 1, 1, L] be broadcast over the queries; ONNX Runtime refuses to run it.
ATTENTION = """
<ir_version: 11, opset_import: ["" : 23]>
attend (float[batch, 2, length, 8] q, bool[batch, 1, 1, length] mask) => (float[batch, 2, length, 8] y)
{
    y = Attention(q, q, q, mask)
}
"""
UNKNOWN = """
<ir_version: 9, opset_import: ["" : 18, "com.example" : 1]>
strange (float[batch, 4] x) => (float[batch, 4] y)
<float[4] one = {1, 1, 1, 1}, float[4] two = {1, 1, 1, 1}>
{
    a = Add(x, one)
    b = Add(a, two)
    y = com.example.Mystery(b)
}
"""


def saved(text, path):
    ir.save(ir.from_onnx_text(text), path)
    return path


def test_cleanup_repairs_and_the_repaired_model_becomes_the_reference(tmp_path):
    path = saved(ATTENTION, tmp_path / "m.onnx")
    result = graphopt.optimize(path, "cleanup", output=tmp_path / "o.onnx")
    assert result.passed, result.reasons
    assert result.passes[0].status is Status.APPLIED
    assert any("repaired" in note for note in result.passes[0].notes)
    assert any("does not run in ONNX Runtime" in note for note in result.notes)
    assert result.path.exists()
    again = graphopt.optimize(path, result.recipe, output=tmp_path / "p.onnx")
    assert again.passed
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "p.onnx").read_bytes()


def test_without_cleanup_it_is_compared_where_it_runs_and_the_rest_is_told(tmp_path, plugin):
    path = saved(ATTENTION, tmp_path / "m.onnx")
    result = graphopt.optimize(path, "nothing-to-do", cleanup=False)
    assert any("itself does not run at 1x16" in note for note in result.notes)


def test_an_operator_that_nothing_runs_is_refused_with_the_hint(tmp_path):
    path = saved(UNKNOWN, tmp_path / "m.onnx")
    with pytest.raises(ModelError) as caught:
        graphopt.optimize(path, "cleanup", output=tmp_path / "o.onnx")
    assert "--no-validate" in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "o.onnx").exists()


def test_no_validate_optimises_it_all_the_same(tmp_path):
    path = saved(UNKNOWN, tmp_path / "m.onnx")
    result = graphopt.optimize(path, "cleanup", output=tmp_path / "o.onnx", validate_runs=False)
    assert result.passed
    assert any("not validated" in note for note in result.notes)
    assert result.fidelity is None
    assert (tmp_path / "o.onnx").exists()


def test_data_that_does_not_fit_is_a_usage_error(mlp, tmp_path):
    np.savez(tmp_path / "bad.npz", x=np.zeros((4, 31), np.float32))
    with pytest.raises(UsageError, match="31"):
        graphopt.optimize(mlp, "cleanup", data=tmp_path / "bad.npz")


def test_splits_are_disjoint_and_the_guard_is_out_of_reach(plugin, mlp, tmp_path):
    from graphopt.errors import PassError
    from graphopt.model import open_model
    from graphopt.pipeline.optimize import prepare_recipe
    from graphopt.pipeline.setup import set_up
    from graphopt.pipeline.talk import Silent

    np.savez(tmp_path / "in.npz", x=np.random.default_rng(0).standard_normal((30, 32)).astype(np.float32))
    recipe = prepare_recipe("cleanup", data=str(tmp_path / "in.npz"))
    model = open_model(mlp)
    setup = set_up(model, mlp, recipe, [], data=None, metric=None, dry_run=False, talk=Silent())
    context = setup.bench.context
    seen = {}
    for split in ("calibration", "selection"):
        seen[split] = np.concatenate([batch["x"] for batch in context.observe(model, ["x"], split=split)])
    guard = np.concatenate([feed["x"] for feed in setup.inputs.batches("guard")])
    rows = [tuple(row) for row in np.concatenate([*seen.values(), guard])]
    assert len(rows) == len(set(rows)) == 30
    with pytest.raises(PassError, match="guard"):
        list(context.observe(model, ["x"], split="guard"))
    assert len(np.concatenate([b["x"] for b in context.observe(model, ["x"], limit=5)])) == 5


def test_context_measures(plugin, mlp):
    from graphopt.model import clone_model, open_model
    from graphopt.pipeline.optimize import prepare_recipe
    from graphopt.pipeline.setup import set_up
    from graphopt.pipeline.talk import Silent

    model = open_model(mlp)
    setup = set_up(model, mlp, prepare_recipe("cleanup"), [], data=None, metric=None, dry_run=False, talk=Silent())
    context = setup.bench.context
    worse = clone_model(model)
    value = worse.graph.initializers["w1"]
    value.const_value = ir.tensor(-value.const_value.numpy(), name="w1")
    same, far = context.divergences([clone_model(model), worse])
    assert same < 1e-6 < far
    assert context.divergence(worse) == far
    assert context.acceptable(clone_model(model))
    assert not context.acceptable(worse)
    times = context.latency({"a": model, "b": worse}, rounds=3)
    assert set(times) == {"a", "b"}
    assert all(seconds > 0 for seconds in times.values())
    nodes = context.node_seconds(worse)
    assert set(nodes) == {node.name for node in worse.graph}
    assert sum(nodes.values()) > 0
    hidden = next(iter(context.observe(model, ["active"], split="selection")))["active"]
    assert hidden.shape[1] == 64
    assert not context.has_data
    assert context.can_run
