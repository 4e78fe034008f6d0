"""``module:factory`` and ``file.py:function``."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

from graphopt.errors import UsageError
from graphopt.exporters import export_factory

SOURCE = """
import torch
from graphopt.exporters import ExportSpec
from helper_of_the_factory import WIDTH

def pair():
    return torch.nn.Linear(WIDTH, 3), torch.rand(2, WIDTH)

def spec():
    module = torch.nn.Linear(WIDTH, 3)
    return ExportSpec(module, {"input": torch.rand(2, 6, WIDTH)}, {"input": {1: "time"}}, ["frames"], ["scores"])

def broken():
    raise FileNotFoundError("no weights at data/model.pt")

def wrong():
    return 42

class Box:
    make = staticmethod(pair)

CONSTANT = 1
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "factory_under_test.py").write_text(SOURCE)
    (tmp_path / "helper_of_the_factory.py").write_text("WIDTH = 4\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "target", ["factory_under_test:pair", "factory_under_test.py:pair", "factory_under_test:Box.make"]
)
def test_pair_has_a_dynamic_batch(project: Path, target: str) -> None:
    report = export_factory(target, "m.onnx", exporter="torchscript")
    assert report.inputs == ("input",)
    assert [dict(check.sizes) for check in report.checks] == [{"batch": 2}, {"batch": 5}, {"batch": 1}]


def test_spec_decides_names_and_axes(project: Path) -> None:
    report = export_factory("factory_under_test:spec", "m.onnx", exporter="torchscript")
    assert (report.inputs, report.outputs) == (("frames",), ("scores",))
    assert [dict(check.sizes) for check in report.checks] == [{"time": 6}, {"time": 13}, {"time": 1}]


def test_axes_of_the_caller_win(project: Path) -> None:
    report = export_factory("factory_under_test:spec", "m.onnx", exporter="torchscript", dynamic_axes={})
    assert len(report.checks) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("factory_under_test", "names no factory; write package.module:function or file.py:function"),
        ("nowhere_at_all:make", "cannot import nowhere_at_all: ModuleNotFoundError"),
        ("missing.py:make", "missing.py does not exist"),
        ("factory_under_test:made", "has no 'made'; it has: Box, ExportSpec, broken, pair, spec, wrong"),
        ("factory_under_test:CONSTANT", "is a int, not a function"),
        ("factory_under_test:broken", "failed: FileNotFoundError: no weights at data/model.pt"),
        ("factory_under_test:wrong", "returned int; return (module, example_inputs) or ExportSpec"),
    ],
)
def test_what_is_wrong_is_named(project: Path, target: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        export_factory(target, "m.onnx")
    assert message in str(caught.value)
    assert not (project / "m.onnx").exists()
