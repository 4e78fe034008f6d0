"""``graphopt heal`` and ``--original``: a model made elsewhere, held against the file it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from graphopt import cli
from graphopt.model import open_model, save_model
from graphopt.runtime.session import Session
from tests.heal.models import WIDTH, damaged, perceptron


@pytest.fixture
def files(tmp_path: Path) -> Path:
    original = perceptron()
    save_model(original, tmp_path / "original.onnx")
    save_model(damaged(original), tmp_path / "small.onnx")
    rows = np.random.default_rng(0).standard_normal((400, WIDTH)).astype(np.float32)
    np.savez(tmp_path / "inputs.npz", x=rows)
    return tmp_path


def arguments(folder: Path, *more: str) -> list[str]:
    named = {"--original": "original.onnx", "--data": "inputs.npz"}
    given = [text for option, file in named.items() for text in (option, str(folder / file))]
    return ["heal", str(folder / "small.onnx"), *given, "--budget", "100steps", "--learning-rate", "0.01", "-q", *more]


def test_the_healed_file_answers_like_the_original(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments(files, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["output"]["path"] == str(files / "small.healed.onnx")
    x = {"x": np.random.default_rng(9).standard_normal((64, WIDTH)).astype(np.float32)}
    wanted = Session(files / "original.onnx").run(x)["y"]
    before, after = (Session(files / name).run(x)["y"] for name in ("small.onnx", "small.healed.onnx"))
    assert np.square(after - wanted).mean() < 0.2 * np.square(before - wanted).mean()
    assert sorted(file.name for file in files.iterdir()) == [
        "inputs.npz", "original.onnx", "small.healed.onnx", "small.onnx",
    ]  # fmt: skip


def test_a_replay_of_the_report_gives_the_same_bytes(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments(files, "--json")) == 0
    (files / "report.json").write_text(capsys.readouterr().out)
    again = ["optimize", str(files / "small.onnx"), "-r", str(files / "report.json"), "-q"]
    assert cli.run([*again, "-o", str(files / "again.onnx")]) == 0
    assert (files / "again.onnx").read_bytes() == (files / "small.healed.onnx").read_bytes()


def test_only_what_was_chosen_is_told(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments(files, "--json")) == 0
    (step,) = json.loads(capsys.readouterr().out)["passes"]
    assert list(step["chosen"]) == ["precision"]
    assert step["resolved"]["checkpoint"] is None and step["resolved"]["budget"] == "100steps"
    assert cli.run(arguments(files, "--set", "precision=float32")) == 0
    shown = capsys.readouterr().out
    assert "PASSED" in shown and ": chose " not in shown


def test_a_teacher_that_is_missing_is_an_error_before_anything_starts(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphopt.pipeline.optimize.open_model", lambda *_, **__: pytest.fail("a model was opened"))
    missing = str(files / "missing.onnx")
    recipe = f"heal(teachers=['{missing}'])"
    common = ["--data", str(files / "inputs.npz"), "-q"]
    for command in (
        arguments(files, "--teacher", str(files / "original.onnx"), "--teacher", missing),
        ["optimize", str(files / "small.onnx"), "--passes", recipe, *common],
        ["optimize", str(files / "small.onnx"), "--passes", f"int8(qat={{'teachers': ['{missing}']}})", *common],
    ):
        assert cli.run(command) == 2, command
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "teachers" in line and f"{missing!r}: no such file" in line
    assert not list(files.glob("*.healed*"))


def test_there_must_be_something_to_resume(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("graphopt.pipeline.optimize.open_model", lambda *_, **__: pytest.fail("a model was opened"))
    for more in (("--resume",), ("--resume", "--set", f"checkpoint={files / 'other.ckpt'}")):
        assert cli.run(arguments(files, *more)) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.endswith(".ckpt: no such file; leave out resume to start"), line


def test_parameters_and_teachers_reach_the_pass(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(perceptron(seed=1), files / "other.onnx")
    more = ("--teacher", str(files / "other.onnx"), "--set", "selective=0.5,weight_decay=0.01", "--json")
    assert cli.run(arguments(files, *more)) == 0
    report = json.loads(capsys.readouterr().out)
    resolved = report["passes"][0]["resolved"]
    assert (resolved["teachers"], resolved["selective"]) == ([str(files / "other.onnx")], 0.5)
    assert resolved["weight_decay"] == 0.01
    assert cli.run(arguments(files, "--set", "alpha")) == 2
    assert "'alpha' in 'heal' is not key=value" in capsys.readouterr().err


def test_another_interface_is_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = open_model(files / "original.onnx")
    model.graph.outputs[0].name = "z"
    save_model(model, files / "renamed.onnx")
    code = cli.run(["optimize", str(files / "renamed.onnx"), "--original", str(files / "original.onnx"), "-q"])
    assert code == 2
    assert "is not made from the original: graph outputs changed from ['y'] to ['z']" in capsys.readouterr().err


def test_without_data_nothing_is_learned(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(damaged(open_model(files / "original.onnx"), noise=0.03), files / "near.onnx")
    call = ["heal", str(files / "near.onnx"), "--original", str(files / "original.onnx"), "-q", "-v"]
    assert cli.run(call) == 0
    assert "give --data" in capsys.readouterr().out
