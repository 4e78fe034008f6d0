"""Drop the initial states of recurrent layers that are zero anyway: the standard's default."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor, walk_nodes
from graphopt.passes.cleaning.constants import constant, is_onnx

_STATES = {"LSTM": (5, 6), "GRU": (5,), "RNN": (5,)}
_MOVES = ("Expand", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


def drop_zero_states(editor: GraphEditor) -> int:
    """LSTM, GRU and RNN lose ``initial_h`` and ``initial_c`` where these are zero for certain.

    Exporters cut the states of all layers from one zero tensor, which ties layers that have nothing to do with each
    other. Matches a constant of zeros or ConstantOfShape of zero, reached through nodes that only move elements.
    """
    count = 0
    known: dict[ir.Value, bool] = {}
    for node in walk_nodes(editor.model):
        for index in _STATES.get(node.op_type, ()) if not node.domain else ():
            value = node.inputs[index] if index < len(node.inputs) else None
            if value is not None and _is_zero(value, known):
                node.replace_input_with(index, None)
                count += 1
    return count


def _is_zero(value: ir.Value, known: dict[ir.Value, bool]) -> bool:
    path: list[ir.Value] = []
    current: ir.Value | None = value
    zero = False
    while current is not None and current not in known:
        path.append(current)
        tensor, maker = constant(current), current.producer()
        if tensor is not None:
            zero = tensor.dtype.is_floating_point() and not np.any(tensor.numpy())
            break
        if maker is not None and is_onnx(maker, "ConstantOfShape"):
            fill = maker.attributes.get("value")
            zero = fill is None or not np.any(fill.as_tensor().numpy())
            break
        current = maker.inputs[0] if maker is not None and is_onnx(maker, *_MOVES) else None
    else:
        zero = known[current] if current is not None else False
    known.update(dict.fromkeys(path, zero))
    return zero
