"""The graph that ONNX Runtime makes of a model when it loads it: which nodes it fused into which kernels."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from graphopt.runtime.session import Session


def loaded_graph(model: ir.Model, *, provider: str = "cpu", threads: int | None = None) -> ir.Model:
    """``model`` as a session runs it, optimised for this machine. Its weights are not kept: only nodes are to be read.

    Written to a temporary folder, weights beside it, so that size is no limit. Raises ModelError when ONNX Runtime
    refuses the model.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "loaded.onnx"
        Session(model, provider=provider, threads=threads, loaded=path)
        return ir.load(path)
