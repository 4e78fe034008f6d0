"""Compute once what does not depend on the inputs, unless the result would weigh more than what it replaces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.editing import GraphEditor, walk_nodes
from graphopt.model import SparseTensor
from graphopt.passes.cleaning.constants import READ_LIMIT, constant, is_onnx

# Operators whose reference implementation agrees with ONNX Runtime. Not among them on purpose: quantization (it is
# information), CastLike and float8 (wrong saturation in the reference), random ones, anything with a kernel's own
# arithmetic (convolution, pooling, resize), and what nobody writes on constants.
_TRUSTED = frozenset(
    {
        "Abs", "Add", "And", "Ceil", "Clip", "Concat", "ConstantOfShape", "Cos", "Div", "Equal", "Erf", "Exp",
        "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Less",
        "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "NonZero", "Not", "Or", "Pow", "Range",
        "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "ScatterND", "Shape", "Sign",
        "Sin", "Size", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh", "Tile", "Transpose", "Trilu",
        "Unsqueeze", "Where", "Xor", "CumSum", "OneHot",
    }
)  # fmt: skip
_PLAIN = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL,
        ir.DataType.INT8, ir.DataType.INT16, ir.DataType.INT32, ir.DataType.INT64,
        ir.DataType.UINT8, ir.DataType.UINT16, ir.DataType.UINT32, ir.DataType.UINT64,
    }
)  # fmt: skip
_FLOATS = frozenset((ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16))
_MOST_READERS = 64  #: of one weight that may share its bytes
_LARGEST = 1 << 29  #: bytes; nothing larger is computed whatever it replaces


def fold_constants(editor: GraphEditor, limit: int) -> int:
    """Replace nodes over constants by their results.

    Matches:  a trusted operator whose inputs are all initializers (no overridable inputs) of plain number types, and
              whose inferred result is at most ``limit`` bytes larger than the inputs that die with it. An input that
              several such nodes read, and that dies with the last of them, counts for each by the size of its result.
    Rewrites: its outputs become main-graph initializers.
    The size is known from shape inference before anything is computed, so a node that would explode costs nothing.
    """
    opset = editor.graph.opset_imports.get("", 1)
    count = 0
    sizes = _Sizes(opset)
    for node in list(walk_nodes(editor.model)):
        if is_onnx(node, "Cast", *_TRUSTED):
            results = _evaluate(node, sizes, limit)
            if results is None:
                continue
            for output, array in zip(node.outputs, results, strict=True):
                if output.uses() or output.is_graph_output():
                    editor.replace_uses(output, editor.add_initializer(f"{output.name}_folded", array))
            editor.remove_node(node)
            _drop_unused(editor, node)
            count += 1
    return count


def _drop_unused(editor: GraphEditor, node: ir.Node) -> None:
    for value in node.inputs:
        if value is not None and value.is_initializer() and not value.uses() and not value.is_graph_output():
            graph = value.graph
            if isinstance(graph, ir.Graph) and value.name is not None:
                del graph.initializers[value.name]


Inferred = list[tuple[ir.DataType, tuple[int, ...]]]  #: type and dims of each output


class _Sizes:
    """What nodes over constants would give, inferred once; the weights they read do not change while folding."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self._known: dict[ir.Node, Inferred] = {}

    def of(self, node: ir.Node) -> Inferred | None:
        """None for a node that is not over constants of plain number types, or whose result is not known."""
        if node in self._known:
            return self._known[node]
        tensors = [constant(value) for value in node.inputs]
        if any(t is None for t, v in zip(tensors, node.inputs, strict=True) if v is not None):
            return None
        if any(t is not None and (t.dtype not in _PLAIN or isinstance(t, SparseTensor)) for t in tensors):
            return None  # sparse ones among them: their results would be dense
        if any(attr.is_ref() for attr in node.attributes.values()):
            return None
        inferred = _infer(node, tensors, self.opset)
        if inferred is None or any(dtype not in _PLAIN for dtype, _ in inferred):
            return None
        self._known[node] = inferred
        return inferred


def _evaluate(node: ir.Node, sizes: _Sizes, limit: int) -> list[np.ndarray[Any, Any]] | None:
    opset, inferred = sizes.opset, sizes.of(node)
    if inferred is None:
        return None
    size = _bytes(inferred)
    if size > limit + _freed(node, size, sizes, limit) or size > _LARGEST:
        return None
    tensors = [constant(value) for value in node.inputs]
    work = size + sum(t.nbytes for t in tensors if t is not None)
    if work > _LARGEST or (node.op_type == "MatMul" and work > limit):
        return None
    arrays = [np.asarray(t.numpy(), order="C") if t is not None else None for t in tensors]
    if not _is_defined(node, arrays):
        return None
    results = _compute(node, arrays, opset)
    if results is None or len(results) != len(inferred):
        return None
    for result, (dtype, dims) in zip(results, inferred, strict=True):
        if result.dtype != dtype.numpy() or result.shape != dims:
            return None
    return results


