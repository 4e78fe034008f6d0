"""From the module back into the graph: trained values under the names and types they came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.errors import UsageError
from graphopt.model import all_graphs

if TYPE_CHECKING:
    from graphopt.autograd.module import OnnxModule


def write_back(module: OnnxModule, model: ir.Model) -> list[str]:
    """Put the module's parameters into ``model``, in place, and return the names of the weights that changed.

    ``model`` is the one the module was made from, or any with weights of the same names and shapes (a copy, the file
    opened again). Names, types and everything else stay; weights that training left as they were keep their storage, so
    those in external files stay there. ``graphopt.save_model`` writes the result.

    Raises UsageError, before anything is written, when the model lacks a weight or has it in another shape.
    """
    from graphopt.autograd.parameters import weight_tensor
    from graphopt.autograd.types import to_array

    places = weight_places(model)
    arrays: dict[str, np.ndarray] = {}
    for name, parameter in module.weights().items():
        if name not in places:
            raise UsageError(f"the model has no weight {name!r}: it is not the one the module was made from")
        tensor = weight_tensor(places[name])
        shape = tuple(tensor.shape.numpy())
        if shape != tuple(parameter.shape):
            raise UsageError(f"weight {name!r} is {list(shape)} in the model and {list(parameter.shape)} in the module")
        before = np.asarray(tensor.numpy()).reshape(shape)
        after = to_array(parameter).astype(tensor.dtype.numpy(), copy=False)
        if before.tobytes() != after.tobytes():
            arrays[name] = after.copy()
    set_weights(model, arrays)
    return list(arrays)


def set_weights(model: ir.Model, arrays: Mapping[str, np.ndarray]) -> None:
    """Give the named weights of ``model`` new values; all of ``arrays`` must be among its ``weight_places``."""
    places, editor = weight_places(model), GraphEditor(model)
    for name, array in arrays.items():
        value = places[name]
        producer = value.producer()
        if producer is not None:
            editor.set_attribute(producer, "value", ir.tensor(array, name=name))
        else:
            editor.set_initializer(value, array)


def weight_places(model: ir.Model) -> dict[str, ir.Value]:
    """Initializers and Constant outputs of all scopes by name."""
    places: dict[str, ir.Value] = {}
    for graph in all_graphs(model):
        places.update((name, value) for name, value in graph.initializers.items() if value.const_value is not None)
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes and node.outputs[0].name:
                places[node.outputs[0].name] = node.outputs[0]
    return places
