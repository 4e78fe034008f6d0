"""Remove what nothing reads: nodes, optional outputs, initializers, operator sets."""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, RemoveUnusedOpsetsPass

from graphopt.editing import GraphEditor, walk_nodes
from graphopt.model import all_graphs


def drop_dead_code(editor: GraphEditor) -> int:
    """Drop dead nodes and weights in every scope; unused graph inputs stay. Returns how many went."""
    before = _size(editor.model)
    editor.drop_dead()
    if any(len(node.outputs) > 1 for node in walk_nodes(editor.model)):
        RemoveUnusedNodesPass()(editor.model)  # unused optional outputs
    return before - _size(editor.model)


def drop_unused_opsets(model: ir.Model) -> int:
    """Drop imports of operator domains that no node uses; the standard one stays."""
    before = len(model.graph.opset_imports)
    RemoveUnusedOpsetsPass()(model)
    return before - len(model.graph.opset_imports)


def _size(model: ir.Model) -> int:
    return sum(len(graph) + len(graph.initializers) for graph in all_graphs(model))
