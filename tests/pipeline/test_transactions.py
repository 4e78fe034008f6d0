"""Check 7: a pass that misbehaves is rolled back with its reason, and the rest of the recipe goes on."""

import numpy as np
import onnxruntime as ort
import pytest

import graphopt
from graphopt.model import digest, open_model
from graphopt.pipeline.result import Cause, Status

MISBEHAVING = {
    "wrong-numbers": (Cause.GUARD, "exact allows errors"),
    "slightly-wrong": (Cause.GUARD, "exact allows errors"),
    "invalid-graph": (Cause.INVALID, "checker"),
    "dangling": (Cause.INVALID, "nothing before it defines"),
    "wrong-shapes": (Cause.INVALID, "ONNX Runtime cannot run"),
    "changed-interface": (Cause.INVALID, "outputs changed"),
    "frozen-dims": (Cause.INVALID, "changed dims"),
    "crash": (Cause.FAILED, "ZeroDivisionError: on purpose"),
    "exits": (Cause.FAILED, "SystemExit"),
    "crash-planning": (Cause.FAILED, "KeyError"),
    "not-a-plan": (Cause.FAILED, "returned list"),
    "false-claim": (Cause.UNTRUTHFUL, "claims 1 change"),
    "secret-change": (Cause.UNTRUTHFUL, "claims no change"),
    "bad-resolution": (Cause.FAILED, "resolved parameters"),
}


@pytest.mark.parametrize("name", MISBEHAVING)
def test_rolled_back_with_its_reason_and_the_rest_goes_on(plugin, mlp, tmp_path, name):
    before = mlp.read_bytes()
    result = graphopt.optimize(
        mlp, f"{name},keeps-its-word", output=tmp_path / "out.onnx", keep_best=True, keep_slower=True, cleanup=False
    )
    bad, good = result.passes
    cause, reason = MISBEHAVING[name]
    assert (bad.status, bad.cause) == (Status.ROLLED_BACK, cause)
    assert reason in bad.reason
    assert "\n" not in bad.reason
    assert good.status is Status.APPLIED
    assert not result.passed
    assert any(name in line for line in result.reasons)
    assert mlp.read_bytes() == before
    feed = {"x": np.random.default_rng(0).standard_normal((3, 32)).astype(np.float32)}
    expected = ort.InferenceSession(mlp).run(None, feed)[0]
    np.testing.assert_allclose(ort.InferenceSession(result.path).run(None, feed)[0], expected, rtol=1e-5, atol=1e-5)


def test_nothing_is_written_when_something_failed(plugin, mlp, tmp_path):
    result = graphopt.optimize(mlp, "crash,keeps-its-word", output=tmp_path / "out.onnx", keep_slower=True)
    assert not result.passed
    assert result.path is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlp.onnx", "site"]
    assert result.model is not None


def test_the_traceback_is_kept_for_debug(plugin, mlp):
    result = graphopt.optimize(mlp, "crash")
    assert "ZeroDivisionError" in result.passes[-1].traceback


