"""onnxscript's local evaluation of shapes, casts, sequences and constant branches, kept within its known limits."""

from __future__ import annotations

import logging

import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import all_graphs, clone_model, make_names_unique, structure_digest, walk_nodes
from graphopt.passes.cleaning.constants import is_onnx

_log = logging.getLogger(__name__)
# Operators whose results the library may know where other steps do not: sizes by name, sequences by element.
_SOURCES = frozenset(
    {
        "CastLike", "ConcatFromSequence", "Dropout", "If", "SequenceAt", "SequenceConstruct", "Shape", "Size",
        "SplitToSequence",
    }
)  # fmt: skip
_FIRST_WITH_OPERANDS = 13  #: opset from which Split, Squeeze and Unsqueeze are as the library writes them
_FOLDER_LOG = logging.getLogger("onnxscript.optimizer._constant_folding")


def simplify_symbolically(model: ir.Model) -> tuple[ir.Model, int]:
    """Let onnxscript drop reshapes and expands to the same shape, resolve sequences and inline decided ``If`` nodes.

    Works on a clone and returns it, or ``model`` itself when nothing changed, when the library failed, or when it would
    get something wrong. Its numeric folding is off (``fold.py`` does that, with a bound on size); the interface, which
    it would refine, is put back.
    """
    if not any(_may_gain(node) for graph in all_graphs(model) for node in graph):
        return model, 0
    from onnxscript.optimizer import fold_constants_ir

    trial = clone_model(model)
    before = structure_digest(trial)
    _name_cast_types(trial)
    if any(_mishandled(node, trial.graph.opset_imports.get("", 1)) for node in walk_nodes(trial)):
        return model, 0
    inputs = [(v, v.name, v.type, _copied(v.shape)) for v in trial.graph.inputs]
    outputs = [(v.name, v.type, _copied(v.shape)) for v in trial.graph.outputs]
    overridable = [(v, v.const_value) for v in trial.graph.inputs if v.const_value is not None]
    for value, _ in overridable:
        value.const_value = None  # the library takes a default for a constant
    level = _FOLDER_LOG.level
    _FOLDER_LOG.setLevel(logging.ERROR)
    try:
        fold_constants_ir(
            trial, onnx_shape_inference=True, input_size_limit=0, output_size_limit=0, should_fold=lambda node: False
        )
    except Exception as error:  # a library failure costs this step, not the pass
        _log.info("symbolic simplification skipped: %s", error)
        return model, 0
    finally:
        _FOLDER_LOG.setLevel(level)
    for value, default in overridable:
        value.const_value = default
    for value, name, type_, shape in inputs:
        value.name, value.type, value.shape = name, type_, shape
    for value, (name, type_, shape) in zip(trial.graph.outputs, outputs, strict=True):
        if value.name != name:
            return model, 0
        value.type, value.shape = type_, shape
    make_names_unique(trial)
    if structure_digest(trial) == before:
        return model, 0
    old, new = (len(list(walk_nodes(m))) for m in (model, trial))
    # The branches the library threw away still count as readers of outer values; a clone does not have them.
    return clone_model(trial), max(1, old - new)


def _name_cast_types(model: ir.Model) -> None:
    """CastLike(x, y) -> Cast(x) to y's type where that is known; the library would forget how values saturate."""
    editor = GraphEditor(model)
    for node in list(walk_nodes(model)):
        if not is_onnx(node, "CastLike") or node.inputs[1] is None or node.inputs[1].dtype is None:
            continue
        attributes = {"to": int(node.inputs[1].dtype), **{a.name: a.value for a in node.attributes.values()}}
        (result,) = editor.insert_node("Cast", [node.inputs[0]], before=node, attributes=attributes, name=node.name)
        result.type, result.shape = ir.TensorType(node.inputs[1].dtype), node.outputs[0].shape
        editor.replace_uses(node.outputs[0], result)
        editor.remove_node(node)


def _mishandled(node: ir.Node, opset: int) -> bool:
    """Whether the library's rule for ``node`` drops an attribute, or writes what the model's opset does not have."""
    if is_onnx(node, "CastLike"):
        return bool(node.attributes)
    return is_onnx(node, "ConcatFromSequence", "SplitToSequence") and opset < _FIRST_WITH_OPERANDS


def _may_gain(node: ir.Node) -> bool:
    """Whether the library, which takes time on every node, can achieve something here that the other steps cannot.

    A Reshape or Expand of a recorded shape is theirs already, and so is a Concat unless an input of it is empty.
    """
    if node.domain:
        return False
    if node.op_type in ("Reshape", "Expand"):
        return node.inputs[0] is not None and node.inputs[0].shape is None
    if node.op_type == "Concat":
        return any(v is not None and v.shape is not None and 0 in v.shape for v in node.inputs)
    return node.op_type in _SOURCES


def _copied(shape: ir.Shape | None) -> ir.Shape | None:
    return shape.copy() if shape is not None else None
