"""Structural checks on an edited model, before anything is run: interface, scoping, order, ONNX rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from graphopt.editing import bodies
from graphopt.errors import ModelError
from graphopt.model import Signature, SparseTensor, interface_fault, operator_fault, signature, to_proto

if TYPE_CHECKING:
    import onnx

_KEEP_BYTES = 1024  # smaller constants stay in the checked proto: shapes and axes matter to the checker


def check_structure(model: ir.Model, expected: Signature, *, retyped: bool = False) -> None:
    """Raise ModelError with the first fault found: changed interface, dangling value, wrong order, broken ONNX rule."""
    fault = interface_fault(expected, signature(model), retyped=retyped) or scope_fault(model) or checker_fault(model)
    if fault:
        raise ModelError(fault)


def scope_fault(model: ir.Model) -> str:
    """Empty when every value read is defined before, in its own or an enclosing graph, and every name is unique."""
    home: dict[int, int] = {}  # value -> the graph that defines it, once it is defined
    names: dict[str, int] = {}

    def define(value: ir.Value, graph: ir.Graph) -> bool:
        home[id(value)] = id(graph)
        return not value.name or names.setdefault(value.name, id(value)) == id(value)

    # An explicit stack rather than recursion: bodies may be nested hundreds deep. Leaving a graph checks its outputs.
    stack: list[tuple[ir.Graph | ir.Node, ir.Graph, tuple[int, ...], bool]] = [(model.graph, model.graph, (), False)]
    while stack:
        item, graph, outer, leaving = stack.pop()
        scope = (*outer, id(graph))
        if isinstance(item, ir.Graph):
            if leaving:
                for value in item.outputs:
                    if home.get(id(value)) not in scope:
                        return f"output {value.name!r} of graph {item.name!r} is defined by nothing"
                continue
            for value in (*item.inputs, *item.initializers.values()):
                if not define(value, item):
                    return f"two values are called {value.name!r}"
            stack.append((item, item, outer, True))
            stack.extend((node, item, outer, False) for node in reversed(list(item)))
            continue
        for used in item.inputs:
            if used is not None and home.get(id(used)) not in scope:
                return f"node {item.name!r} ({item.op_type}) reads {used.name!r}, which nothing before it defines"
        stack.extend((body, body, scope, False) for body in bodies(item))
        for value in item.outputs:
            if not define(value, graph):
                return f"two values are called {value.name!r}"
    return ""


def checker_fault(model: ir.Model) -> str:
    """Empty when the ONNX checker accepts the model; large weights are left out, so any size can be checked."""
    try:
        fault = operator_fault(stripped_proto(model))
    except (ValueError, TypeError, RecursionError) as error:
        return f"the model cannot be serialised: {type(error).__name__}: {error}"
    return f"the ONNX checker refuses the model: {fault}" if fault else ""


def stripped_proto(model: ir.Model) -> onnx.ModelProto:
    """A ModelProto in which large weights are empty: shapes and axes matter to the checker, weights do not."""
    return to_proto(model, stand_in=_light)


def _light(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    if tensor.dtype is ir.DataType.STRING or tensor.nbytes <= _KEEP_BYTES or isinstance(tensor, SparseTensor):
        return tensor
    return ir.Tensor(np.zeros((0,), dtype=tensor.dtype.numpy()), dtype=tensor.dtype, name=tensor.name)
