"""Models as sessions need them that avoid kernels which overflow; see ``Session``'s ``exact``."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.model import clone_model


def unshared(model: ir.Model) -> ir.Model:
    """A clone in which each use of an int8 initializer of the main graph has one of its own; tensors are shared.

    ONNX Runtime moves such weights and their zero points to unsigned ones, and 1.32 fails on the second use of one.
    """
    clone = clone_model(model)
    graph = clone.graph
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype is not ir.DataType.INT8 or value.is_graph_input():
            continue
        for number, (node, index) in enumerate(list(value.uses())[1:], start=1):
            copy = ir.Value(name=f"{value.name}/exact_{number}", type=value.type, shape=value.shape, const_value=tensor)
            graph.register_initializer(copy)
            node.replace_input_with(index, copy)
    return clone
