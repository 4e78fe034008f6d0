"""Rankings against brute force, and the allocation of a budget against every other one."""

from __future__ import annotations

import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.budget import Saved, allocate, removal_stops
from graphopt.errors import PassError
from graphopt.importance import (
    Curve,
    Evidence,
    Moments,
    activation,
    collect_moments,
    consumers,
    magnitude,
    reconstruction,
    ridged,
)
from graphopt.lowering import Lowering
from tests.axis_cases import CASES, HIDDEN, eager, gemm, mlp
from tests.axis_models import analyse, set_tensor, text_model
from tests.fake_context import FakeContext


def test_moments_stream_to_what_they_are_at_once():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((7, 5, 3)) + 2
    moments = Moments(3)
    for part in rows:
        moments.add(part)
    flat = rows.reshape(-1, 3)
    assert moments.count == 35
    np.testing.assert_allclose(moments.mean, flat.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.covariance(), np.cov(flat.T, bias=True), rtol=1e-4, atol=1e-5)


def lowerings(model: ir.Model) -> list[Lowering]:
    return [found for node in model.graph if (found := Lowering.of(node)) is not None]


def test_moments_of_values_inside_a_model():
    model = mlp()
    ctx = FakeContext(model)
    found = collect_moments(model, ctx, lowerings(model))
    batches = np.concatenate([b["a"].reshape(-1, 16) for b in ctx.observe(model, ["a"])])
    np.testing.assert_allclose(found["a", -1].mean, batches.mean(axis=0), rtol=1e-5)
    assert set(found) == {("x", -1), ("a", -1)}


# -- consumers -------------------------------------------------------------------------------------
def test_consumers_read_the_weight_as_it_multiplies():
    model = gemm()
    (consumer,) = consumers(analyse(model).prunable[0])
    assert (consumer.lowering.activation, consumer.lowering.output) == ("a", "y")
    np.testing.assert_allclose(consumer.matrix(), model.graph.initializers["W2"].const_value.numpy(), rtol=1e-6)  # type: ignore[union-attr]

    body = "h = MatMul(x, W1)\na = Relu(h)\ny = com.microsoft.FusedMatMul <transB = 1, alpha = 0.5> (a, W2)"
    model = text_model(HIDDEN, "W1[8,6] W2[8,6]", body)
    (consumer,) = consumers(analyse(model).prunable[0])
    stored = model.graph.initializers["W2"].const_value.numpy()  # type: ignore[union-attr]
    np.testing.assert_allclose(consumer.matrix(), 0.5 * stored.T, rtol=1e-6)


def test_consumers_of_heads_are_the_output_projections():
    heads, dims, values = analyse(eager()).prunable
    assert [c.node.outputs[0].name for c in consumers(heads)] == ["o"]
    assert consumers(heads)[0].units.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert consumers(values)[0].units.tolist() == [0, 1, 2, 3] * 3
    assert consumers(dims) == []


# -- criteria --------------------------------------------------------------------------------------
def setting(model):
    group = next(g for g in analyse(model).prunable)
    ctx = FakeContext(model)
    return group, Evidence(collect_moments(model, ctx, [c.lowering for c in consumers(group)]))


@pytest.mark.parametrize("criterion", [magnitude, activation, reconstruction])
@pytest.mark.parametrize("build", [mlp, eager, gemm], ids=lambda b: b.__name__)
def test_every_criterion_orders_all_units_and_never_falls(build, criterion):
    group, evidence = setting(build())
    curve = criterion(group, evidence)
    assert sorted(curve.order.tolist()) == list(range(group.size))
    assert len(curve.damage) == group.size + 1 and curve.damage[0] == 0
    assert np.all(np.diff(curve.damage) >= 0)


def test_magnitude_is_the_share_of_squared_norm():
    group, _ = setting(mlp())
    weights = {t.name: t.value.const_value.numpy() for t in group.touches}  # type: ignore[union-attr]
    columns = (weights["W1"] ** 2).sum(axis=0)
    rows = (weights["W2"] ** 2).sum(axis=1)
    wanted = (columns / columns.sum() + rows / rows.sum()) / 2
    curve = magnitude(group, Evidence())
    np.testing.assert_allclose(np.diff(curve.damage), np.sort(wanted), rtol=1e-6)
    assert curve.order.tolist() == np.argsort(wanted).tolist()


