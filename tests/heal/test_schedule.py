"""What each step learns from: stages, selected samples; how a time becomes steps; all of it resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

pytest.importorskip("torch")

import torch

from graphopt.analysis.view import GraphView
from graphopt.autograd import to_torch
from graphopt.errors import UsageError
from graphopt.heal import pace, trainer
from graphopt.heal.budget import Budget
from graphopt.heal.lessons import Lesson, hardest
from graphopt.heal.objective import Objective
from graphopt.heal.taps import Kind, Parts, Tap, output_taps
from graphopt.heal.trainer import Settings, Trainer
from graphopt.model import save_model
from graphopt.passes.heal import Heal
from tests.heal.models import WIDTH, Inputs, damaged, distance, healed, perceptron, shortened, tower


def lesson(*numbers: float) -> Lesson:
    column = np.array(numbers, np.float32)[:, None]
    return Lesson({"x": column}, {"y": -column}, len(numbers))


# -- stages -----------------------------------------------------------------------------------------------------------
def test_the_first_steps_learn_from_hints_alone_and_the_others_from_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tower()
    student, context = shortened(original, "layers.1"), Inputs(original)
    seen: list[set[str]] = []
    loss = Trainer._loss

    def noted(self: Trainer, lesson: Lesson, found: object, taps: list[Tap]) -> torch.Tensor:
        if torch.is_grad_enabled():
            seen.append({tap.label for tap in taps})
        return loss(self, lesson, found, taps)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_loss", noted)
    healed(student, context, budget="10steps", batch=16, hint_share=0.3)
    assert seen == [{"out0", "out2"}] * 3 + [{"y"}] * 7


def test_stages_heal_and_need_something_to_start_with() -> None:
    original = tower()
    student, context = shortened(original, "layers.1"), Inputs(original)
    result = healed(student, context, hint_share=0.5)
    assert distance(original, result, context) < 0.2 * distance(original, student, context)
    with pytest.raises(ValidationError, match="hint_share needs hint or attention above 0"):
        Heal(hint_share=0.5, hint=0)
    bare = perceptron()
    plan = Heal(budget="5steps", hint_share=0.5).plan(GraphView(damaged(bare)), Inputs(bare))
    assert any("all steps learn from the outputs" in note for note in plan.notes)


def test_patience_begins_with_the_outputs() -> None:
    original = tower()
    settings = Settings(Budget(steps=100), hint_share=0.5, patience=2)
    tap = Tap("out1", "out1", "out1", Kind.HINT)
    objective = Objective([tap, *output_taps(original, original)], Parts())
    made = Trainer(to_torch(original), [lesson(1.0)], [lesson(1.0)], objective, settings)
    course = trainer.Course(100, {0: 1.0})
    assert [made._hopeless(course, done, 5) for done in (10, 55, 60)] == [False, False, True]


# -- selected samples -------------------------------------------------------------------------------------------------
def test_the_samples_with_the_largest_losses_are_kept() -> None:
    batch, losses = [lesson(1, 2, 3), lesson(4, 5), lesson(6)], [[0.1, 0.9, 0.5], [0.2, 0.3], [0.8]]
    kept = hardest(batch, losses, 0.5)
    assert [(part.inputs["x"].ravel().tolist(), part.targets["y"].ravel().tolist(), part.rows) for part in kept] == [
        ([2.0, 3.0], [-2.0, -3.0], 2), ([6.0], [-6.0], 1),
    ]  # fmt: skip
    assert [part.rows for part in hardest(batch, losses, 0.01)] == [1]
    assert [part.rows for part in hardest(batch, losses, 0.99)] == [3, 2, 1]


@pytest.mark.parametrize("kind", [Kind.LOGITS, Kind.EMBEDDING, Kind.NUMBERS])
def test_each_sample_has_the_loss_that_it_has_alone(kind: Kind) -> None:
    chance = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(4, 6, 3, generator=chance) for _ in range(2))
    mask = (torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]).long()
    objective = Objective([Tap("y", "y", "y", kind), Tap("h", "h", "h", Kind.HINT)], Parts(), mask="mask")
    every = {"y": found, "h": found}, {"y": wanted, "h": wanted}, {"mask": mask}
    losses = objective.by_sample(*every, 4)
    for i, loss in enumerate(losses):
        alone = ({"y": found[i : i + 1]}, {"y": wanted[i : i + 1]}, {"mask": mask[i : i + 1]})
        assert loss == pytest.approx(float(objective(*alone, objective.outputs)), rel=1e-5)
    assert len(set(losses)) == 4
    assert objective.by_sample(*every, 1) == pytest.approx([float(objective(*every, objective.outputs))])


def test_half_the_samples_are_trained_on_and_they_heal(monkeypatch: pytest.MonkeyPatch) -> None:
    original = perceptron()
    student, context = damaged(original), Inputs(original)
    rows: list[int] = []
    loss = Trainer._loss

    def noted(self: Trainer, lesson: Lesson, found: object, taps: list[Tap]) -> torch.Tensor:
        if torch.is_grad_enabled():
            rows.append(lesson.rows)
        return loss(self, lesson, found, taps)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "_loss", noted)
    result = healed(student, context, selective=0.5)
    assert sum(rows) == 150 * 16  # of two lessons of 16 a step
    assert distance(original, result, context) < 0.1 * distance(original, student, context)


def test_samples_that_cannot_be_told_apart_are_not_selected_from() -> None:
    mixed = Lesson({"x": np.zeros((4, WIDTH), np.float32)}, {"y": np.zeros((3, 4, 5), np.float32)}, 4)
    original = perceptron()
    settings = Settings(Budget(steps=1), selective=0.5)
    with pytest.raises(UsageError, match=r"selective=0\.5: samples of 'y' are not on its first axis"):
        Trainer(to_torch(original), [mixed], [mixed], Objective(output_taps(original, original), Parts()), settings)


# -- time ------------------------------------------------------------------------------------------------------------
class Clock:
    """A clock that only what is timed moves on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(pace.time, "monotonic", lambda: self.now)

    def steps(self, seconds: list[float]) -> list[int]:
        """The numbers of the steps that were run, each of which takes the next of ``seconds`` (the last again)."""
        numbers: list[int] = []

        def step(number: int) -> None:
            self.now += seconds[min(len(numbers), len(seconds) - 1)]
            numbers.append(number)

        self.taken = pace.seconds_per_step(step, [10, 20], 300.0)
        return numbers


