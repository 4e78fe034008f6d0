"""Turn torch modules, Hugging Face folders and the reference model into ONNX files that agree with torch.

Importing this package brings in neither torch nor transformers; the functions do, when called.
"""

from __future__ import annotations

from .factory import export_factory
from .huggingface import export_hf
from .minilm import export_minilm
from .report import Attempt, Check, ExportError, ExportReport, ExportSpec
from .torch_export import export_torch

__all__ = [
    "Attempt",
    "Check",
    "ExportError",
    "ExportReport",
    "ExportSpec",
    "export_factory",
    "export_hf",
    "export_minilm",
    "export_torch",
]
