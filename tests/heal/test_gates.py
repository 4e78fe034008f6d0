"""Gate gradients: what they estimate, and criteria that rank by them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from graphopt.analysis.view import GraphView
from graphopt.heal.gates import gate_gradients
from graphopt.heal.hard_concrete import open_shares
from graphopt.importance import Evidence, collect_moments, consumers, fisher, l0, taylor
from graphopt.passes.prune import PruneNeurons
from tests.heal.models import HIDDEN, Inputs, perceptron


def quiet(model: ir.Model, units: list[int]) -> ir.Model:
    """The rows of some hidden units made small: nothing feels them."""
    value = model.graph.initializers["V"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[units] *= 1e-3
    value.const_value = ir.tensor(array, name="V")
    return model


@pytest.mark.parametrize("last", ["", "Softmax"])
@pytest.mark.parametrize("criterion", [fisher, taylor])
def test_units_that_nothing_feels_go_first(last: str, criterion) -> None:  # type: ignore[no-untyped-def]
    silent = [3, 7, 11, 20]
    model = quiet(perceptron(last=last), silent)
    (group,) = GraphView(model).axes.by_role("neurons")
    gradients = gate_gradients(model, Inputs(model), [group])
    assert gradients[group.name].shape[1] == HIDDEN
    curve = criterion(group, Evidence(gradients=gradients))
    assert sorted(curve.order[: len(silent)].tolist()) == silent
    assert (np.diff(curve.damage) >= 0).all()


def test_the_square_estimates_how_far_the_outputs_move() -> None:
    """For outputs of a fixed size, E[g^2] is the squared length of d(output)/d(gate): here there is a formula."""
    model = perceptron()
    (group,) = GraphView(model).axes.by_role("neurons")
    context = Inputs(model, batches=240, rows=32)
    gradients = gate_gradients(model, context, [group], samples=100_000)[group.name]
    weights = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]
    x = np.concatenate([feed["x"] for feed in context.splits["calibration"]])
    a = np.tanh(x @ weights["W"] + weights["b"])
    sizes = np.linalg.norm(a @ weights["V"], axis=1, keepdims=True)
    expected = ((a / sizes) ** 2).mean(axis=0) * (weights["V"] ** 2).sum(axis=1)
    assert np.corrcoef(np.square(gradients).mean(axis=0), expected)[0, 1] > 0.9


@pytest.mark.parametrize("criterion", ["fisher", "taylor"])
def test_prune_takes_the_units_that_nothing_feels(criterion: str) -> None:
    silent = [1, 2, 5, 8, 13, 21]
    model = quiet(perceptron(), silent)
    step = PruneNeurons(ratio=0.25, criterion=criterion, round_to=1, refit=False)
    plan = step.plan(GraphView(model), Inputs(model))
    (removed,) = plan.payload.removal.values()
    assert removed.tolist() == silent


def test_trained_gates_close_where_nothing_is_lost_and_the_price_is_met() -> None:
    silent = [0, 4, 9, 15, 16, 23]
    model = quiet(perceptron(), silent)
    (group,) = GraphView(model).axes.by_role("neurons")
    shares = open_shares(model, Inputs(model), [group], removed=0.25)[group.name]
    loud = np.setdiff1d(np.arange(HIDDEN), silent)
    assert shares.shape == (HIDDEN,)
    assert shares[silent].max() < shares[loud].min()
    assert abs(shares.mean() - 0.75) < 1e-3
    assert len(np.unique(shares)) == HIDDEN  # those that close are in an order, too
    assert sorted(l0(group, Evidence(open_shares={group.name: shares})).order[: len(silent)].tolist()) == silent
    again = open_shares(model, Inputs(model), [group], removed=0.25)[group.name]
    assert np.array_equal(shares, again)


def test_a_unit_that_never_changes_closes_where_its_mean_stays() -> None:
    model = perceptron()
    for name, index, number in (("W", (slice(None), 5), 0.0), ("b", 5, 1.5), ("V", 5, 1.0)):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        array[index] = number
        value.const_value = ir.tensor(array, name=name)
    context = Inputs(model)
    (group,) = GraphView(model).axes.by_role("neurons")
    moments = collect_moments(model, context, [consumer.lowering for consumer in consumers(group)])
    means = {source: found.mean for source, found in moments.items()}
    kept = open_shares(model, context, [group], removed=0.25, closed=means)[group.name]
    lost = open_shares(model, context, [group], removed=0.25)[group.name]
    assert kept[5] == kept.min()
    assert lost[5] > 0.9


def test_prune_by_trained_gates() -> None:
    silent = [1, 2, 5, 8, 13, 21]
    model = quiet(perceptron(), silent)
    step = PruneNeurons(ratio=0.25, criterion="l0", round_to=1, refit=False)
    plan = step.plan(GraphView(model), Inputs(model))
    (removed,) = plan.payload.removal.values()
    assert len(set(removed.tolist()) & set(silent)) >= 5  # a unit that is hardly felt may close before the last of them