def _bytes(inferred: Inferred) -> int:
    return sum(math.prod(dims) * dtype.bitwidth // 8 for dtype, dims in inferred)


def _freed(node: ir.Node, size: int, sizes: _Sizes, limit: int) -> int:
    """Bytes of the inputs that die with ``node``, whose result has ``size`` bytes: its part of those it shares.

    An input is shared when all its readers can be folded, and their results together are no larger than it is.
    """
    freed = 0
    for value in {id(v): v for v in node.inputs if v is not None}.values():
        if value.const_value is None or value.is_graph_output():
            continue
        whole = value.const_value.nbytes
        readers = list(dict.fromkeys(use.node for use in value.uses()))
        if readers == [node]:
            freed += whole
        elif len(readers) <= _MOST_READERS and whole > limit:
            results = [sizes.of(reader) if is_onnx(reader, "Cast", *_TRUSTED) else None for reader in readers]
            total = sum(_bytes(result) for result in results if result is not None)
            if None not in results and total <= whole:
                freed += size
    return freed


def _infer(node: ir.Node, tensors: Sequence[ir.TensorProtocol | None], opset: int) -> Inferred | None:
    """Type and exact dims of every output, computed from the shapes (and small contents) of the inputs alone."""
    if node.op_type == "NonZero" and tensors[0] is not None:
        if tensors[0].nbytes > READ_LIMIT:
            return None
        return [(ir.DataType.INT64, np.array(np.nonzero(np.atleast_1d(tensors[0].numpy()))).shape)]
    types: dict[str, onnx.TypeProto] = {}
    contents: dict[str, onnx.TensorProto] = {}
    for value, tensor in zip(node.inputs, tensors, strict=True):
        if value is None or tensor is None or value.name is None:
            continue
        types[value.name] = onnx.helper.make_tensor_type_proto(int(tensor.dtype), list(tensor.shape.numpy()))
        if tensor.nbytes <= READ_LIMIT:
            contents[value.name] = onnx.numpy_helper.from_array(np.asarray(tensor.numpy(), order="C"), value.name)
    try:
        schema = onnx.defs.get_schema(node.op_type, opset, "")
        found = onnx.shape_inference.infer_node_outputs(
            schema, ir.to_proto(node), types, contents, opset_imports=[onnx.helper.make_opsetid("", opset)]
        )
    except Exception:  # whatever inference dislikes is simply not folded
        return None
    results = []
    for output in node.outputs:
        if output.name not in found:
            return None
        shape = found[output.name].tensor_type.shape
        if not found[output.name].tensor_type.HasField("shape") or not all(d.HasField("dim_value") for d in shape.dim):
            return None
        dims = tuple(int(d.dim_value) for d in shape.dim)
        results.append((ir.DataType(found[output.name].tensor_type.elem_type), dims))
    return results


def _is_defined(node: ir.Node, arrays: Sequence[np.ndarray[Any, Any] | None]) -> bool:
    """False where the result depends on the implementation: integer division, float-to-int casts out of range."""
    first = arrays[0] if arrays else None
    if first is None:
        return True
    if node.op_type in ("Div", "Mod") and first.dtype.kind in "iu":
        second = arrays[1]
        return second is not None and bool((first >= 0).all() and (second > 0).all())
    if node.op_type == "Pow" and first.dtype.kind in "iu":
        return bool((first >= 0).all()) and arrays[1] is not None and bool((arrays[1] >= 0).all())
    if node.op_type == "Cast" and first.dtype.kind == "f":
        target = ir.DataType(node.attributes["to"].as_int())
        if target in _FLOATS:
            with np.errstate(over="ignore"):
                return bool((np.isfinite(first.astype(target.numpy())) == np.isfinite(first)).all())
        if target is ir.DataType.BOOL:
            return True
        info = np.iinfo(target.numpy())
        return bool(np.isfinite(first).all() and (first >= info.min).all() and (first < float(info.max)).all())
    return True


def _compute(
    node: ir.Node, arrays: Sequence[np.ndarray[Any, Any] | None], opset: int
) -> list[np.ndarray[Any, Any]] | None:
    names = [f"i{i}" if array is not None else "" for i, array in enumerate(arrays)]
    outputs = [f"o{i}" for i in range(len(node.outputs))]
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    graph = onnx.helper.make_graph(
        [proto],
        "one",
        [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in zip(names, arrays, strict=True)
            if array is not None
        ],
        [onnx.ValueInfoProto(name=name) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    from onnx.reference import ReferenceEvaluator  # takes long to import, and most models fold nothing

    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(model).run(
                None, {n: a for n, a in zip(names, arrays, strict=True) if a is not None}
            )
    except Exception:  # the reference does not implement every version of every operator
        return None
    return [np.asarray(r, order="C") for r in results]
