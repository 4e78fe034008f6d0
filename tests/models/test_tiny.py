"""The tiny families export by both exporters, and run on the inputs that come with them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers")

from graphopt.errors import ModelError
from graphopt.runtime import Session
from tests.models import tiny


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_torchscript_export_runs_on_its_feed(tmp_path: Path, family: str) -> None:
    model = tiny.FAMILIES[family](tmp_path, "torchscript")
    assert model.report.verified, model.report.numerics
    session = Session(model.path)
    for batch, length in ((1, 1), (3, 7)):
        (output,) = session.run(model.feed(batch, length, seed=1)).values()
        assert output.shape[0] == batch


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 23])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_dynamo_export(tmp_path: Path, family: str, attention: str, opset: int) -> None:
    report = tiny.FAMILIES[family](tmp_path, "dynamo", opset, attention).report
    refused = opset == 23 and family in ("llama", "qwen3")  # RotaryEmbedding tables of batch 1
    assert report.verified is not refused, report.numerics


def test_weights_are_seeded(tmp_path: Path) -> None:
    first = tiny.bert(tmp_path, "torchscript").path.read_bytes()
    assert tiny.bert(tmp_path, "torchscript").path.read_bytes() == first


def test_refused_form_is_refused(tmp_path: Path) -> None:
    model = tiny.refused(tmp_path)
    assert "not run at batch=2" in model.report.numerics
    with pytest.raises(ModelError, match="Attention"):
        Session(model.path).run(model.feed(2, 6))
