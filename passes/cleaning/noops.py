"""Drop nodes that give back what they were given, and join chains of layout changes."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.editing import GraphEditor, walk_nodes
from graphopt.passes.cleaning.constants import constant, int_attribute, int_list, is_onnx, small_array

_SINGLE = ("Concat", "Sum", "Max", "Min", "Mean")


def drop_noops(editor: GraphEditor) -> int:
    """Bypass every node whose output equals its input, bit for bit.

    Matches:  Identity; Cast to the type it has; Dropout outside training; Transpose by the identity; Concat, Sum, Max,
              Min, Mean of one input; x + 0, x - 0, x * 1, x / 1 with a scalar that changes no shape; Reshape and Expand
              to the shape it has; Pad by zeros; Transpose of Transpose and Reshape of Reshape (joined into one).
    Leaves:   an Identity between a graph input or initializer and a graph output (it carries the name).
    """
    count = 0
    for node in list(walk_nodes(editor.model)):
        if node.graph is None or not node.outputs:
            continue
        if _is_noop(node, editor.graph.opset_imports.get("", 1)) and _removable(node):
            editor.bypass(node)
            editor.remove_node(node)
            count += 1
        elif _joined(editor, node):
            count += 1
    return count


def _removable(node: ir.Node) -> bool:
    source, output = node.inputs[0], node.outputs[0]
    if source is None or any(out.uses() or out.is_graph_output() for out in node.outputs[1:]):
        return False
    if not output.is_graph_output():
        return True
    return source.producer() is not None and source.graph is node.graph and not source.is_graph_output()


def _is_noop(node: ir.Node, opset: int) -> bool:
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    source = node.inputs[0]
    kind = node.op_type
    if kind == "Identity":
        return True
    if kind in _SINGLE:
        return len(node.inputs) == 1
    if kind == "Cast":
        to = node.attributes.get("to")
        return to is not None and source.dtype is not None and int(source.dtype) == to.as_int()
    if kind == "Dropout":
        return _is_inference_dropout(node, opset)
    if kind == "Transpose":
        perm = node.attributes.get("perm")
        if perm is None:
            return source.shape is not None and len(source.shape) < 2
        return list(perm.as_ints()) == list(range(len(perm.as_ints())))
    if kind in ("Add", "Sub", "Mul", "Div"):
        return _is_neutral(node)
    if kind in ("Reshape", "Expand"):
        return _keeps_shape(node)
    if kind == "Pad" and len(node.inputs) > 1 and _mode(node) == "constant":
        pads = int_list(node.inputs[1])
        return pads is not None and not any(pads)
    return False


def _mode(node: ir.Node) -> str:
    attr = node.attributes.get("mode")
    return attr.as_string() if attr is not None else "constant"


def _is_inference_dropout(node: ir.Node, opset: int) -> bool:
    if opset < 12:
        return True
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    training = small_array(node.inputs[2])
    return training is not None and not training.any()


def _is_neutral(node: ir.Node) -> bool:
    """x op c with c one element that changes neither values nor shape. For Add only exact zeros of x's own type."""
    value, other = node.inputs[0], node.inputs[1]
    if value is None or constant(value) is not None:
        return False
    array = small_array(other)
    if array is None or array.size != 1:
        return False
    if array.ndim > 0 and (value.shape is None or len(value.shape) < array.ndim):
        return False
    item = array.reshape(-1)[0]
    if node.op_type in ("Mul", "Div"):
        return bool(item == 1)
    # x + (-0.0) == x for every x; x + 0.0 turns -0.0 into 0.0, which compares equal.
    return bool(item == 0)


def _keeps_shape(node: ir.Node) -> bool:
    source = node.inputs[0]
    target = int_list(node.inputs[1]) if len(node.inputs) > 1 else None
    if source is None or source.shape is None or target is None:
        return False
    if node.op_type == "Expand":
        offset = len(source.shape) - len(target)
        return offset >= 0 and all(size == 1 or source.shape[i + offset] == size for i, size in enumerate(target))
    if len(target) != len(source.shape) or (int_attribute(node, "allowzero", 0) and 0 in target):
        return False
    # One -1 is found from the others: it is right when all the others are.
    return target.count(-1) <= 1 and all(size in (0, -1) or source.shape[i] == size for i, size in enumerate(target))


def _joined(editor: GraphEditor, node: ir.Node) -> bool:
    if node.domain or not node.inputs or node.inputs[0] is None:
        return False
    inner = node.inputs[0].producer()
    if inner is None or inner.domain or inner.op_type != node.op_type or inner.graph is not node.graph:
        return False
    if is_onnx(node, "Transpose"):
        return _join_transposes(editor, inner, node)
    if is_onnx(node, "Reshape"):
        return _join_reshapes(inner, node)
    return False


def _join_transposes(editor: GraphEditor, inner: ir.Node, outer: ir.Node) -> bool:
    """Transpose(Transpose(x, p), q) -> Transpose(x, p[q])."""
    p, q = inner.attributes.get("perm"), outer.attributes.get("perm")
    if p is None or q is None or inner.inputs[0] is None:
        return False
    first, second = list(p.as_ints()), list(q.as_ints())
    editor.set_attribute(outer, "perm", [first[i] for i in second])
    outer.replace_input_with(0, inner.inputs[0])
    return True


def _join_reshapes(inner: ir.Node, outer: ir.Node) -> bool:
    """Reshape(Reshape(x, s), t) -> Reshape(x, t), unless a 0 in t copies a dim of the inner result."""
    target = int_list(outer.inputs[1])
    if target is None or 0 in target or inner.inputs[0] is None:
        return False
    outer.replace_input_with(0, inner.inputs[0])
    return True