def test_ctrl_c_passes_through_and_leaves_nothing(plugin, mlp, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        graphopt.optimize(mlp, "interrupted", output=tmp_path / "out.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlp.onnx", "site"]


def test_a_pass_with_nothing_to_do_is_unchanged_and_says_why(plugin, mlp):
    result = graphopt.optimize(mlp, "nothing-to-do")
    item = result.passes[-1]
    assert result.passed
    assert item.status is Status.UNCHANGED
    assert item.declined[0].reason == "nothing of interest"
    assert item.notes == ["looked everywhere"]


def test_slower_and_no_smaller_is_rolled_back_without_failing(plugin, mlp):
    result = graphopt.optimize(mlp, "slow")
    item = result.passes[-1]
    assert result.passed
    assert (item.status, item.cause) == (Status.ROLLED_BACK, Cause.SLOWER)
    assert graphopt.optimize(mlp, "slow", keep_slower=True).passes[-1].status is Status.APPLIED


def test_slower_here_is_no_reason_for_another_machine(plugin, mlp):
    result = graphopt.optimize(mlp, "slow", target="qnn", max_latency_ratio=0.01)
    item = result.passes[-1]
    assert result.passed and item.status is Status.APPLIED and item.cause is None
    assert any("which says nothing about qnn" in note for note in item.notes)
    assert any("written for qnn" in note for note in result.notes)
    assert any("not judged: latency of at most 0.01 x" in note for note in result.notes)


def test_back_off_bisects_to_a_weaker_strength(plugin, mlp):
    result = graphopt.optimize(mlp, "noise(amount=1.0)", min_cosine=0.999, keep_slower=True)  # timing is not asked
    item = result.passes[-1]
    assert item.status is Status.BACKED_OFF
    assert result.passed
    assert 0 < item.resolved["amount"] < 1.0
    assert [t.value for t in item.tries][:2] == [1.0, 0.5]
    assert result.recipe.passes[-1].params == item.resolved
    assert item.fidelity.min_cosine >= 0.999


def test_back_off_gives_up_when_nothing_is_acceptable(plugin, mlp):
    result = graphopt.optimize(mlp, "noise(amount=1.0)", min_cosine=1.0)
    item = result.passes[-1]
    assert (item.status, item.cause) == (Status.ROLLED_BACK, Cause.GUARD)
    assert not result.passed


def test_exact_after_lossy_is_held_to_the_model_before_it(plugin, mlp):
    """A rewrite after a lossy pass cannot match the original; it must match what it rewrites."""
    result = graphopt.optimize(mlp, "noise(amount=0.05),keeps-its-word", keep_slower=True)
    assert result.passed
    assert [item.status for item in result.passes[-2:]] == [Status.APPLIED, Status.APPLIED]
    refused = graphopt.optimize(mlp, "noise(amount=0.05),slightly-wrong", keep_slower=True)
    assert refused.passes[-1].cause is Cause.GUARD


def test_skipped_steps_do_not_run(plugin, mlp):
    result = graphopt.optimize(mlp, {"passes": [{"name": "crash", "skip": "failed"}, "nothing-to-do"]})
    assert result.passed
    assert [item.status for item in result.passes[-2:]] == [Status.SKIPPED, Status.UNCHANGED]


def test_dry_run_plans_and_writes_nothing(plugin, mlp, tmp_path):
    result = graphopt.optimize(mlp, "keeps-its-word", output=tmp_path / "out.onnx", dry_run=True)
    assert result.passes[-1].status is Status.PLANNED
    assert len(result.passes[-1].changes) == 1
    assert not (tmp_path / "out.onnx").exists()


def test_a_model_in_memory_is_not_edited(plugin, mlp):
    model = open_model(mlp)
    before = digest(model)
    result = graphopt.optimize(model, "noise(amount=0.01)")
    assert digest(model) == before
    assert digest(result.model) != before


def test_a_metric_decides_instead_of_the_default_cosine(plugin, mlp):
    def constant(run):
        run({"x": np.zeros((1, 32), np.float32)})
        return 1.0

    kept = graphopt.optimize(mlp, "noise(amount=1.0)", metric=constant)
    assert kept.passes[-1].status is Status.APPLIED
    assert kept.fidelity.metric == 1.0

    calls = []

    def falling(run):
        calls.append(run)
        return 10.0 - len(calls)

    refused = graphopt.optimize(mlp, "noise(amount=0.001)", metric=falling, max_drop=0.5)
    assert refused.passes[-1].cause is Cause.GUARD
    assert "the metric fell from 9.0000" in refused.passes[-1].reason


def test_targets_are_checked_at_the_end(plugin, mlp, tmp_path):
    result = graphopt.optimize(mlp, "nothing-to-do", output=tmp_path / "o.onnx", max_megabytes=0.001)
    assert not result.passed
    assert "target missed" in result.reasons[0]
    assert not (tmp_path / "o.onnx").exists()
