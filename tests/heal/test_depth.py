"""Layers left out while a model trains: which, when, and that the model can lose them afterwards."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from graphopt.analysis.view import GraphView
from graphopt.autograd import to_torch
from graphopt.heal.depth import LayerDropout
from graphopt.heal.taps import Kind, Tap, trunk_taps
from graphopt.passes.heal import Heal
from graphopt.runtime.session import Session
from tests.heal.models import WIDTH, Inputs, damaged, distance, healed, perceptron, shortened, tower

FEED = {"x": np.random.default_rng(3).standard_normal((5, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("skipped", [(), ("layers.0",), ("layers.1", "layers.2"), ("layers.3", "layers.0")])
def test_a_run_that_skips_layers_computes_the_model_without_them(skipped: tuple[str, ...]) -> None:
    model = tower()
    found = to_torch(model)(FEED, ["y"], LayerDropout(model, 0.5, 0).replacements(skipped))
    expected = Session(shortened(model, *skipped) if skipped else model).run(FEED)["y"]
    assert np.allclose(found["y"].detach().numpy(), expected, atol=1e-5)


def test_layers_go_by_chance_as_often_as_asked_and_one_always_stays() -> None:
    depth = LayerDropout(tower(), 0.3, seed=1)
    draws = [depth.draw(number) for number in range(2000)]
    for name in ("layers.0", "layers.1", "layers.2", "layers.3"):
        assert abs(np.mean([name in draw for draw in draws]) - 0.3) < 0.04
    most = LayerDropout(tower(), 0.99, seed=1)
    assert max(len(most.draw(number)) for number in range(50)) == 3
    again, other = LayerDropout(tower(), 0.3, seed=1), LayerDropout(tower(), 0.3, seed=2)
    assert draws == [again.draw(number) for number in range(2000)]
    assert draws != [other.draw(number) for number in range(2000)]


def test_what_a_skipped_layer_is_given_is_no_hint() -> None:
    model = tower()
    taps = [*trunk_taps(model, model), Tap("y", "y", "y", Kind.NUMBERS), Tap("a2", "a2", "a2", Kind.ATTENTION)]
    depth = LayerDropout(model, 0.5, 0)
    assert [tap.student for tap in depth.reached(taps, ())] == ["out0", "out1", "out2", "y", "a2"]
    assert [tap.student for tap in depth.reached(taps, ["layers.2"])] == ["out0", "out2", "y"]


def test_a_model_healed_with_layers_left_out_can_lose_them() -> None:
    original = tower()
    context, student = Inputs(original), damaged(original, noise=0.05)
    plain = healed(student, context, budget="120steps")
    robust = healed(student, context, budget="120steps", layer_dropout=0.3)
    depths = [("layers.1",), ("layers.2",), ("layers.0", "layers.2")]
    without = {id(m): [distance(original, shortened(m, *gone), context) for gone in depths] for m in (plain, robust)}
    assert all(b < 0.7 * a for a, b in zip(without[id(plain)], without[id(robust)], strict=True))
    assert distance(original, robust, context) < distance(original, student, context)


def test_a_model_teaches_its_own_shallower_versions() -> None:
    original = tower()
    context = Inputs(original)
    alone = Heal(budget="20steps").plan(GraphView(original), context)
    assert alone.empty  # a model is as near to itself as can be
    taught = healed(original, context, budget="120steps", layer_dropout=0.3)
    for gone in ("layers.1", "layers.2"):
        before, after = (distance(original, shortened(model, gone), context) for model in (original, taught))
        assert after < 0.5 * before


def test_a_model_without_layers_says_that_none_is_left_out() -> None:
    original = perceptron()
    plan = Heal(budget="5steps", layer_dropout=0.5).plan(GraphView(damaged(original)), Inputs(original))
    assert any("no layer is left out" in note for note in plan.notes)
