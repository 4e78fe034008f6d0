"""A weight and its transposed copy are stored once, as exporters write tied tables twice.

A product then reads the other's table through a Transpose. ONNX Runtime folds that when it opens the file, so it runs
what it ran before (``benchmarks/probes/transposed_twin.py``); the file is smaller, and units leave both at once.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import tensor_window
from graphopt.passes.cleaning.constants import is_onnx

SMALLEST = 1 << 20  #: bytes; below them a copy is cheaper than one node more
_ROWS = 256  #: compared at once
_PLACES = 16  #: elements that are looked at before anything is compared in full
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)

Key = tuple[ir.DataType, int, int, bytes]


def share_transposed_initializers(editor: GraphEditor, least: int) -> int:
    """Replace matrices that are another one's transposed copy, and return how many.

    Matches:  two main-graph initializers of at least ``least`` bytes, floats, ``A[i, j] == B[j, i]`` bit by bit, one of
              which only products read, as their second operand. Graph inputs and outputs stay.
    Rewrites: that one's readers read ``Transpose`` of the other.
    """
    found: dict[Key, ir.Value] = {}
    count = 0
    for value in _matrices(editor.graph.initializers.values(), least):
        twin = found.get(_key(value, turned=True))
        if twin is not None and _are_transposed(value, twin):
            gone, stays = (value, twin) if _only_multiplied(value) else (twin, value)
            if _only_multiplied(gone):
                _read_through(editor, gone, stays)
                found[_key(stays)] = stays
                count += 1
                continue
        found.setdefault(_key(value), value)
    return count


def _matrices(values: Iterable[ir.Value], least: int) -> list[ir.Value]:
    return [
        value
        for value in values
        if (tensor := value.const_value) is not None
        and tensor.dtype in _FLOATS
        and len(tensor.shape) == 2
        and tensor.nbytes >= max(least, SMALLEST)
        and not value.is_graph_input()
        and not value.is_graph_output()
    ]


def _key(value: ir.Value, *, turned: bool = False) -> Key:
    """Dims and a few elements; with ``turned`` those of the transposed matrix."""
    tensor = value.const_value
    assert tensor is not None
    rows, columns = (int(n) for n in tensor.shape.numpy())
    height, width = (columns, rows) if turned else (rows, columns)
    size = tensor.dtype.itemsize
    elements = []
    for place in range(_PLACES):
        i, j = (place * 7919 + 1) % height, (place * 104729 + 3) % width
        at = j * columns + i if turned else i * columns + j
        elements.append(tensor_window(tensor, int(at * size), int(size)))
    return tensor.dtype, height, width, b"".join(elements)


def _are_transposed(a: ir.Value, b: ir.Value) -> bool:
    assert a.const_value is not None and b.const_value is not None
    bits = np.dtype(f"u{int(a.const_value.dtype.itemsize)}")
    x, y = (np.asarray(v.const_value.numpy(), order="C").view(bits) for v in (a, b) if v.const_value is not None)
    steps = range(0, len(x), _ROWS)
    return all(np.array_equal(x[i : i + _ROWS], y[:, i : i + _ROWS].T) for i in steps)


def _only_multiplied(value: ir.Value) -> bool:
    uses = list(value.uses())
    return bool(uses) and all(use.idx == 1 and is_onnx(use.node, "MatMul", "Gemm") for use in uses)


def _read_through(editor: GraphEditor, gone: ir.Value, stays: ir.Value) -> None:
    (turned,) = editor.insert_node(
        "Transpose", [stays], before=editor.graph[0], attributes={"perm": [1, 0]}, name=f"{gone.name}/Transpose"
    )
    turned.type, turned.shape = gone.type, gone.shape
    editor.replace_uses(gone, turned)
    if gone.name is not None:
        del editor.graph.initializers[gone.name]