def test_activation_is_the_energy_of_a_units_own_contribution():
    group, evidence = setting(eager())
    (consumer,) = consumers(group)
    cov, W = evidence.moments[consumer.lowering.source].covariance(), consumer.matrix()
    own = []
    for unit in range(group.size):
        rows = consumer.units == unit
        own.append(np.trace(W[rows].T @ cov[np.ix_(rows, rows)] @ W[rows]))
    wanted = np.array(own) / np.trace(W.T @ cov @ W)
    curve = activation(group, evidence)
    np.testing.assert_allclose(np.diff(curve.damage), np.sort(wanted), rtol=1e-6)


def lost(cov: np.ndarray, W: np.ndarray, gone: np.ndarray) -> float:
    """Energy that no refit of the other rows brings back: the Schur complement of what stays."""
    kept = ~gone
    if not gone.any():
        return 0.0
    rest = cov[np.ix_(gone, gone)]
    if kept.any():
        rest = rest - cov[np.ix_(gone, kept)] @ np.linalg.solve(cov[np.ix_(kept, kept)], cov[np.ix_(kept, gone)])
    return float(np.trace(W[gone].T @ rest @ W[gone]))


@pytest.mark.parametrize("build", [mlp, eager, gemm], ids=lambda b: b.__name__)
def test_reconstruction_is_greedy_least_squares(build):
    group, evidence = setting(build())
    (consumer,) = consumers(group)
    moment, W = evidence.moments[consumer.lowering.source], consumer.matrix()
    energy = np.trace(W.T @ moment.covariance() @ W)
    cov = ridged(moment.covariance(), moment.count)
    curve = reconstruction(group, evidence)
    removed: list[int] = []
    for n, unit in enumerate(curve.order[:-1]):
        left = [u for u in range(group.size) if u not in removed]
        costs = {u: lost(cov, W, np.isin(consumer.units, [*removed, u])) for u in left}
        assert costs[int(unit)] == pytest.approx(min(costs.values()), rel=1e-6)
        removed.append(int(unit))
        assert curve.damage[n + 1] == pytest.approx(costs[int(unit)] / energy, rel=1e-5, abs=1e-9)


def test_reconstruction_sees_that_a_copy_is_free():
    model = mlp()
    for name, axis in (("W1", 1), ("b1", 0)):
        array = model.graph.initializers[name].const_value.numpy().copy()  # type: ignore[union-attr]
        np.moveaxis(array, axis, 0)[8:] = np.moveaxis(array, axis, 0)[:8]
        from tests.axis_models import set_tensor

        set_tensor(model, name, array)
    group, evidence = setting(model)
    curve = reconstruction(group, evidence)
    assert {u % 8 for u in curve.order[8:].tolist()} == set(range(8)), "one of each pair stays"
    assert curve.damage[8] < 0.02 < curve.damage[12]


@pytest.mark.parametrize("build", CASES, ids=lambda b: b.__name__)
def test_magnitude_ranks_every_prunable_group(build):
    for group in analyse(build()).prunable:
        curve = magnitude(group, Evidence())
        assert np.isfinite(curve.damage).all() and len(set(curve.order.tolist())) == group.size


# -- the budget ------------------------------------------------------------------------------------
def by_unit(costs: list[float]) -> Saved:
    return lambda i, counts, n: (n - counts[i]) * costs[i]


def test_removal_stops():
    assert removal_stops(12, 1) == list(range(12))
    assert removal_stops(64, 16) == [0, 16, 32, 48]
    assert removal_stops(60, 16) == [0, 12, 28, 44]
    assert removal_stops(16, 16) == removal_stops(5, 16) == [0]
    assert removal_stops(1, 1) == [0]


def convex(draw) -> Curve:
    size = draw(st.integers(2, 6))
    steps = sorted(draw(st.lists(st.integers(1, 1000), min_size=size, max_size=size, unique=True)))
    return Curve(np.arange(size), np.concatenate([[0], np.cumsum(steps)]).astype(float))


