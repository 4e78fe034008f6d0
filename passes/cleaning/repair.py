"""Make graphs run that exporters write within the standard and ONNX Runtime refuses."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.transform import Change


def expand_attention_masks(editor: GraphEditor) -> list[Change]:
    """Give every ``Attention`` mask its full query (and key) length.

    Matches:  ai.onnx ``Attention(Q, K, V, mask)`` where mask is [.., 1, Lk] or [.., Lq, 1] by its known shape, and the
              length in question is not itself 1. ONNX Runtime's CPU kernel fails on both at run time.
    Rewrites: mask -> Expand(mask, [1, .., Lq, 1]), with Lq and Lk read from Q and K at run time.
    Leaves:   masks of unknown shape; a short key axis when past keys make the length differ from K's.
    """
    changes = []
    made: dict[tuple[object, ...], ir.Value] = {}
    for node in list(editor.model.graph.all_nodes()):
        if node.op_type != "Attention" or node.domain or len(node.inputs) < 4:
            continue
        query, key, mask = node.inputs[0], node.inputs[1], node.inputs[3]
        if query is None or key is None or mask is None or mask.shape is None or len(mask.shape) < 2:
            continue
        past = len(node.inputs) > 4 and node.inputs[4] is not None
        rows = query if mask.shape[-2] == 1 and _length(query) != 1 else None
        columns = key if mask.shape[-1] == 1 and _length(key) != 1 and not past else None
        if rows is None and columns is None:
            continue
        # Layers share one mask, and mostly one length by name: one expanded mask serves them all.
        names = tuple(_known_name(value) for value in (rows, columns) if value is not None)
        same = (id(node.graph), id(mask), rows is None, columns is None, *names)
        if None in names or same not in made:
            made[same] = _expanded(editor, node, mask, rows, columns)
        node.replace_input_with(3, made[same])
        changes.append(Change(f"repair {node.name}", f"mask {_shown(mask.shape)}", f"mask {_shown(made[same].shape)}"))
    return changes


def _expanded(
    editor: GraphEditor, node: ir.Node, mask: ir.Value, rows: ir.Value | None, columns: ir.Value | None
) -> ir.Value:
    assert mask.shape is not None
    lead = editor.add_initializer(f"{node.name}/mask_lead", np.ones(len(mask.shape) - 2, np.int64))
    one = editor.add_initializer(f"{node.name}/mask_one", np.ones(1, np.int64))
    lengths = [_run_time_length(editor, node, v) if v is not None else one for v in (rows, columns)]
    target = editor.insert_node(
        "Concat", [lead, *lengths], before=node, attributes={"axis": 0}, name=f"{node.name}/mask_shape"
    )[0]
    target.type, target.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([len(mask.shape)])
    expanded = editor.insert_node("Expand", [mask, target], before=node, name=f"{node.name}/mask_expand")[0]
    dims = list(mask.shape)
    if rows is not None:
        dims[-2] = _length(rows)
    if columns is not None:
        dims[-1] = _length(columns)
    expanded.type, expanded.shape = mask.type, ir.Shape(dims)
    return expanded


def _known_name(value: ir.Value) -> int | str | None:
    dim = _length(value)
    return dim if isinstance(dim, int) else dim.value


def _length_axis(value: ir.Value) -> int:
    return 2 if value.shape is not None and len(value.shape) == 4 else 1


def _length(value: ir.Value) -> int | ir.SymbolicDim:
    if value.shape is None or len(value.shape) not in (3, 4):
        return ir.SymbolicDim(None)
    return value.shape[_length_axis(value)]


def _run_time_length(editor: GraphEditor, node: ir.Node, value: ir.Value) -> ir.Value:
    """[L] of a query or key [B, H, L, D] or [B, L, H*D]; the axis counts from the end where the rank is unknown."""
    if value.shape is not None:
        start = _length_axis(value)
        end: int | None = start + 1
    else:
        start, end = (-2, -1)
        if node.attributes.get("q_num_heads") is not None:
            start, end = 1, 2
    length = editor.insert_node(
        "Shape", [value], before=node, attributes={"start": start, "end": end}, name=f"{node.name}/mask_length"
    )[0]
    length.type, length.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    return length


def _shown(shape: ir.Shape | None) -> str:
    if shape is None:
        return "?"
    return "[" + ", ".join(str(d if isinstance(d, int) else d.value or "?") for d in shape) + "]"
