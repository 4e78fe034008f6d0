"""heal: nearer to the original on inputs it has not seen, never farther, and the same when it is interrupted."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

pytest.importorskip("torch")

from graphopt.analysis.view import GraphView
from graphopt.errors import PassError, UsageError
from graphopt.heal import healing, teachers, trainer
from graphopt.heal.config import TrainingConfig
from graphopt.heal.taps import Kind, Parts, Tap, output_taps, trunk_taps
from graphopt.model import clone_model, digest
from graphopt.passes.heal import Heal
from tests.heal.models import Inputs, damaged, distance, healed, perceptron, shortened, tower


def weights(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}  # type: ignore[union-attr]


@pytest.mark.parametrize("last", ["", "Softmax", "LogSoftmax"])
def test_a_damaged_model_comes_back(last: str) -> None:
    original = perceptron(last=last)
    student, context = damaged(original), Inputs(original)
    before = digest(student)
    result = healed(student, context)
    assert digest(student) == before
    assert distance(original, result, context) < 0.1 * distance(original, student, context)
    assert [node.op_type for node in result.graph] == [node.op_type for node in student.graph]


def test_softmax_is_compared_before_it() -> None:
    original = perceptron(last="Softmax")
    (tap,) = output_taps(original, damaged(original))
    assert (tap.label, tap.teacher, tap.student, tap.kind) == ("y", "z", "z", Kind.LOGITS)
    (tap,) = output_taps(perceptron(), perceptron())
    assert (tap.teacher, tap.kind) == ("y", Kind.EMBEDDING)
    (tap,) = output_taps(perceptron(), perceptron(), {"y": Kind.NUMBERS})
    assert tap.kind is Kind.NUMBERS


def test_a_width_that_was_cut_learns_the_wider_teacher() -> None:
    original = perceptron()
    student, context = perceptron(seed=3, hidden=12), Inputs(original)
    result = healed(student, context, budget="300steps", learning_rate=1e-2)
    assert distance(original, result, context) < 0.05 * distance(original, student, context)


def test_what_is_not_nearer_stays_as_it_was() -> None:
    original = perceptron()
    step = Heal(budget="10steps", learning_rate=10.0)
    plan = step.plan(GraphView(clone_model(original)), Inputs(original))
    assert plan.empty
    assert "did not get it nearer" in plan.declined[0].reason


def test_without_data_it_declines() -> None:
    original = perceptron()
    context = Inputs(original)
    context.has_data = False
    plan = Heal().plan(GraphView(damaged(original)), context)
    assert plan.empty
    assert "--data" in plan.declined[0].reason


def test_a_seed_gives_the_same_weights_and_a_time_becomes_steps() -> None:
    original = perceptron()
    student, context = damaged(original), Inputs(original)
    first, second = healed(student, context), healed(student, context)
    assert digest(first) == digest(second)
    plan = Heal(budget="0.2s").plan(GraphView(student), context)
    assert int(str(plan.resolved["budget"]).removesuffix("steps")) >= 1


@pytest.mark.parametrize("average", [None, 0.9])
def test_an_interrupted_training_ends_where_it_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: float | None
) -> None:
    original = perceptron()
    student, context = damaged(original), Inputs(original)
    whole = healed(student, context, average=average)
    path = tmp_path / "state.ckpt"
    step = trainer.Trainer._step

    def stopped(self: trainer.Trainer, number: int, total: int, lessons: list[int]) -> float:
        if number == 47:
            raise KeyboardInterrupt
        return step(self, number, total, lessons)

    monkeypatch.setattr(trainer.Trainer, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        healed(student, context, average=average, checkpoint=str(path))
    monkeypatch.setattr(trainer.Trainer, "_step", step)
    resumed = healed(student, context, average=average, checkpoint=str(path), resume=True)
    assert all(np.array_equal(a, weights(resumed)[name]) for name, a in weights(whole).items())
    assert path.exists()


def test_ctrl_c_waits_for_the_end_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = perceptron()
    student, context = damaged(original), Inputs(original)
    whole = healed(student, context)
    path, step = tmp_path / "state.ckpt", trainer.Trainer._step

    def interrupted(self: trainer.Trainer, number: int, total: int, lessons: list[int]) -> float:
        loss = step(self, number, total, lessons)  # the weights have moved, the step is not counted yet
        if number == 47:
            os.kill(os.getpid(), signal.SIGINT)
        return loss

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(trainer.Trainer, "_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            healed(student, context, checkpoint=str(path))
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(trainer.Trainer, "_step", step)
    resumed = healed(student, context, checkpoint=str(path), resume=True)
    assert all(np.array_equal(a, weights(resumed)[name]) for name, a in weights(whole).items())


def test_a_training_that_ended_is_kept_until_its_result_is_written(tmp_path: Path) -> None:
    original = perceptron()
    student, context, path = damaged(original), Inputs(original), tmp_path / "state.ckpt"
    whole = healed(student, context, budget="20steps", checkpoint=str(path))
    assert path.exists()
    again = healed(student, context, budget="20steps", checkpoint=str(path), resume=True)
    assert all(np.array_equal(a, b) for a, b in zip(weights(whole).values(), weights(again).values(), strict=True))


def test_a_checkpoint_of_another_training_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = perceptron()
    student, context = damaged(original), Inputs(original)
    path = tmp_path / "state.ckpt"
    path.write_bytes(b"something else")
    with pytest.raises(UsageError, match="cannot be read"):
        healed(student, context, checkpoint=str(path), resume=True)

    def stopped(self: trainer.Trainer, *_: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(trainer.Trainer, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        healed(student, context, checkpoint=str(path))
    with pytest.raises(UsageError, match="of another training"):
        healed(student, context, checkpoint=str(path), resume=True, learning_rate=1e-4)


def test_a_module_that_computes_something_else_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    original = perceptron()
    student = damaged(original)
    build = healing.to_torch
    monkeypatch.setattr(healing, "to_torch", lambda model, **options: build(damaged(model), **options))
    with pytest.raises(PassError, match="torch and ONNX Runtime differ"):
        healed(student, Inputs(original))


def test_padding_is_not_learned_from() -> None:
    import torch

    from graphopt.heal.objective import Objective

    objective = Objective([Tap("y", "y", "y", Kind.EMBEDDING)], Parts(), mask="mask")
    rng = torch.Generator().manual_seed(0)
    found, wanted = (torch.randn(4, 6, 3, generator=rng) for _ in range(2))
    mask = (torch.arange(6) < torch.tensor([6, 3, 1, 4])[:, None]).long()
    loss = objective({"y": found}, {"y": wanted}, {"mask": mask})
    noisy = torch.where(mask.bool()[..., None], found, 100 * found)
    assert torch.equal(loss, objective({"y": noisy}, {"y": wanted}, {"mask": mask}))
    assert not torch.equal(loss, objective({"y": noisy}, {"y": wanted}, {}))


def test_the_layer_behind_a_gap_is_to_be_given_what_the_dropped_ones_made() -> None:
    original = tower()
    student = shortened(original, "layers.1")
    hints = trunk_taps(original, student)
    assert [(tap.teacher, tap.student) for tap in hints] == [("out1", "out0"), ("out2", "out2")]
    assert {tap.kind for tap in hints} == {Kind.HINT}
    assert trunk_taps(perceptron(), perceptron()) == []


def test_hints_bring_a_shortened_model_nearer_and_are_noted() -> None:
    original = tower()
    student, context = shortened(original, "layers.1"), Inputs(original)
    plan = Heal(budget="150steps", learning_rate=1e-2).plan(GraphView(student), context)
    assert any("hints: 2" in note for note in plan.notes)
    assert not any("hint" in note for note in Heal(budget="5steps", hint=0).plan(GraphView(student), context).notes)
    assert plan.rewritten is not None
    assert distance(original, plan.rewritten, context) < 0.2 * distance(original, student, context)


def test_a_hint_of_another_width_gets_a_regressor_that_learns() -> None:
    import torch

    from graphopt.heal.objective import Objective

    chance = torch.Generator().manual_seed(0)
    student, truth = torch.randn(64, 3, generator=chance), torch.randn(5, 3, generator=chance)
    taps = [Tap("h", "h", "h", Kind.HINT), Tap("deep", "deep", "deep", Kind.HINT), Tap("y", "y", "y", Kind.NUMBERS)]
    found = {"h": student, "deep": torch.ones(64, 2, 3), "y": torch.ones(64, 1)}
    wanted = {"h": student @ truth.T, "deep": torch.ones(64, 3, 2), "y": torch.ones(64, 1)}
    objective = Objective(taps, Parts())
    assert [tap.label for tap in objective.fit(found, wanted)] == ["deep"]  # it differs in two axes
    (weight,) = objective.parameters()
    assert weight.shape == (5, 3)
    optimizer = torch.optim.Adam([weight], lr=0.1)
    before = objective(found, wanted, {}).item()
    for _ in range(100):
        optimizer.zero_grad()
        objective(found, wanted, {}).backward()
        optimizer.step()
    assert objective(found, wanted, {}).item() < 1e-3 * before
    assert float(objective({"y": found["y"]}, wanted, {}, objective.outputs)) == 0.0  # what decides are the outputs


def test_products_in_bfloat16_heal_too_and_a_replay_keeps_them() -> None:
    original = perceptron()
    student, context = damaged(original), Inputs(original)
    plan = Heal(budget="150steps", learning_rate=1e-2, precision="bfloat16").plan(GraphView(student), context)
    assert plan.resolved["precision"] == "bfloat16"
    assert plan.rewritten is not None
    assert distance(original, plan.rewritten, context) < 0.2 * distance(original, student, context)


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cpu", "auto", False), ("cuda", "auto", True), ("cpu", "bfloat16", True), ("cuda", "float32", False)],
)
def test_products_are_in_bfloat16_where_it_is_asked_for_and_on_cuda(
    device: Any, precision: Any, expected: bool
) -> None:
    lecture = TrainingConfig(device=device, precision=precision).lecture(Inputs(perceptron()))
    assert lecture.settings.bfloat16 is expected


def test_rows_of_padding_do_not_count_and_none_are_lost_without_any() -> None:
    import torch

    from graphopt.heal import losses

    value = torch.arange(12.0).reshape(2, 3, 2)
    ragged = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert torch.equal(losses.masked_rows(value, ragged), value[[0, 0, 1], [0, 1, 0]])
    for full in (torch.ones(2, 3, dtype=torch.int64), None):
        assert torch.equal(losses.masked_rows(value, full), value.reshape(6, 2))


def test_hints_are_halved_unless_they_are_too_large_for_that() -> None:
    small, large = np.array([[1.5, -2.0]], np.float32), np.array([[1.5, 7e4]], np.float32)
    assert teachers._halved(small).dtype == np.float16
    assert teachers._halved(large).dtype == np.float32 and np.isfinite(teachers._halved(large)).all()
