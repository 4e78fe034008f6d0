"""How long a sequence the model's tables allow."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphopt.model import walk_nodes
from graphopt.runtime.inputs import Kind, constant_of, input_facts, table_rows

_POSITION_OPS = {"Range", "Shape", "Size", "CumSum"}
#: ops that fold distances into buckets, as relative biases do: such a table fits any length
_BUCKET_OPS = {"Log", "Min", "Clip", "Abs", "Mod", "Div"}
_SMALLEST = 4  #: tables with fewer rows (token types) say nothing about length


def max_length(model: ir.Model) -> int | None:
    """The longest sequence that every position table has rows for; None when no table says so.

    A position table is a weight whose rows are picked by computed positions (Range, Shape, CumSum, a stored 0..N-1 row)
    or by an input called position ids, or the position table of a fused embedding.
    """
    limits = [int(f.high) + 1 for f in input_facts(model) if f.kind is Kind.POSITIONS and f.high < 2**31 - 1]
    memo: dict[int, tuple[bool, bool]] = {}
    for node in walk_nodes(model):
        if node.op_type == "EmbedLayerNormalization" and node.inputs[3] is not None:
            rows = table_rows(node.inputs[3], 0)
            limits += [rows] if rows else []
            continue
        for value in node.inputs:
            limits += [n for n in [_stored_positions(value)] if n]
        if node.op_type != "Gather" or len(node.inputs) < 2 or node.inputs[0] is None or node.inputs[1] is None:
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        rows = table_rows(node.inputs[0], axis)
        if rows is None or rows < _SMALLEST or len(node.inputs[0].shape or ()) < 2:
            continue
        positions, counted = _computed_positions(node.inputs[1], memo)
        if positions:
            limits.append(rows - 2 if counted else rows)  # counted from a mask: the first rows are for padding
    limits = [n for n in limits if n >= _SMALLEST]
    return min(limits) if limits else None


def _stored_positions(value: ir.Value | None) -> int | None:
    """N for a weight that reads 0, 1 ... N-1 along its last axis, as exporters keep position ids."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    if value is None or tensor is None or tensor.dtype is not ir.DataType.INT64:
        return None
    shape = tensor.shape.numpy()
    if not shape or any(not isinstance(n, int) for n in shape) or not 16 <= shape[-1] <= 2**20:
        return None
    if any(n != 1 for n in shape[:-1]):
        return None
    stored = constant_of(value)
    if stored is None or not np.array_equal(stored.reshape(-1), np.arange(shape[-1])):
        return None
    readers = {use.node.op_type for use in value.uses()}
    return int(shape[-1]) if readers & {"Slice", "Gather", "Expand", "Add"} else None


def _computed_positions(value: ir.Value, memo: dict[int, tuple[bool, bool]]) -> tuple[bool, bool]:
    """Whether indices are positions, computed and not read from an input; and whether they are counted by CumSum."""
    found = counted = False
    seen: set[int] = set()
    stack = [value]
    while stack:
        current = stack.pop()
        if id(current) in seen or len(seen) > 200:
            continue
        seen.add(id(current))
        if id(current) in memo:
            found, counted = found or memo[id(current)][0], counted or memo[id(current)][1]
            continue
        producer = current.producer()
        if producer is None:
            if current.is_graph_input():
                return memo.setdefault(id(value), (False, False))
            found = found or _stored_positions(current) is not None
            continue
        if producer.op_type in _BUCKET_OPS:
            return memo.setdefault(id(value), (False, False))
        if producer.op_type in _POSITION_OPS:
            found = found or producer.op_type in ("Range", "CumSum")
            counted = counted or producer.op_type == "CumSum"
            continue
        stack.extend(v for v in producer.inputs if v is not None)
    return memo.setdefault(id(value), (found, counted))