@st.composite
def problems(draw):
    curves = [convex(draw) for _ in range(draw(st.integers(1, 3)))]
    costs = [draw(st.sampled_from((1.0, 2.0, 5.0))) for _ in curves]
    return curves, costs, draw(st.floats(0, 1))


@given(problems())
@settings(max_examples=150, deadline=None)
def test_allocation_is_the_best_of_its_cost_and_near_the_budget(problem):
    curves, costs, ratio = problem
    stops = [removal_stops(len(c.order), 1) for c in curves]
    total = sum(len(c.order) * cost for c, cost in zip(curves, costs, strict=True))
    counts = allocate(curves, costs, by_unit(costs), ratio * total, stops)
    assert all(n < len(c.order) for n, c in zip(counts, curves, strict=True)), "never the last unit"
    spent = sum(n * cost for n, cost in zip(counts, costs, strict=True))
    most = sum(s[-1] * cost for s, cost in zip(stops, costs, strict=True))
    assert abs(spent - min(ratio * total, most)) <= max(costs) / 2 + 1e-9
    damage = sum(c.damage[n] for c, n in zip(curves, counts, strict=True))
    others = itertools.product(*stops)
    for other in others:
        if sum(n * cost for n, cost in zip(other, costs, strict=True)) >= spent:
            assert damage <= sum(c.damage[n] for c, n in zip(curves, other, strict=True)) + 1e-9


@given(problems(), st.sampled_from((2, 3)))
@settings(max_examples=60, deadline=None)
def test_allocation_stops_where_it_may(problem, round_to):
    curves, costs, ratio = problem
    stops = [removal_stops(len(c.order), round_to) for c in curves]
    total = sum(len(c.order) * cost for c, cost in zip(curves, costs, strict=True))
    counts = allocate(curves, costs, by_unit(costs), ratio * total, stops)
    assert all(n in allowed for n, allowed in zip(counts, stops, strict=True))


def test_a_dent_in_a_curve_is_crossed_as_a_whole():
    """Two units are dear together but the third is free: the hull sees a price per unit over all three."""
    dented = Curve(np.arange(4), np.array([0.0, 9.0, 9.0, 9.0, 30.0]))
    plain = Curve(np.arange(4), np.array([0.0, 4.0, 8.0, 12.0, 16.0]))
    stops = [[0, 1, 2, 3]] * 2
    assert allocate([dented, plain], [1.0, 1.0], by_unit([1.0, 1.0]), 3, stops) == [3, 0]
    assert allocate([dented, plain], [1.0, 1.0], by_unit([1.0, 1.0]), 0, stops) == [0, 0]


def test_inputs_that_are_not_finite_are_refused_by_name():
    class Broken(FakeContext):
        def observe(self, model, values, *, split="calibration", limit=None):
            for batch in super().observe(model, values, split=split, limit=limit):
                yield {name: np.full_like(array, np.nan) for name, array in batch.items()}

    model = text_model("(float[B, 4] x) => (float[B, 3] y)", "W[4,3]", "y = MatMul(x, W)")
    with pytest.raises(PassError, match="'x' is not finite on the calibration inputs"):
        collect_moments(model, Broken(model), lowerings(model))


def test_integer_weights_count_by_their_codes():
    """Neurons of an int8 product: the ones whose codes lie nearest to the zero point go first."""
    body = """W = DequantizeLinear(Q, s)
        h = MatMul(x, W)
        a = Relu(h)
        y = MatMul(a, V)"""
    model = text_model("(float[B, 8] x) => (float[B, 4] y)", "Q[8,6] s[] V[6,4]", body)
    codes = np.tile(np.array([3, 90, 1, 60, 120, 30], dtype=np.int8), (8, 1))
    set_tensor(model, "Q", codes)
    set_tensor(model, "s", np.float32(0.01))
    set_tensor(model, "V", np.ones((6, 4), np.float32))
    (group,) = analyse(model).prunable
    assert magnitude(group, Evidence()).order.tolist() == [2, 0, 5, 3, 1, 4]
