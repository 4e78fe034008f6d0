"""Equal weights are stored once, however large, without reading what cannot be equal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import same_bytes, string_data, tensor_window

_SAMPLE = 64  #: bytes read at each sampled place
_PLACES = 5


def share_equal_initializers(editor: GraphEditor) -> int:
    """Keep one of every set of main-graph initializers with equal type, dims and bytes; readers of the others use it.

    Candidates are narrowed down by type and dims, then by a few sampled bytes; only those that still agree are compared
    in full, piece by piece. Initializers that are graph inputs or outputs stay.
    """
    groups: dict[object, list[ir.Value]] = {}
    for value in editor.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or value.is_graph_input() or value.is_graph_output():
            continue
        groups.setdefault((tensor.dtype, tuple(tensor.shape.numpy())), []).append(value)
    count = 0
    for group in groups.values():
        for candidates in _alike(group):
            count += _share(editor, candidates)
    return count


def _alike(values: list[ir.Value]) -> Iterable[list[ir.Value]]:
    if len(values) < 2:
        return []
    parts: dict[object, list[ir.Value]] = {}
    for value in values:
        parts.setdefault(_sample(value), []).append(value)
    return [part for part in parts.values() if len(part) > 1]


def _sample(value: ir.Value) -> bytes:
    tensor = value.const_value
    assert tensor is not None
    if tensor.dtype is ir.DataType.STRING:
        return hashlib.sha256(b"\0".join(string_data(tensor))).digest()
    size = tensor.nbytes
    if size <= _SAMPLE * _PLACES:
        return tensor.tobytes()
    step = (size - _SAMPLE) // (_PLACES - 1)
    return b"".join(tensor_window(tensor, i * step, _SAMPLE) for i in range(_PLACES))


def _share(editor: GraphEditor, candidates: list[ir.Value]) -> int:
    count = 0
    kept: list[ir.Value] = []
    for value in candidates:
        twin = next((other for other in kept if _equal(value, other)), None)
        if twin is None:
            kept.append(value)
            continue
        editor.replace_uses(value, twin)
        if value.name is not None:
            del editor.graph.initializers[value.name]
        count += 1
    return count


def _equal(a: ir.Value, b: ir.Value) -> bool:
    assert a.const_value is not None and b.const_value is not None
    return a.const_value is b.const_value or same_bytes(a.const_value, b.const_value)
