"""``to_torch``: from an ONNX model to a torch module."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from graphopt.autograd.requirement import require_torch
from graphopt.errors import ModelError
from graphopt.model import open_model

if TYPE_CHECKING:
    from torch import Tensor

    from graphopt.autograd.module import OnnxModule
    from graphopt.autograd.parameters import Choice


def to_torch(model: ir.Model | str | os.PathLike[str], *, trainable: Choice | None = None) -> OnnxModule:
    """A module that executes ``model``; the model itself is not changed, and its weights are copied.

    Args:
        model: as ``open_model`` gives it, or a file.
        trainable: which float weights become parameters: a function of ``onnx_ir.Value`` or a collection of names. None
            takes those that operators read as weights, see ``default_trainable``; everything else is a buffer.

    Weights that share one storage are one parameter. Operators without a torch rule run in ONNX Runtime, as long as no
    gradient has to pass through them. The module is in evaluation mode in the sense of the graph: a Dropout that the
    file has in inference form stays the identity, whatever ``train()`` says.

    Raises: ModelError for a file that cannot be read, or an operator without a rule that stands below a trained weight
    (the message names operator, domain and node); UsageError for unknown names in ``trainable``;
    MissingDependencyError without torch.
    """
    require_torch()
    from torch import nn

    from graphopt.autograd.building import Conversion, build
    from graphopt.autograd.module import OnnxModule
    from graphopt.autograd.parameters import trained_weights, weight_tensor
    from graphopt.autograd.types import from_tensor

    if not isinstance(model, ir.Model):
        model = open_model(Path(model))
    if model.functions:
        raise ModelError("the model has functions that are not inlined: open it with graphopt.open_model")
    groups = trained_weights(model, trainable)
    keys = {value: group[0].name or "" for group in groups for value in group}
    conversion = Conversion(dict(model.graph.opset_imports), keys)
    program = build(model.graph, conversion)
    parameters = {
        key: nn.Parameter(from_tensor(weight_tensor(group[0]))) for group in groups if (key := keys[group[0]])
    }
    buffers: dict[str, Tensor] = {}
    slots: dict[int, str] = {}
    for value, slot in conversion.weights.items():
        slots[slot] = keys.get(value, value.name or "")
        if value not in keys:
            buffers[slots[slot]] = conversion.known[value]
    graph = model.graph
    return OnnxModule(
        program,
        parameters,
        buffers,
        slots,
        {value.name or "": keys[value] for value in keys if value.name != keys[value]},
        ({v.name or "": v.dtype for v in graph.inputs}, {v.name or "": v.dtype for v in graph.outputs}),
        {v.name or "": from_tensor(v.const_value) for v in graph.inputs if v.const_value is not None},
    )
