"""Budgets and the learning rate's course."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from graphopt.errors import UsageError
from graphopt.heal.budget import Budget, learning_rate
from graphopt.heal.lessons import Lesson, curriculum, gather


@pytest.mark.parametrize(
    ("text", "steps", "seconds"),
    [("5m", None, 300.0), ("90s", None, 90.0), ("1h", None, 3600.0), ("0.5m", None, 30.0), ("300steps", 300, None)],
)
def test_forms(text: str, steps: int | None, seconds: float | None) -> None:
    assert Budget.parse(text) == Budget(steps, seconds)


@pytest.mark.parametrize("text", ["", "5", "m", "0s", "-1m", "1.5steps", "5 days"])
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"write 5m, 90s, 1h or 300steps|steps are whole"):
        Budget.parse(text)


def test_the_rate_rises_to_the_peak_and_falls_to_nothing() -> None:
    rates = [learning_rate(step, 100, 1.0, 0.1) for step in range(100)]
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 1e-3
    assert learning_rate(0, 1, 1.0, 0.1) == 1.0


def lesson(rows: int) -> Lesson:
    return Lesson({"x": np.zeros((rows, 2), np.float32)}, {}, rows)


def test_steps_hold_enough_samples_and_an_epoch_holds_all() -> None:
    lessons = [lesson(rows) for rows in (1, 2, 8, 3, 5, 1, 1, 4)]
    order = curriculum(lessons, 6, seed=3)
    seen: list[int] = []
    while len(seen) < len(lessons):
        step = next(order)
        seen += step
        assert sum(lessons[i].rows for i in step) >= 6 or len(seen) == len(lessons)
    assert sorted(seen) == list(range(len(lessons)))
    again = list(itertools.islice(curriculum(lessons, 6, seed=3), 9))
    assert again == list(itertools.islice(curriculum(lessons, 6, seed=3), 9))
    assert again != list(itertools.islice(curriculum(lessons, 6, seed=4), 9))


def test_inputs_beyond_the_memory_are_left_out_and_said() -> None:
    pairs = [({"x": np.zeros((4, 8), np.float32)}, {"y": np.zeros((4, 2), np.float32)}) for _ in range(5)]
    lessons, cut = gather(pairs, most=2 * 160)
    assert (len(lessons), cut) == (2, True)
    lessons, cut = gather(pairs, most=10 * 160)
    assert (len(lessons), cut) == (5, False)


def test_no_lesson_has_more_samples_than_a_step() -> None:
    numbers = np.arange(20, dtype=np.float32).reshape(10, 2)
    lessons, _ = gather([({"x": numbers}, {"y": -numbers})], most=1 << 20, rows=4)
    assert [lesson.rows for lesson in lessons] == [4, 4, 2]
    for name, factor in (("x", 1), ("y", -1)):
        parts = [(lesson.inputs if name == "x" else lesson.targets)[name] for lesson in lessons]
        assert np.array_equal(np.concatenate(parts), factor * numbers)
    whole, _ = gather([({"x": numbers}, {"y": np.float32(1.0)})], most=1 << 20, rows=4)  # which row is its?
    assert [lesson.rows for lesson in whole] == [10]
