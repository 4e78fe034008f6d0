"""An ONNX graph as a torch module: run it, train it, and write the trained weights back into the same graph.

    module = graphopt.autograd.to_torch("model.onnx")
    outputs = module({"input_ids": ids, "attention_mask": mask})
    ...
    graphopt.autograd.write_back(module, model)

Importing this package brings in no torch; its names do, when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from graphopt.autograd.requirement import require_torch

if TYPE_CHECKING:
    from graphopt.autograd.convert import to_torch as to_torch
    from graphopt.autograd.module import OnnxModule as OnnxModule
    from graphopt.autograd.parameters import default_trainable as default_trainable
    from graphopt.autograd.rules import supported_ops as supported_ops
    from graphopt.autograd.writeback import write_back as write_back

_WHERE = {
    "OnnxModule": "module",
    "default_trainable": "parameters",
    "supported_ops": "rules",
    "to_torch": "convert",
    "write_back": "writeback",
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name not in ("to_torch", "write_back"):  # these say what is missing when they are called
        require_torch()
    return getattr(importlib.import_module(f"graphopt.autograd.{_WHERE[name]}"), name)
