"""The documentation is true: links lead somewhere, commands exist, and the examples run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from graphopt.analysis.view import GraphView
from graphopt.editing import GraphEditor
from graphopt.model import save_model
from tests.analysis.builders import encoder
from tests.axis_models import text_model

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    page for folder in (".", "docs", "passes", "benchmarks", "models/minilm") for page in (ROOT / folder).glob("*.md")
)


def _python(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_exist(page: Path) -> None:
    import typer

    from graphopt.cli.app import app

    group = typer.main.get_command(app)
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"(?:^    |`)graphopt ([a-z]+)", text, re.MULTILINE):
        assert name in group.commands, name  # type: ignore[attr-defined]
    for line in re.findall(r"^    graphopt ([a-z]+.*(?:\\\n.*)*)", text, re.MULTILINE):
        command = group.commands[line.split()[0]]  # type: ignore[attr-defined]
        commands = [command, *getattr(command, "commands", {}).values()]
        known = {option for c in commands for parameter in c.params for option in parameter.opts}
        assert set(re.findall(r"(?<=\s)--?[a-z][a-z-]*", line.split("#")[0])) <= known, line


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for page in PAGES:
        for target in re.findall(r"(?:^    |`)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_passes_are_listed() -> None:
    table = (ROOT / "passes" / "README.md").read_text(encoding="utf-8")
    declared = re.search(
        r'entry-points\."graphopt\.passes"\]\n(.*?)\n\n', (ROOT / "pyproject.toml").read_text(), re.DOTALL
    )
    assert declared is not None
    for line in declared.group(1).splitlines():
        assert f"`{line.split(' =')[0]}`" in table


def test_analysis_examples_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = encoder(2, pre_norm=False)
    save_model(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"model": model}
    for example in _python(ROOT / "docs" / "analysis.md"):
        exec(example, names)
    printed = capsys.readouterr().out
    assert "('Add'," in printed
    assert "attention + feed-forward" in printed
    assert "heads.0" in printed


def test_autograd_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    model = text_model("(float[N, 4] x) => (float[N, 3] y)", "w[4, 6] v[6, 3]", "h = MatMul(x, w)\ny = MatMul(h, v)")
    save_model(model, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for example in _python(ROOT / "docs" / "autograd.md"):
        exec(example, names)
    assert set(names["changed"]) == {"w", "v"}
    assert names["gradient"].shape == (6,)
    assert set(names["module"].weights()) == {"w"}


def test_example_pass_drops_a_layer_and_declines_another() -> None:
    (source,) = _python(ROOT / "docs" / "writing-a-pass.md")
    names: dict[str, Any] = {"__name__": "example"}
    exec(source.replace("from __future__ import annotations\n", ""), names)
    drop = names["DropLast"](count=2)
    model = encoder(3, pre_norm=False)
    plan = drop.plan(GraphView(model), None)
    assert len(plan.changes) == 2
    editor = GraphEditor(model)
    drop.apply(editor, plan)
    assert len(GraphView(model).structure.layers) == 1
    assert drop.plan(GraphView(model), None).empty

    leaky = encoder(3, pre_norm=True)
    softmax = [node for node in leaky.graph if node.op_type == "Softmax"][-1]
    softmax.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    leaky.graph.outputs.append(softmax.outputs[0])
    plan = drop.plan(GraphView(leaky), None)
    assert (len(plan.changes), len(plan.declined)) == (1, 1)
