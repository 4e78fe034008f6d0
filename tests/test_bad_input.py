"""Every broken file gives one clear line naming the file and the cause, and nothing else happens."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from graphopt.errors import ModelError
from graphopt.model import open_model
from tests import bad_models


@pytest.mark.parametrize("name", bad_models.IDS)
def test_bad_model_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    bad = bad_models.write(name, tmp_path)
    before = {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(ModelError) as caught:
        open_model(bad.path)
    message = str(caught.value)
    assert message.startswith(f"{bad.path}: ")
    assert bad.word in message
    assert "\n" not in message and len(message) < 600
    assert caught.value.exit_code == 3
    assert {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_the_model_they_are_made_from_is_fine(tmp_path: Path) -> None:
    path = tmp_path / "good.onnx"
    path.write_bytes(bad_models.tiny().SerializeToString())
    assert open_model(path).graph.outputs[0].name == "y"


def test_huge_dims_allocate_nothing(tmp_path: Path) -> None:
    bad = bad_models.write("huge-dims", tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError):
        open_model(bad.path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_outside_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    real_open = os.open

    def spy(path: str, *args: int, **kwargs: int) -> int:
        opened.append(os.path.realpath(path))
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", spy)
    for name in ("external-absolute", "external-parent", "external-link", "external-linked-folder"):
        bad = bad_models.write(name, tmp_path)
        with pytest.raises(ModelError):
            open_model(bad.path)
    assert opened and all(path.endswith("model.onnx") for path in opened)


def test_unreadable_file_names_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "locked.onnx"
    path.write_bytes(bad_models.tiny().SerializeToString())

    def refuse(*_: object) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        open_model(path)


def test_every_prefix_of_a_file_is_refused_or_opens(tmp_path: Path) -> None:
    data = bad_models.tiny().SerializeToString()
    path = tmp_path / "prefix.onnx"
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(ModelError):
            open_model(path)
