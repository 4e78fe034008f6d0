"""Constants that mean minus infinity: -3.4e38 in an attention mask becomes a number that 16 bits hold.

Clamped to the lowest number, a mask would still overflow once a score or a second mask is added to it, and rows that
are masked throughout would come out as NaN. A quarter of the range is as far below every score, and leaves room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.editing import GraphEditor
from graphopt.model import all_graphs, walk_nodes
from graphopt.precision.cells import is_weight
from graphopt.precision.rounding import largest
from graphopt.precision.types import FLOAT

#: Through these a mask stays a mask.
_CARRIERS = frozenset(
    {
        *("Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Expand", "Slice", "Tile", "Split"),
        *("Gather", "GatherElements", "Concat", "Trilu", "Where", "Min", "Max", "Mul", "Add", "Sub", "Neg", "Sum"),
        *("ScatterND", "ScatterElements", "ConstantOfShape", "Cast", "Pad", "Clip", "Div"),
    }
)
_ENDS = frozenset(
    {
        *("Softmax", "LogSoftmax", "Attention", "MultiHeadAttention", "GroupQueryAttention"),
        *("DecoderMaskedMultiHeadAttention", "PackedMultiHeadAttention"),
    }
)
_READ_ONLY = frozenset({"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Shape", "Size", "IsInf", "IsNaN"})


def floor(dtype: ir.DataType) -> float:
    """What stands for minus infinity, as a positive number: -16384 in float16."""
    return float(2.0 ** (np.floor(np.log2(largest(dtype))) - 1))


@dataclass(frozen=True, slots=True)
class Clamped:
    """One constant, before and after."""

    name: str
    before: float
    after: float


def clamp_masks(editor: GraphEditor, dtype: ir.DataType) -> list[Clamped]:
    """Clamp every constant beyond the range of ``dtype`` that only masks attention, and the bounds of Clip nodes.

    Masks are also bounded where they come in as inputs. Everything else that is too large stays, and keeps its readers
    float32.
    """
    model, done = editor.model, []
    for graph in all_graphs(model):
        for value in list(graph.initializers.values()):
            tensor = value.const_value
            if tensor is None or tensor.dtype is not FLOAT or not is_weight(value) or tensor.size == 0:
                continue
            array = tensor.numpy()
            bound = _bound(value, array, dtype)
            if bound is not None:
                editor.set_initializer(value, _clamped(array, bound))
                done.append(_report(value.name, array, bound))
    for node in walk_nodes(model):
        if node.op_type not in ("Constant", "ConstantOfShape") or node.domain or "value" not in node.attributes:
            continue
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype is FLOAT and tensor.size and (array := tensor.numpy()) is not None:
            bound = _bound(node.outputs[0], array, dtype)
            if bound is not None:
                editor.set_attribute(node, "value", ir.tensor(_clamped(array, bound)))
                done.append(_report(node.outputs[0].name, array, bound))
    for value in model.graph.inputs:
        if isinstance(value.type, ir.TensorType) and value.type.dtype is FLOAT and only_masks(value):
            _bound_input(editor, value, floor(dtype))
            done.append(Clamped(value.name or "", float(np.finfo(np.float32).min), -floor(dtype)))
    return done


def _bound(value: ir.Value, array: np.ndarray, dtype: ir.DataType) -> float | None:
    """The bound to clamp a constant to; None where nothing is to be done, or must not be."""
    finite = array[np.isfinite(array)]
    if not finite.size or float(np.abs(finite).max()) <= largest(dtype):
        return None
    if all(use.node.op_type == "Clip" and use.idx > 0 for use in value.uses()):
        return largest(dtype)
    return floor(dtype) if only_masks(value) else None


def _clamped(array: np.ndarray, bound: float) -> np.ndarray:
    return np.asarray(np.where(np.isfinite(array), np.clip(array, -bound, bound), array), dtype=np.float32)


def _report(name: str | None, array: np.ndarray, bound: float) -> Clamped:
    finite = array[np.isfinite(array)]
    peak = float(finite[np.abs(finite).argmax()])
    return Clamped(name or "", peak, float(np.clip(peak, -bound, bound)))


def only_masks(start: ir.Value) -> bool:
    """Whether all that is made of ``start`` ends in attention or a Softmax, by ways on which a mask stays one."""
    seen, stack, ends = {start}, [start], False
    while stack:
        value = stack.pop()
        if value.is_graph_output():
            return False
        for use in value.uses():
            node = use.node
            if node.op_type in _ENDS:
                if node.op_type.endswith("Attention") and use.idx < 3:
                    return False
                ends = True
            elif node.op_type in _CARRIERS and not node.domain:
                if node.op_type == "Div" and use.idx != 0:
                    return False
                fresh = [out for out in node.outputs if out not in seen]
                seen.update(fresh)
                stack.extend(fresh)
            elif node.op_type not in _READ_ONLY:
                return False
    return ends


def _bound_input(editor: GraphEditor, value: ir.Value, bound: float) -> None:
    readers = list(value.uses())
    shape, graph = value.shape, editor.graph
    if editor.model.graph.opset_imports.get("", 1) >= 11:
        low = editor.add_initializer(f"{value.name}_floor", np.array(-bound, dtype=np.float32))
        (out,) = editor.insert_node("Clip", [value, low], before=graph[0], name=f"{value.name}/Clip")
    else:
        attributes = {"min": -bound, "max": bound}
        (out,) = editor.insert_node("Clip", [value], before=graph[0], attributes=attributes, name=f"{value.name}/Clip")
    out.type, out.shape = ir.TensorType(FLOAT), shape
    for use in readers:
        use.node.replace_input_with(use.idx, out)
