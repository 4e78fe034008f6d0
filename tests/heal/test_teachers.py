"""Several teachers: what they say together, who may join them, and that the student learns it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from graphopt.errors import UsageError
from graphopt.heal.taps import Kind, trunk_taps
from graphopt.heal.teachers import Teachers, together
from graphopt.model import save_model
from graphopt.runtime.session import Session
from tests.heal.models import Inputs, damaged, healed, perceptron, tower


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def test_logits_together_are_the_mean_of_probabilities() -> None:
    rng = np.random.default_rng(0)
    a, b = (3 * rng.standard_normal((4, 7)).astype(np.float32) for _ in range(2))
    made = together([a, b], Kind.LOGITS)
    assert made.dtype == np.float32
    assert np.allclose(softmax(made), (softmax(a) + softmax(b)) / 2, atol=1e-6)
    assert not np.allclose(softmax(made), softmax((a + b) / 2), atol=1e-2)
    assert np.allclose(together([a], Kind.LOGITS), a, atol=1e-5)
    assert np.allclose(together([a, b], Kind.EMBEDDING), (a + b) / 2, atol=1e-6)


@pytest.mark.parametrize("last", ["", "Softmax"])
def test_the_student_comes_nearer_to_the_mean_of_its_teachers(last: str, tmp_path: Path) -> None:
    original = perceptron(last=last)
    others = [perceptron(seed, last=last) for seed in (1, 2)]
    for number, model in enumerate(others):
        save_model(model, tmp_path / f"{number}.onnx")
    context, student = Inputs(original), damaged(original)
    files = [str(tmp_path / f"{number}.onnx") for number in range(2)]
    alone, taught = healed(student, context), healed(student, context, teachers=files)
    sessions = [Session(model) for model in (original, *others)]
    means = [(f, np.mean([s.run(f)["y"] for s in sessions], axis=0)) for f in context.splits["selection"]]
    far = [np.mean([np.square(Session(m).run(f)["y"] - y).mean() for f, y in means]) for m in (alone, taught)]
    assert far[1] < 0.3 * far[0]


def test_values_on_the_way_are_the_originals_alone(tmp_path: Path) -> None:
    original, other = tower(), tower(seed=5)
    save_model(other, tmp_path / "other.onnx")
    context = Inputs(original)
    teachers = Teachers(context, original, [tmp_path / "other.onnx"], {})
    feed, answers = next(teachers.answers([*teachers.outputs, *trunk_taps(original, original)], "calibration", 1))
    mine, others = (Session(m, outputs=["out1", "y"], optimize=False).run(feed) for m in (original, other))
    assert answers["out1"].dtype == np.float16 and np.allclose(answers["out1"], mine["out1"], atol=1e-2)
    assert np.allclose(answers["y"], (mine["y"] + others["y"]) / 2, atol=1e-5)


def test_who_answers_another_question_is_no_teacher(tmp_path: Path) -> None:
    original = perceptron(last="Softmax")
    context, student = Inputs(original), damaged(original)
    renamed = perceptron(last="Softmax")
    renamed.graph.outputs[0].name = "other"
    save_model(renamed, tmp_path / "renamed.onnx")
    with pytest.raises(UsageError, match=r"teacher .*renamed\.onnx: .* changed from \['y'\] to \['other'\]"):
        healed(student, context, teachers=[str(tmp_path / "renamed.onnx")])
    save_model(perceptron(), tmp_path / "bare.onnx")
    with pytest.raises(UsageError, match=r"bare\.onnx: output 'y' is embedding, the original's is logits"):
        healed(student, context, teachers=[str(tmp_path / "bare.onnx")])
