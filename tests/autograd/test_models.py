"""Whole models as exporters write them: equal outputs at several shapes, every trained weight with a gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch

import graphopt
from graphopt.autograd.module import OnnxModule
from graphopt.runtime import Session
from tests.models import tiny
from tests.models.tiny_zoo import TINY, written

_FAST = ("bert", "t5")


def agree(module: OnnxModule, session: Session, feed: dict[str, Any], tolerance: float = 1e-5) -> None:
    """Relative to the largest magnitude of each output."""
    given = {name: value for name, value in feed.items() if name in module.input_names}
    expected = session.run({name: np.asarray(value) for name, value in given.items()})
    with torch.no_grad():
        found = module(given)
    for name, array in expected.items():
        scale = max(float(np.abs(array).max()), 1.0)
        assert np.abs(found[name].numpy() - array).max() <= tolerance * scale, name


def differentiate(module: OnnxModule, feed: dict[str, Any]) -> None:
    """Every parameter gets a gradient, and none runs in ONNX Runtime."""
    assert not module.frozen_nodes
    found = module({name: value for name, value in feed.items() if name in module.input_names})
    loss = torch.stack([value.pow(2).mean() for value in found.values() if value.is_floating_point()]).sum()
    loss.backward()
    missing = [name for name, weight in module.weights().items() if weight.grad is None]
    assert not missing
    assert all(bool(weight.grad.isfinite().all()) for weight in module.parameters() if weight.grad is not None)


def text_family(family: str, folder: Path, *form: Any) -> None:
    model = tiny.FAMILIES[family](folder, *form)
    module = graphopt.to_torch(model.path)
    session = Session(model.path, threads=1)
    for batch, length in ((1, 1), (3, 7)):
        agree(module, session, model.feed(batch, length, seed=1))
    differentiate(module, model.feed(3, 7, seed=1))


@pytest.mark.parametrize(
    "family", [pytest.param(f, marks=() if f in _FAST else pytest.mark.slow) for f in tiny.FAMILIES]
)
def test_tiny_transformers(family: str, tmp_path: Path) -> None:
    text_family(family, tmp_path, "torchscript")


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_tiny_transformers_by_dynamo(family: str, opset: int, attention: str, tmp_path: Path) -> None:
    if opset == 23 and family in ("llama", "qwen3"):
        pytest.skip("ONNX Runtime refuses the file: RotaryEmbedding tables of batch 1")
    text_family(family, tmp_path, "dynamo", opset, attention)


@pytest.mark.slow
def test_a_file_that_onnx_runtime_refuses_runs_in_torch(tmp_path: Path) -> None:
    model = tiny.refused(tmp_path)
    module = graphopt.to_torch(model.path)
    with torch.no_grad():
        (found,) = module(model.feed(2, 6)).values()
    assert bool(found.isfinite().all())


_QUICK = ("resnet18", "lstm_tagger", "gru_classifier")


@pytest.mark.parametrize("name", _QUICK)
def test_tiny_images_and_sequences(name: str, tmp_path: Path) -> None:
    image_family(name, "torchscript", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", TINY)
def test_every_tiny_image_and_sequence_model(name: str, exporter: Any, tmp_path: Path) -> None:
    image_family(name, exporter, tmp_path)


def image_family(name: str, exporter: Any, tmp_path: Path) -> None:
    path = written(name, exporter, tmp_path)
    module = graphopt.to_torch(path)
    session = Session(path, threads=1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        feeds = [TINY[name].inputs(batch) for batch in (1, 3)]
    for feed in feeds:
        agree(module, session, {key: value.numpy() for key, value in feed.items()}, 1e-4 if "net" in name else 1e-5)
    differentiate(module, {key: value.numpy() for key, value in feeds[1].items()})
