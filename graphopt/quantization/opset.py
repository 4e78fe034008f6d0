"""Raises a model to the opset that has the operators of a pass, where there is a way."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.model import upgrade_opset


def raised_to(model: ir.Model, opset: int) -> tuple[ir.Model, list[str]]:
    """The model at ``opset`` or later, and what is to be said about that; itself where it cannot be raised."""
    before = model.graph.opset_imports.get("", 1)
    if before >= opset:
        return model, []
    try:
        return upgrade_opset(model, opset), [f"raised from opset {before} to {opset}"]
    except ModelError as error:
        return model, [str(error)]
