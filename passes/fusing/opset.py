"""Raise a model's opset without touching what its operators compute."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.editing import GraphEditor, all_graphs
from graphopt.passes.fusing.match import attribute, is_op

OLDEST = 13  #: below this, Softmax, Squeeze and others meant something else
_IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11, 24: 11, 25: 12}  #: the first that goes with an opset

#: Operators that came to mean something else, and the opset at which they did.
_MEANING: dict[str, int] = {
    "AveragePool": 19,
    "DFT": 20,
    "GridSample": 20,
    "GroupNormalization": 21,
    "RoiAlign": 16,
}
_REDUCTIONS = (
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSumSquare",
)


def obstacle(model: ir.Model, target: int) -> str:
    """Why this model cannot be raised to ``target``; empty when it can."""
    version = model.graph.opset_imports.get("", 1)
    if version >= target:
        return ""
    if version < OLDEST:
        return f"opset {version} is older than {OLDEST}"
    for graph in all_graphs(model):
        for node in graph:
            reason = _node_obstacle(node, version, target)
            if reason:
                return reason
    return ""


def raise_opset(editor: GraphEditor, target: int) -> int:
    """Raise the model to ``target``, for which ``obstacle`` is empty. Returns the opset that it had."""
    model = editor.model
    version = model.graph.opset_imports.get("", 1)
    if version >= target:
        return version
    for graph in all_graphs(model):
        for node in graph:
            adapt = _adapter(node, version)
            if adapt is not None:
                adapt(editor, node)
        if "" in graph.opset_imports or graph is model.graph:
            graph.opset_imports[""] = target
    needed = _IR_VERSION.get(target, 11)
    if model.ir_version is None or model.ir_version < needed:
        model.ir_version = needed
    return version


def _node_obstacle(node: ir.Node, version: int, target: int) -> str:
    if node.domain or _adapter(node, version) is not None:
        return ""
    try:
        old, new = (onnx.defs.get_schema(node.op_type, v, "") for v in (version, target))
    except onnx.defs.SchemaError:
        return f"{node.op_type} is no operator of opsets {version} to {target}"
    if old.since_version == new.since_version:
        return ""
    if node.op_type == "BatchNormalization" and len(node.outputs) > 1:
        return "BatchNormalization in training mode changed its meaning with opset 15"
    changed = _MEANING.get(node.op_type, 0)
    if old.since_version < changed <= new.since_version:
        return f"{node.op_type} changed its meaning with opset {changed}"
    if len(new.inputs) < len(old.inputs) or not set(old.attributes) <= set(new.attributes):
        return f"{node.op_type} takes other inputs or attributes at opset {target}"
    for name, attr in new.attributes.items():
        known = old.attributes.get(name)
        if (known is None and attr.required) or (known is not None and known.default_value != attr.default_value):
            return f"{node.op_type} has another default for {name!r} at opset {target}"
    return ""


def _adapter(node: ir.Node, version: int) -> Callable[[GraphEditor, ir.Node], None] | None:
    if version >= 18 or node.domain:
        return None
    if node.op_type in _REDUCTIONS:
        return _axes_to_input
    if is_op(node, "Split") and len([v for v in node.inputs if v is not None]) == 1:
        return _count_outputs
    return None


def _axes_to_input(editor: GraphEditor, node: ir.Node) -> None:
    axes = attribute(node, "axes", None)
    if axes is None:
        return
    value = editor.add_initializer(f"{node.name or node.op_type}/axes", np.array(list(axes), np.int64))
    del node.attributes["axes"]
    node.resize_inputs(2)
    node.replace_input_with(1, value)


def _count_outputs(editor: GraphEditor, node: ir.Node) -> None:
    editor.set_attribute(node, "num_outputs", len(node.outputs))
