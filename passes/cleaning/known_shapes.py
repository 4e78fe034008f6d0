"""Replace parts of shapes that are known by constants, whatever the rest of the shape is."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor, walk_nodes
from graphopt.passes.cleaning.constants import int_attribute, int_list, is_onnx, small_array


def fold_known_dims(editor: GraphEditor) -> int:
    """Replace ``Shape`` and ``Gather``/``Slice`` of a ``Shape`` by a constant where the dims they take are fixed.

    Matches:  Shape(x) with all dims in [start, end) ints; Size(x) of a fixed shape; Gather(Shape(x), i) and
              Slice(Shape(x), a, b) over such dims only. Symbolic dims are never touched.
    """
    count = 0
    for node in list(walk_nodes(editor.model)):
        known = _known_result(node)
        if known is None:
            continue
        output = node.outputs[0]
        if not output.uses() and not output.is_graph_output():
            continue
        editor.replace_uses(output, editor.add_initializer(f"{output.name}_known", known))
        editor.remove_node(node)
        count += 1
    return count


def _known_result(node: ir.Node) -> np.ndarray | None:
    if is_onnx(node, "Shape"):
        dims = _shape_dims(node)
        return _array(dims) if dims is not None else None
    if is_onnx(node, "Size"):
        value = node.inputs[0]
        if value is None or value.shape is None or not value.shape.is_static():
            return None
        return np.array(np.prod(value.shape.numpy(), dtype=np.int64), np.int64)
    if not is_onnx(node, "Gather", "Slice") or node.inputs[0] is None:
        return None
    producer = node.inputs[0].producer()
    if producer is None or not is_onnx(producer, "Shape"):
        return None
    dims = _shape_dims(producer)
    if dims is None:
        return None
    return _gathered(node, dims) if node.op_type == "Gather" else _sliced(node, dims)


def _shape_dims(node: ir.Node) -> list[int | None] | None:
    """What Shape gives: an int where the dim is fixed, None where it is not. None when not even the rank is known."""
    value = node.inputs[0]
    if value is None or value.shape is None or not isinstance(value.type, ir.TensorType):
        return None
    dims = [d if isinstance(d, int) else None for d in value.shape]
    start = int_attribute(node, "start", 0)
    end = int_attribute(node, "end", len(dims))
    return dims[start:end]


def _array(dims: list[int | None]) -> np.ndarray | None:
    return np.array(dims, np.int64) if all(d is not None for d in dims) else None


def _gathered(node: ir.Node, dims: list[int | None]) -> np.ndarray | None:
    index = small_array(node.inputs[1])
    if index is None or index.dtype.kind != "i" or index.size == 0:
        return None
    if bool((index < -len(dims)).any() or (index >= len(dims)).any()):
        return None
    picked = _array([dims[int(i)] for i in index.reshape(-1)])
    return picked.reshape(index.shape) if picked is not None else None


def _sliced(node: ir.Node, dims: list[int | None]) -> np.ndarray | None:
    if len(node.inputs) < 3:  # opset < 10 keeps them in attributes
        return None
    bounds = [int_list(value) if value is not None else None for value in node.inputs[1:]]
    if (
        bounds[0] is None
        or bounds[1] is None
        or any(b is None for b, v in zip(bounds, node.inputs[1:], strict=True) if v is not None)
    ):
        return None
    step = bounds[3][0] if len(bounds) > 3 and bounds[3] else 1
    if len(bounds[0]) != 1 or len(bounds[1]) != 1 or step != 1:
        return None
    return _array(dims[bounds[0][0] : bounds[1][0]])
