"""Weights between passes: on disk when there are many, the same model all the same."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.model import FileTensor, SpillFolder, digest
from graphopt.runtime.session import Session
from tests.axis_models import feeds, outputs, text_model


def model() -> ir.Model:
    made = text_model(
        "(float[B,256] x) => (float[B,256] y)",
        "W[256,256] V[256,256] b[256]",
        "h = MatMul(x, W)\ni = Add(h, b)\ny = MatMul(i, V)",
    )
    shared = made.graph.initializers["W"].const_value
    made.graph.initializers["V"].const_value = shared
    return made


def test_large_weights_move_and_stay_shared() -> None:
    before, spilled = model(), model()
    folder = SpillFolder(above=1 << 10)
    assert folder.spill(spilled) == 256 * 256 * 4, "the shared weight once, the small bias not at all"
    W, V, b = (spilled.graph.initializers[name].const_value for name in "WVb")
    assert isinstance(W, FileTensor) and W is V and not isinstance(b, FileTensor)
    assert digest(spilled) == digest(before)
    fed = feeds(before)
    for wanted, found in zip(outputs(before, fed), outputs(spilled, fed), strict=True):
        np.testing.assert_array_equal(wanted, found)
    assert folder.spill(spilled) == 0, "what is on disk stays there"


def test_what_was_moved_outlives_the_folder() -> None:
    spilled = model()
    folder = SpillFolder(above=1 << 10)
    folder.spill(spilled)
    weight = spilled.graph.initializers["W"].const_value
    assert isinstance(weight, FileTensor)
    place = Path(weight.path)
    assert place.exists()
    folder.close()
    assert not place.exists() and not place.parent.exists()
    np.testing.assert_array_equal(weight.numpy(), model().graph.initializers["W"].const_value.numpy())  # type: ignore[union-attr]
    assert Session(spilled).run(feeds(spilled)[0])


def test_little_stays_in_memory() -> None:
    spilled = model()
    assert SpillFolder().spill(spilled) == 0
    assert not isinstance(spilled.graph.initializers["W"].const_value, FileTensor)


def test_a_full_disk_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("graphopt.model.spilling.tensor_chunks", full)
    spilled, folder = model(), SpillFolder(above=1 << 10)
    with pytest.raises(OSError, match="No space left"):
        folder.spill(spilled)
    assert not isinstance(spilled.graph.initializers["W"].const_value, FileTensor)
    assert not list(tmp_path.glob("*/*")), "no half-written file"
