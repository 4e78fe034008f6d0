"""Constants become initializers of the main graph, where every later step and pass finds them."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import (
    InlinePass,
    LiftConstantsToInitializersPass,
    LiftSubgraphInitializersToMainGraphPass,
)

from graphopt.model import all_graphs, make_names_unique, walk_nodes


def inline_functions(model: ir.Model) -> int:
    """Replace calls of model-local functions by their bodies (files are inlined on opening, built models are not)."""
    if not model.functions:
        return 0
    count = len(model.functions)
    InlinePass()(model)
    model.functions.clear()
    make_names_unique(model)
    return count


def lift_constants(model: ir.Model) -> int:
    """Turn ``Constant`` nodes of all scopes into main-graph initializers; those that are a body's output stay."""
    count = _liftable(model)
    if count:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
        LiftSubgraphInitializersToMainGraphPass()(model)
        count -= _liftable(model)
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.type is None:
            value.type = ir.TensorType(value.const_value.dtype)
    return count


def _liftable(model: ir.Model) -> int:
    """Constant nodes, and initializers of bodies."""
    return sum(1 for node in walk_nodes(model) if node.op_type == "Constant" and not node.domain) + sum(
        len(graph.initializers) for graph in all_graphs(model) if graph is not model.graph
    )
