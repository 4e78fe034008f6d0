"""Sensitivity: every site alone, in the order of what it costs; state that is gone on from; metrics; faults."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import cli
from graphopt.errors import UsageError
from graphopt.pipeline import sensitivity as module
from graphopt.probing import measuring
from tests.report.models import residual_mlp


@pytest.fixture
def files(tmp_path: Path) -> Path:
    model = residual_mlp(layers=3)
    loud = model.graph.initializers["out1"]
    assert loud.const_value is not None
    array = loud.const_value.numpy().copy()
    array[:, 3] *= 40  # with one scale for all columns it would ruin the others; with its own it does not
    array[::7] *= 60  # rows: these do
    loud.const_value = ir.tensor(array, name="out1")
    ir.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32))
    return tmp_path


def measure(folder: Path, **more: object) -> module.Sensitivity:
    return graphopt.sensitivity(folder / "m.onnx", data=folder / "inputs.npz", threads=1, samples=32, **more)


def test_every_product_is_measured_alone(files: Path) -> None:
    result = measure(files)
    assert len(result.sites) == 6 and {site.layer for site in result.sites} == {0, 1, 2}
    assert {site.tensor for site in result.sites} == {f"{side}{i}" for side in ("in", "out") for i in range(3)}
    assert all(0 < site.loss < 0.1 and site.saves > 2000 for site in result.sites)
    assert result.ranked[0].loss == max(site.loss for site in result.sites)


def test_pruning_and_static_ranges_are_measured_too(files: Path) -> None:
    result = measure(files, kinds=("int8", "prune"), mode="static", ratio=0.25)
    pruned = [site for site in result.sites if site.kind == "prune"]
    assert [site.operator for site in pruned] == ["16 of 64"] * 3 and all(site.loss > 0 for site in pruned)
    assert measure(files, kinds=("prune",), ratio=0.75).ranked[0].loss > max(site.loss for site in pruned)
    assert len(measure(files, kinds=("int4", "float16")).sites) == 2 * len(
        [s for s in result.sites if s.kind == "int8"]
    )
    assert measure(files, kinds=("prune",), ratio=0.001).declined


def test_a_run_goes_on_from_its_state(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = files / "state.json"
    whole = measure(files)
    monkeypatch.setattr(measuring, "TOGETHER", 2)
    calls = 0
    real = measuring._compare

    def failing(*arguments: object) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(measuring, "_compare", failing)
    with pytest.raises(KeyboardInterrupt):
        measure(files, state=state)
    assert len(json.loads(state.read_text())["losses"]) == 4
    result = measure(files, state=state)
    assert result.resumed == 4 and calls == 4
    assert [site.loss for site in result.sites] == [site.loss for site in whole.sites]
    assert measure(files, state=state).resumed == 6
    with pytest.raises(UsageError, match="another mode; delete it"):
        measure(files, state=state, mode="static")
    state.write_text("[]")
    with pytest.raises(UsageError, match="no state of graphopt sensitivity"):
        measure(files, state=state)
    with pytest.raises(UsageError, match="one of the models"):
        measure(files, state=files / "m.onnx")


def test_with_a_metric_the_loss_is_what_it_falls_by(files: Path) -> None:
    x = np.random.default_rng(5).standard_normal((40, 16)).astype(np.float32)
    wanted: list[np.ndarray] = []

    def closeness(run: object) -> float:
        answer = run({"x": x})[0]  # type: ignore[operator]
        wanted.append(answer)
        return -float(np.abs(answer - wanted[0]).mean())

    result = measure(files, metric=closeness)
    assert result.baseline == 0.0 and all(site.loss > 0 for site in result.sites)


def test_synthetic_inputs_are_said_to_be_so_and_faults_named(files: Path) -> None:
    result = graphopt.sensitivity(files / "m.onnx", samples=8, threads=1)
    assert any("synthetic inputs" in note for note in result.notes)
    for more, text in (({"kinds": ()}, "kinds none"), ({"mode": "int4"}, "mode 'int4'"), ({"ratio": 1.5}, "ratio 1.5"),
                       ({"samples": 0}, "samples 0")):  # fmt: skip
        with pytest.raises(UsageError, match=text):
            graphopt.sensitivity(files / "m.onnx", **{"samples": 8, **more})  # type: ignore[arg-type]


def test_the_command_prints_a_table_draws_bars_and_gives_json(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["sensitivity", str(files / "m.onnx"), "--data", str(files / "inputs.npz"), "--samples", "16", "-q"]
    assert cli.run([*arguments, "--kinds", "int8,prune", "--plot", str(files / "loss.svg")]) == 0
    out = capsys.readouterr().out
    assert "out1" in out and "neurons.1" in out and out.strip().splitlines()[-1].startswith("9 sites")
    tree = ElementTree.parse(files / "loss.svg").getroot()
    namespace = "{http://www.w3.org/2000/svg}"
    assert len([r for r in tree.iter(f"{namespace}rect") if r.get("class") in ("int8", "prune")]) == 9
    assert cli.run([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["sites"]) == 6
    assert cli.run([*arguments, "--plot", str(files / "loss.png")]) == 2
    assert cli.run([*arguments, "--kinds", "int3"]) == 2


def test_a_state_of_other_inputs_under_the_same_name_is_refused(files: Path) -> None:
    state = files / "state.json"
    measure(files, state=state)
    np.savez(files / "inputs.npz", x=np.random.default_rng(1).standard_normal((300, 16)).astype(np.float32))
    with pytest.raises(UsageError, match="made with another inputs"):
        measure(files, state=state)
