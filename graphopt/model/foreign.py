"""What ``onnx_ir`` cannot hold, carried through it unchanged: types with maps in them, and sparse tensors.

Before the library reads a parsed model, ``conceal`` puts marked stand-ins in their places; afterwards ``reveal`` swaps
these for objects that hold the original message. ``proto.to_proto`` writes that message back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx
import onnx_ir as ir

_MARK = "graphopt.stands-for:"
_OPAQUE_KINDS = ("map_type", "opaque_type")


class OpaqueType:
    """A type that is only kept: a map, something opaque, or a sequence or optional of these.

    It stands where ``onnx_ir`` has a type; two are equal when they are the same type.
    """

    dtype: ir.DataType = ir.DataType.UNDEFINED
    elem_type: ir.TypeProtocol | ir.DataType = ir.DataType.UNDEFINED
    denotation: str | None

    def __init__(self, proto: onnx.TypeProto) -> None:
        self.proto = proto
        self.denotation = proto.denotation or None
        self._key = proto.SerializeToString(deterministic=True)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, OpaqueType) and other._key == self._key

    def __hash__(self) -> int:
        return hash(self._key)

    def __repr__(self) -> str:
        return _type_text(self.proto)


class SparseTensor(ir.LazyTensor):
    """A tensor of ``shape`` stored as its nonzero elements; dense to whoever reads it, each time anew.

    Kept sparse in files for as long as nothing replaces it.
    """

    __slots__ = ("_proto",)

    def __init__(self, proto: onnx.SparseTensorProto) -> None:
        super().__init__(
            self._dense,
            ir.DataType(proto.values.data_type),
            ir.Shape(list(proto.dims)),
            name=proto.values.name,
        )
        self._proto = proto

    @property
    def stored_bytes(self) -> int:
        """Bytes of the elements and their places, as they are in a file."""
        count = int(math.prod(self._proto.values.dims))
        return (count * self.dtype.bitwidth + 7) // 8 + 8 * int(math.prod(self._proto.indices.dims))

    def to_proto(self, name: str) -> onnx.SparseTensorProto:
        """The message it was read from, under another name."""
        proto = onnx.SparseTensorProto()
        proto.CopyFrom(self._proto)
        proto.values.name = name
        return proto

    def _dense(self) -> ir.TensorProtocol:
        values = ir.serde.deserialize_tensor(self._proto.values).numpy().reshape(-1)
        places = onnx.numpy_helper.to_array(self._proto.indices)
        dense = np.zeros(self.shape.numpy(), dtype=values.dtype)
        if places.ndim == 1:
            dense.reshape(-1)[places] = values
        else:
            dense[tuple(places.T)] = values
        return ir.Tensor(dense, dtype=self.dtype, name=self.name)


@dataclass(slots=True)
class Concealed:
    """The messages taken out of a model; their stand-ins are marked with their positions here."""

    types: list[onnx.TypeProto] = field(default_factory=list)
    tensors: list[onnx.SparseTensorProto] = field(default_factory=list)


def is_opaque(type_: onnx.TypeProto) -> bool:
    """Whether there is a map, or something opaque, anywhere in a type."""
    while True:
        kind = type_.WhichOneof("value")
        if kind == "sequence_type":
            type_ = type_.sequence_type.elem_type
        elif kind == "optional_type":
            type_ = type_.optional_type.elem_type
        else:
            return kind in _OPAQUE_KINDS


def conceal(proto: onnx.ModelProto) -> Concealed:
    """Put stand-ins for what ``onnx_ir`` cannot hold into ``proto``; returns what they stand for."""
    held = Concealed()
    graphs = [proto.graph]
    nodes = [proto.graph.node, *(function.node for function in proto.functions)]
    infos = [proto.graph.value_info, *(function.value_info for function in proto.functions)]
    for body in nodes:
        for node in body:
            for attr in node.attribute:
                inner = [*([attr.g] if attr.HasField("g") else ()), *attr.graphs]
                graphs.extend(inner)
                nodes.extend(graph.node for graph in inner)
                if attr.HasField("sparse_tensor"):
                    _conceal_attribute(attr, held)
    for graph in graphs:
        infos += [graph.input, graph.output] + ([graph.value_info] if graph is not proto.graph else [])
        for sparse in graph.sparse_initializer:
            graph.initializer.append(_tensor_stand_in(sparse, held))
        graph.ClearField("sparse_initializer")
    for entries in infos:
        for info in entries:
            if info.type.WhichOneof("value") != "tensor_type" and is_opaque(info.type):
                _conceal_type(info.type, held)
    return held


def reveal(model: ir.Model, held: Concealed) -> None:
    """Replace the stand-ins that ``conceal`` left by what they stand for."""
    if held.types:
        for value in _all_values(model):
            mark = value.type.denotation if value.type is not None else None
            if mark is not None and mark.startswith(_MARK):
                value.type, value.shape = OpaqueType(held.types[int(mark.removeprefix(_MARK))]), None
    if not held.tensors:
        return
    for graph in _all_graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = _revealed(value.const_value, held)
        for node in graph:
            for name, attr in list(node.attributes.items()):
                if not attr.is_ref() and attr.type is ir.AttributeType.TENSOR:
                    tensor = _revealed(attr.as_tensor(), held)
                    if tensor is not attr.value:
                        node.attributes[name] = ir.AttrTensor(name, tensor)


def _conceal_type(type_: onnx.TypeProto, held: Concealed) -> None:
    original = onnx.TypeProto()
    original.CopyFrom(type_)
    type_.Clear()
    type_.tensor_type.elem_type = onnx.TensorProto.FLOAT
    type_.denotation = f"{_MARK}{len(held.types)}"
    held.types.append(original)


def _conceal_attribute(attr: onnx.AttributeProto, held: Concealed) -> None:
    """``sparse_value`` of a Constant becomes ``value``: the same constant to every reader."""
    attr.t.CopyFrom(_tensor_stand_in(attr.sparse_tensor, held))
    attr.ClearField("sparse_tensor")
    attr.type = onnx.AttributeProto.TENSOR
    attr.name = attr.name.removeprefix("sparse_")


def _tensor_stand_in(sparse: onnx.SparseTensorProto, held: Concealed) -> onnx.TensorProto:
    original = onnx.SparseTensorProto()
    original.CopyFrom(sparse)
    held.tensors.append(original)
    return onnx.TensorProto(
        name=sparse.values.name,
        data_type=sparse.values.data_type,
        dims=sparse.dims,
        doc_string=f"{_MARK}{len(held.tensors) - 1}",
    )


def _revealed(tensor: ir.TensorProtocol, held: Concealed) -> ir.TensorProtocol:
    mark = tensor.doc_string or ""
    return SparseTensor(held.tensors[int(mark.removeprefix(_MARK))]) if mark.startswith(_MARK) else tensor


def _all_graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def _all_values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in _all_graphs(model):
        yield from graph.inputs
        yield from graph.outputs
        for node in graph:
            yield from node.outputs


def _type_text(type_: onnx.TypeProto) -> str:
    kind = type_.WhichOneof("value")
    if kind == "map_type":
        key = ir.DataType(type_.map_type.key_type).name
        return f"Map({key}, {_type_text(type_.map_type.value_type)})"
    if kind == "sequence_type":
        return f"Sequence({_type_text(type_.sequence_type.elem_type)})"
    if kind == "optional_type":
        return f"Optional({_type_text(type_.optional_type.elem_type)})"
    if kind == "tensor_type":
        return ir.DataType(type_.tensor_type.elem_type).name
    return kind or "unknown"