def test_a_busy_moment_does_not_decide_how_long_a_step_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    usual = [0.2, 0.4] * 3
    numbers = clock.steps([9.0, *usual[:2], 5.0, 7.0, *usual])
    assert numbers == [0, *range(pace.STEPS)]
    assert clock.taken == pytest.approx(0.3)  # 0.02 a unit, 15 units a step on average
    quick = clock.steps([1.0, 0.01, 0.02])
    assert len(quick) > 100  # spread over two seconds


def test_a_time_counts_both_stages() -> None:
    original = tower()
    student, context = shortened(original, "layers.1"), Inputs(original)
    plan = Heal(budget="0.5s", hint_share=0.5).plan(GraphView(student), context)
    assert int(str(plan.resolved["budget"]).removesuffix("steps")) >= 1


# -- all of it, interrupted ------------------------------------------------------------------------------------------
def test_an_interrupted_training_with_everything_ends_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = tower()
    save_model(tower(seed=5), tmp_path / "other.onnx")
    student, context = shortened(original, "layers.1"), Inputs(original)
    options = {"budget": "50steps", "hint_share": 0.4, "selective": 0.5, "layer_dropout": 0.3}
    options["teachers"] = [str(tmp_path / "other.onnx")]
    whole = healed(student, context, **options)
    path, step = tmp_path / "state.ckpt", Trainer._step
    for stop in (11, 37):  # in either stage

        def stopped(self: Trainer, number: int, total: int, lessons: list[int], stop: int = stop) -> float:
            if number == stop:
                raise KeyboardInterrupt
            return step(self, number, total, lessons)

        monkeypatch.setattr(Trainer, "_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            healed(student, context, checkpoint=str(path), resume=stop > 11, **options)
    monkeypatch.setattr(Trainer, "_step", step)
    resumed = healed(student, context, checkpoint=str(path), resume=True, **options)
    for name, value in whole.graph.initializers.items():
        assert np.array_equal(value.const_value.numpy(), resumed.graph.initializers[name].const_value.numpy())  # type: ignore[union-attr]
    save_model(tower(seed=6), tmp_path / "other.onnx")
    with pytest.raises(UsageError, match="of another training"):
        healed(student, context, checkpoint=str(path), resume=True, **options)
