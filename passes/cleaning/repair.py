"""Make graphs run that exporters write within the standard and ONNX Runtime refuses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor, walk_nodes
from graphopt.passes.cleaning.constants import is_onnx, small_array
from graphopt.transform import Change

Lengths = dict[int, tuple[ir.Value, int]]  #: axis to stretch -> the value and the axis of it that give its length


def expand_operands(editor: GraphEditor) -> list[Change]:
    """Give operands their full length where the standard lets them broadcast and ONNX Runtime's kernels do not.

    Matches:  ai.onnx ``Attention(Q, K, V, mask)`` where mask is [.., 1, Lk] or [.., Lq, 1] by its known shape;
              ai.onnx ``RotaryEmbedding(X, cos, sin)`` without position ids where cos or sin is [1, L, D / 2]; each
              where the length in question is not itself 1. Both fail at run time.
    Rewrites: operand -> Expand(operand, [1, .., L, 1]), with the length read from Q, K or X at run time.
    Leaves:   operands of unknown shape; a short key axis when past keys make the length differ from K's.
    """
    changes = []
    made: dict[tuple[object, ...], ir.Value] = {}
    for node in list(walk_nodes(editor.model)):
        if node.domain:
            continue
        for index, lengths in _short_operands(node):
            operand = node.inputs[index]
            assert operand is not None
            # Layers share one operand, and mostly one length by name: one expanded value serves them all.
            names = tuple((axis, _dim_name(*source)) for axis, source in lengths.items())
            same = (id(node.graph), id(operand), names)
            if same not in made or any(name is None for _, name in names):
                made[same] = _stretched(editor, node, operand, lengths)
            node.replace_input_with(index, made[same])
            what = "mask" if node.op_type == "Attention" else "table"
            changes.append(
                Change(f"repair {node.name}", f"{what} {_shown(_shape(operand))}", f"{what} {_shown(made[same].shape)}")
            )
    return changes


def scalar_bounds(editor: GraphEditor) -> int:
    """Make constant operands of Range scalars; returns how many were not.

    The standard wants scalars. Runtimes take vectors of one all the same, but refuse the model once they see the shape:
    so where folding made the constant, the model would no longer load.
    """
    made: dict[ir.Value, ir.Value] = {}
    for node in list(walk_nodes(editor.model)):
        if not is_onnx(node, "Range"):
            continue
        for index, value in enumerate(node.inputs):
            array = small_array(value)
            if value is None or array is None or array.ndim == 0 or array.size != 1:
                continue
            if value not in made:
                made[value] = editor.add_initializer(f"{value.name}_scalar", array.reshape(()))
            node.replace_input_with(index, made[value])
    return len(made)


def _short_operands(node: ir.Node) -> Iterator[tuple[int, Lengths]]:
    """Input indices whose axes of size one ONNX Runtime does not broadcast, with what gives their lengths."""
    if node.op_type == "Attention" and len(node.inputs) > 3:
        query, key, mask = node.inputs[0], node.inputs[1], node.inputs[3]
        if query is None or key is None or mask is None or (rank := len(_shape(mask) or ())) < 2:
            return
        past = len(node.inputs) > 4 and node.inputs[4] is not None
        wanted = {rank - 2: (query, _length_axis(query))}
        if not past:
            wanted[rank - 1] = (key, _length_axis(key))
        yield from _short(3, mask, wanted)
    elif node.op_type == "RotaryEmbedding" and (len(node.inputs) < 4 or node.inputs[3] is None):
        x = node.inputs[0]
        for index in (1, 2):
            table = node.inputs[index]
            if x is not None and table is not None and len(_shape(table) or ()) == 3:
                yield from _short(index, table, {0: (x, 0)})


def _short(index: int, operand: ir.Value, wanted: Lengths) -> Iterator[tuple[int, Lengths]]:
    lengths = {axis: source for axis, source in wanted.items() if _dim(operand, axis) == 1 and _dim(*source) != 1}
    if lengths:
        yield index, lengths


def _stretched(editor: GraphEditor, node: ir.Node, operand: ir.Value, lengths: Lengths) -> ir.Value:
    shape = _shape(operand)
    assert shape is not None
    rank = len(shape)
    one = editor.add_initializer(f"{node.name}/one", np.ones(1, np.int64))
    sizes = [_run_time_size(editor, node, *lengths[axis]) if axis in lengths else one for axis in range(rank)]
    (target,) = editor.insert_node("Concat", sizes, before=node, attributes={"axis": 0}, name=f"{node.name}/full_shape")
    target.type, target.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([rank])
    (expanded,) = editor.insert_node("Expand", [operand, target], before=node, name=f"{node.name}/expand")
    dims = [_dim(*lengths[axis]) if axis in lengths else dim for axis, dim in enumerate(shape)]
    expanded.type, expanded.shape = operand.type, ir.Shape(dims)
    return expanded


def _run_time_size(editor: GraphEditor, node: ir.Node, value: ir.Value, axis: int) -> ir.Value:
    """One size of ``value`` as a vector of one."""
    attributes = {"start": axis, "end": axis + 1}
    (size,) = editor.insert_node("Shape", [value], before=node, attributes=attributes, name=f"{node.name}/length")
    size.type, size.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    return size


def _length_axis(value: ir.Value) -> int:
    """The positions of a query or key [B, H, L, D] or [B, L, H*D]; the rank decides, or who reads it where unknown."""
    shape = _shape(value)
    if shape is not None:
        return 2 if len(shape) == 4 else 1
    flat = any(use.node.attributes.get("q_num_heads") is not None for use in value.uses())
    return 1 if flat else 2


def _dim(value: ir.Value, axis: int) -> int | ir.SymbolicDim:
    shape = _shape(value)
    return ir.SymbolicDim(None) if shape is None or axis >= len(shape) else shape[axis]


def _shape(value: ir.Value) -> ir.Shape | None:
    """The recorded shape, or that of what a chain of element-wise ops makes the value from (exporters record few)."""
    node = value.producer()
    while value.shape is None and node is not None and node.op_type in ("Cast", "Cos", "Identity", "Sin"):
        source = node.inputs[0]
        if source is None:
            return None
        value, node = source, source.producer()
    return value.shape


def _dim_name(value: ir.Value, axis: int) -> int | str | None:
    dim = _dim(value, axis)
    return dim if isinstance(dim, int) else dim.value


def _shown(shape: ir.Shape | None) -> str:
    if shape is None:
        return "?"
    return "[" + ", ".join(str(d if isinstance(d, int) else d.value or "?") for d in shape) + "]"
