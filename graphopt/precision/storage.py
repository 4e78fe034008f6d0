"""Weights stored in 16 bits behind a Cast that ONNX Runtime folds on loading the file: half the bytes, same speed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import SparseTensor, all_graphs
from graphopt.precision.rounding import Rounded, round_tensor
from graphopt.transform import Declined

SMALLEST = 256  #: elements; below, the Cast takes as many bytes as the weight gives back


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """One initializer and what is to be stored in its place."""

    value: ir.Value
    tensor: ir.TensorProtocol


def find_storable(
    model: ir.Model, dtype: ir.DataType, objection: Callable[[ir.Value], str | None]
) -> tuple[list[Stored], list[Declined]]:
    """Float32 initializers of every graph in ``dtype``, and those that stay with the reason.

    Initializers on one tensor get one tensor again. ``objection`` says why a weight is to be left alone, or None.
    """
    found: list[Stored] = []
    declined: list[Declined] = []
    known: dict[int, Rounded] = {}
    for graph in all_graphs(model):
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype is not ir.DataType.FLOAT or tensor.size < SMALLEST:
                continue
            reason = _obstacle(value) or objection(value)
            if reason is None:
                rounded = known.get(id(tensor)) or round_tensor(tensor, dtype)
                known[id(tensor)] = rounded
                if rounded.tensor is not None:
                    found.append(Stored(value, rounded.tensor))
                    continue
                reason = rounded.reason
            declined.append(Declined(name, reason))
    return found, declined


def _obstacle(value: ir.Value) -> str | None:
    if value.is_graph_input():
        return "it is a graph input, which the caller may override"
    if value.is_graph_output():
        return "it is an output of the graph"
    if isinstance(value.const_value, SparseTensor):
        return "it is sparse, and smaller so"
    if not value.uses():
        return "nothing reads it"
    return None


def store(editor: GraphEditor, stored: Stored) -> None:
    """Put ``Cast(to=FLOAT)`` of the 16-bit weight in the place of ``stored.value``, in the graph where that lives."""
    value = stored.value
    graph = value.graph
    assert isinstance(graph, ir.Graph)
    suffix = "f16" if stored.tensor.dtype is ir.DataType.FLOAT16 else "bf16"
    half = editor.add_initializer(f"{value.name}_{suffix}", stored.tensor, graph=graph)
    (single,) = editor.insert_node(
        "Cast",
        [half],
        before=graph[0],
        attributes={"to": int(ir.DataType.FLOAT)},
        outputs=[f"{value.name}_f32"],
        name=f"{value.name}/Cast",
    )
    single.type, single.shape = ir.TensorType(ir.DataType.FLOAT), value.shape
    editor.replace_uses(value, single)
