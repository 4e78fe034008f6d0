"""Refit against plain least squares, and where a patch lands."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.editing import GraphEditor
from graphopt.importance import collect_moments, consumers
from graphopt.lowering import Lowering
from graphopt.model import clone_model, signature
from graphopt.refit import (
    Pairs,
    Patch,
    Site,
    apply_patch,
    gather_pairs,
    refit_from_moments,
    refit_sites,
    solve,
)
from graphopt.slicing import slice_units
from tests.axis_cases import CASES, HIDDEN, eager, gemm, mlp
from tests.axis_models import analyse, distance, feeds, outputs, rebuilt, set_tensor, text_model
from tests.fake_context import FakeContext


def problem(rows: int = 60, width: int = 5, out: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Pairs]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, width)) + 1
    y = x @ rng.standard_normal((width, out)) + rng.standard_normal((rows, out)) + 3
    x, y = x.astype(np.float32), y.astype(np.float32)
    pairs = Pairs(width, out)
    for part in np.split(np.arange(rows), 6):
        pairs.add(x[part][None], y[part][None])
    return x.astype(np.float64), y.astype(np.float64), pairs


# -- the solver ------------------------------------------------------------------------------------
def test_a_vanishing_ridge_is_least_squares():
    x, y, pairs = problem()
    found = solve(pairs, np.zeros((5, 3)), 1e-12)
    wanted = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    np.testing.assert_allclose(found, wanted[:-1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(pairs.shift(found), wanted[-1], rtol=1e-4, atol=1e-4)


def test_a_ridge_pulls_towards_the_start():
    x, y, pairs = problem()
    start = np.random.default_rng(1).standard_normal((5, 3))
    strength = 0.3 * np.trace(np.cov(x.T, bias=True)) / 5
    xc, yc = x - x.mean(axis=0), y - y.mean(axis=0)
    wanted = np.linalg.solve(xc.T @ xc / len(x) + strength * np.eye(5), xc.T @ yc / len(x) + strength * start)
    np.testing.assert_allclose(solve(pairs, start, 0.3), wanted, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(solve(pairs, start, 1e9), start, atol=1e-4)


def test_the_error_is_the_direct_one():
    x, y, pairs = problem()
    rng = np.random.default_rng(2)
    W, b = rng.standard_normal((5, 3)), rng.standard_normal(3)
    direct = ((x @ W + b - y) ** 2).sum(axis=1).mean()
    assert pairs.error(W, b) == pytest.approx(direct, rel=1e-4)
    assert pairs.error(W, pairs.shift(W)) < pairs.error(W, np.zeros(3))


def test_the_mean_fold_is_right_on_average():
    x, y, pairs = problem()
    W = np.random.default_rng(3).standard_normal((5, 3))
    np.testing.assert_allclose((x @ W + pairs.shift(W)).mean(axis=0), y.mean(axis=0), rtol=1e-4)


def test_refit_from_moments_is_least_squares_on_the_unpruned_inputs():
    model = mlp()
    group = analyse(model).prunable[0]
    (consumer,) = consumers(group)
    ctx = FakeContext(model, feeds=60)
    moments = collect_moments(model, ctx, [consumer.lowering])
    patch = refit_from_moments(consumer, moments[consumer.lowering.source], np.array([2, 7]))
    x = np.concatenate([b["a"].reshape(-1, 16) for b in ctx.observe(model, ["a"])]).astype(np.float64)
    kept = np.setdiff1d(np.arange(16), [2, 7])
    y = x @ consumer.matrix()
    design = np.column_stack([x[:, kept], np.ones(len(x))])
    best = ((design @ np.linalg.lstsq(design, y, rcond=None)[0] - y) ** 2).sum()
    assert patch.weight is not None
    found = ((x[:, kept] @ patch.weight + patch.shift - y) ** 2).sum()
    plain = ((x[:, kept] @ consumer.matrix()[kept] - y) ** 2).sum()
    assert best <= found <= 1.02 * best < plain


# -- targets ---------------------------------------------------------------------------------------
def residual() -> ir.Model:
    body = """h = MatMul(x, W1)
        a = Relu(h)
        o = MatMul(a, W2)
        ob = Add(o, b2)
        r = Add(ob, x)
        h2 = MatMul(r, W3)
        a2 = Relu(h2)
        p = MatMul(a2, W4)
        y = Add(r, p)"""
    return text_model(HIDDEN, "W1[8,16] W2[16,8] b2[8] W3[8,12] W4[12,8]", body)


def site(model: ir.Model, output: str) -> Site:
    lowering = Lowering.of(node(model, output))
    assert lowering is not None
    return Site.of(lowering)


def node(model: ir.Model, output: str) -> ir.Node:
    return next(n for n in model.graph if n.outputs[0].name == output)


def test_sites_know_the_stream_they_join():
    model = residual()
    assert site(model, "o").skip == "x"
    assert site(model, "p").skip == "r"
    assert site(mlp(), "o").skip is None
    assert site(gemm(), "y").adds and not site(model, "o").adds


def test_the_target_makes_up_for_the_streams_own_error():
    model = residual()
    ctx = FakeContext(model)
    sliced = rebuilt(model, {"neurons.1": [0, 1, 2, 3]}, slice_units)
    fit, judge = gather_pairs(model, sliced, ctx, site(model, "p"))
    assert 0 < judge.count < fit.count
    pairs = fit + judge
    total, count = np.zeros(8), 0
    for before, after in zip(ctx.observe(model, ["p", "r"]), ctx.observe(sliced, ["r"]), strict=True):
        target = before["p"] + before["r"] - after["r"]
        total, count = total + target.reshape(-1, 8).sum(axis=0), count + target[..., 0].size
    assert pairs.count == count
    np.testing.assert_allclose(pairs.y, total, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("build", [mlp, gemm, eager], ids=lambda b: b.__name__)
def test_the_untouched_model_needs_no_patch(build):
    """What a Gemm adds is not part of the target: weight and bias of the original already fit."""
    model = build()
    ctx = FakeContext(model)
    (consumer,) = consumers(analyse(model).prunable[0])
    fit, judge = gather_pairs(model, model, ctx, Site.of(consumer.lowering))
    pairs = fit + judge
    scale = pairs.yy / pairs.count
    assert pairs.error(consumer.matrix(), np.zeros(consumer.matrix().shape[1])) <= 1e-5 * scale
    np.testing.assert_allclose(pairs.shift(consumer.matrix()), 0, atol=1e-4)


# -- patching --------------------------------------------------------------------------------------
def shifted(model: ir.Model, output: str, weight: np.ndarray | None = None) -> tuple[ir.Model, np.ndarray]:
    shift = np.arange(1.0, 1 + model.graph.outputs[0].shape[-1])  # type: ignore[index]
    clone = clone_model(model)
    apply_patch(GraphEditor(clone), Patch(node(model, output).name or "", weight, shift, "test"))
    return clone, shift


def check_shift(model: ir.Model, output: str, nodes: int) -> ir.Model:
    clone, shift = shifted(model, output)
    fed = feeds(model)
    wanted = [array + shift.astype(np.float32) for array in outputs(model, fed)]
    assert distance(wanted, outputs(clone, fed)) < 1e-5
    assert len(list(clone.graph)) == len(list(model.graph)) + nodes
    assert signature(clone) == signature(model)
    return clone


def test_a_shift_goes_into_the_bias_that_is_added():
    clone = check_shift(mlp(), "o", 0)
    assert list(clone.graph.initializers) == list(mlp().graph.initializers)


def test_a_shift_goes_into_a_gemms_third_operand_by_its_beta():
    check_shift(gemm(), "y", 0)


def test_a_shift_without_a_bias_is_a_new_add_before_all_readers():
    body = (
        "h = MatMul(x, W1)\na = Relu(h)\no = MatMul(a, W2)\nn = Identity(o)\nm = Neg(o)\nd = Add(m, n)\ny = Add(d, o)"
    )
    clone, shift = shifted(text_model(HIDDEN, "W1[8,6] W2[6,8]", body), "o")
    fed = feeds(clone)
    model = text_model(HIDDEN, "W1[8,6] W2[6,8]", body)
    wanted = [array + shift.astype(np.float32) for array in outputs(model, fed)]
    assert distance(wanted, outputs(clone, fed)) < 1e-5


def test_a_shift_of_a_graph_output_keeps_its_name():
    body = "h = MatMul(x, W1)\na = Relu(h)\ny = MatMul(a, W2)"
    check_shift(text_model(HIDDEN, "W1[8,6] W2[6,8]", body), "y", 1)


def test_a_shift_of_a_gemm_whose_bias_is_switched_off():
    body = "h = MatMul(x, W1)\na = Relu(h)\ny = Gemm <beta = 0.0> (a, W2, c)"
    check_shift(text_model("(float[B,8] x) => (float[B,8] y)", "W1[8,6] W2[6,8] c[8]", body), "y", 1)


def test_a_bias_that_others_read_is_copied():
    body = "h = MatMul(x, W1)\na = Relu(h)\no = MatMul(a, W2)\ns = Add(o, b)\ny = Mul(s, b)"
    model = text_model(HIDDEN, "W1[8,6] W2[6,8] b[8]", body)
    clone, _ = shifted(model, "o")
    kept, original = (m.graph.initializers["b"].const_value.numpy() for m in (clone, model))  # type: ignore[union-attr]
    np.testing.assert_array_equal(kept, original)


@pytest.mark.parametrize("build", CASES, ids=lambda b: b.__name__)
def test_writing_back_the_same_weight_changes_nothing(build):
    model = build()
    fed = feeds(model)
    for group in analyse(model).prunable:
        for consumer in consumers(group):
            clone = clone_model(model)
            width = consumer.matrix().shape[1]
            apply_patch(GraphEditor(clone), Patch(consumer.node.name or "", consumer.matrix(), np.zeros(width), "test"))
            assert distance(outputs(model, fed), outputs(clone, fed)) < 1e-6


# -- together --------------------------------------------------------------------------------------
def doubled(build) -> ir.Model:  # type: ignore[no-untyped-def]
    """Neurons 8 to 15 repeat 0 to 7, with other weights behind them."""
    model = build()
    for name, value in list(model.graph.initializers.items()):
        array = value.const_value.numpy().copy()
        if name in ("W1", "b1"):
            axis = array.shape.index(16)
            np.moveaxis(array, axis, 0)[8:] = np.moveaxis(array, axis, 0)[:8]
            set_tensor(model, name, array)
    return model


@pytest.mark.parametrize("build", [mlp, gemm], ids=lambda b: b.__name__)
def test_copies_go_without_loss(build):
    model = doubled(build)
    ctx = FakeContext(model, feeds=60)
    name = next(g.name for g in analyse(model).prunable)
    sliced = rebuilt(model, {name: list(range(8, 16))}, slice_units)
    fed = feeds(model)
    assert distance(outputs(model, fed), outputs(sliced, fed)) > 0.1
    (consumer,) = consumers(analyse(model).prunable[0])
    refit = refit_sites(model, sliced, ctx, [Site.of(consumer.lowering)])
    assert [p.method[:5] for p in refit.patches] == ["refit"] and not refit.left
    assert refit.divergence[1] < refit.divergence[0] and refit.patches[0].errors[1] < refit.patches[0].errors[0]
    assert distance(outputs(model, fed), outputs(sliced, fed)) < 1e-3
    assert ctx.divergence(sliced) < 1e-4
    # applying the patches to the bare slice gives the same model
    again = rebuilt(model, {name: list(range(8, 16))}, slice_units)
    for patch in refit.patches:
        apply_patch(GraphEditor(again), patch)
    assert distance(outputs(sliced, fed), outputs(again, fed)) == 0


def test_without_refit_only_means_are_folded():
    model = doubled(mlp)
    sliced = rebuilt(model, {next(g.name for g in analyse(model).prunable): [1, 2, 3]}, slice_units)
    refit = refit_sites(model, sliced, FakeContext(model), [site(model, "o")], refit=False)
    assert [p.method for p in refit.patches] == ["mean fold"]


def test_what_makes_the_outputs_worse_is_dropped():
    class Contrary(FakeContext):
        calls = 0

        def divergence(self, model: ir.Model, *, limit: int | None = None) -> float:
            self.calls += 1
            return float(self.calls)

    model = doubled(mlp)
    name = next(g.name for g in analyse(model).prunable)
    sliced = rebuilt(model, {name: [1, 2, 3]}, slice_units)
    before = outputs(sliced, feeds(model))
    refit = refit_sites(model, sliced, Contrary(model), [site(model, "o")])
    ((left, reason),) = refit.left
    assert refit.patches == () and left == "MatMul_o"
    assert reason == "refit dropped: all together moved the outputs' divergence from 1.0000 to 2.0000"
    assert distance(before, outputs(sliced, feeds(model))) == 0
