"""Steps along the best trade-offs: no choice of forms beats them at the damage they end at."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.mixing.frontier import Option, steps


def test_steepest_first_and_only_along_the_hull() -> None:
    options = {
        "a": [Option("half", 1.0, 0.1), Option("eighth", 2.0, 2.0), Option("quarter", 1.8, 0.3)],
        "b": [Option("half", 1.0, 1.0), Option("quarter", 3.0, 2.0)],  # half is below the line to quarter
    }
    taken = [(s.group, s.form) for s in steps(options)]
    assert taken == [("a", "half"), ("a", "quarter"), ("b", "quarter"), ("a", "eighth")]
    assert sum(s.gain for s in steps(options)) == pytest.approx(5.0)


def test_what_gains_nothing_is_no_step() -> None:
    assert steps({"a": [Option("slower", -1.0, 0.1), Option("same", 0.0, 0.0)]}) == []


def test_a_free_gain_comes_first_and_more_gain_for_less_damage_replaces_it() -> None:
    found = steps({"a": [Option("free", 1.0, 0.0)], "b": [Option("worse", 1.0, 0.5), Option("better", 2.0, 0.4)]})
    assert [(s.group, s.form) for s in found] == [("a", "free"), ("b", "better")]


@pytest.mark.parametrize("seed", range(20))
def test_no_other_choice_gains_more_for_the_same_damage(seed: int) -> None:
    rng = np.random.default_rng(seed)
    options = {
        str(group): [Option(str(f), float(rng.uniform(-0.2, 1)), float(rng.uniform(0.01, 1))) for f in range(3)]
        for group in range(4)
    }
    choices = [
        (sum(o.gain for o in chosen if o), sum(o.damage for o in chosen if o))
        for chosen in itertools.product(*([None, *listed] for listed in options.values()))
    ]
    gain = damage = 0.0
    path = steps(options)
    assert path
    for step in path:
        gain, damage = gain + step.gain, damage + step.damage
        assert max(g for g, d in choices if d <= damage + 1e-9) <= gain + 1e-9
