"""An in-memory model as a protobuf message: the one way out, for files, checkers and sessions alike.

``onnx_ir``'s own serialiser cannot write map types and sparse tensors, and writes every weight; this one asks a
callback what stands for each tensor, and visits no node twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import onnx
import onnx_ir as ir

from graphopt.model.foreign import OpaqueType, SparseTensor
from graphopt.model.graphs import headed
from graphopt.model.names import NAMELESS
from graphopt.model.tensors import string_data

StandIn = Callable[[ir.TensorProtocol], ir.TensorProtocol]  #: what is written for a tensor

_ANNOTATION = "quant_parameter_tensor_names"  #: ``Value.meta`` key under which onnx_ir keeps a TensorAnnotation


def to_proto(
    model: ir.Model, *, stand_in: StandIn | None = None, initializers: bool = True, given_names: bool = False
) -> onnx.ModelProto:
    """``model``, not edited, as a ModelProto; ``stand_in`` may give another tensor for each.

    Without ``initializers`` the main graph has none (a writer streams them behind it). With ``given_names``, nodes that
    had no name in their file have none again.
    """
    empty = ir.Graph([], [], nodes=[], name=model.graph.name, opset_imports=dict(model.graph.opset_imports))
    bare = headed(model, empty, model.functions.values(), model.ir_version)
    proto = ir.to_proto(bare)
    _Writer(stand_in, given_names).graph(model.graph, proto.graph, initializers=initializers)
    return proto


def tensor_proto(tensor: ir.TensorProtocol, name: str) -> onnx.TensorProto:
    """A dense tensor with its contents, called ``name``."""
    if tensor.dtype is ir.DataType.STRING:
        return onnx.TensorProto(name=name, data_type=8, dims=tensor.shape.numpy(), string_data=string_data(tensor))
    proto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto


class _Writer:
    def __init__(self, stand_in: StandIn | None, given_names: bool) -> None:
        self.stand_in = stand_in
        self.given_names = given_names

    def graph(self, graph: ir.Graph, proto: onnx.GraphProto, *, initializers: bool = True) -> None:
        if graph.name:
            proto.name = graph.name
        if graph.doc_string:
            proto.doc_string = graph.doc_string
        _write_strings(proto.metadata_props, graph.metadata_props)
        for value in graph.inputs:
            _write_value(proto.input.add(), value)
            _annotate(proto, value)
        for value in graph.outputs:
            _write_value(proto.output.add(), value)
            _annotate(proto, value)
        listed = {id(value) for value in (*graph.inputs, *graph.outputs)}
        for value in graph.initializers.values():
            if id(value) not in listed:
                if value.metadata_props or value.doc_string:  # the tensor itself tells type and dims
                    _write_value(proto.value_info.add(), value)
                _annotate(proto, value)
            if initializers and value.const_value is not None:
                self.initializer(proto, value.name or "", value.const_value)
        for node in graph:
            self.node(node, proto.node)
            for value in node.outputs:
                if id(value) not in listed:
                    if _has_info(value):
                        _write_value(proto.value_info.add(), value)
                    _annotate(proto, value)

    def initializer(self, proto: onnx.GraphProto, name: str, tensor: ir.TensorProtocol) -> None:
        held = self.placed(tensor)
        if isinstance(held, SparseTensor):
            proto.sparse_initializer.append(held.to_proto(name))
        else:
            proto.initializer.append(tensor_proto(held, name))

    def placed(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        return tensor if self.stand_in is None else self.stand_in(tensor)

    def node(self, node: ir.Node, nodes: onnx.GraphProto.node) -> None:
        names = [value.name or "" for value in node.outputs]
        while names and not names[-1]:
            names.pop()
        proto = nodes.add(
            op_type=node.op_type,
            domain=node.domain or None,
            name=None if self.given_names and NAMELESS in node.meta else node.name or None,
            overload=node.overload or None,
            doc_string=node.doc_string or None,
            input=[value.name or "" if value is not None else "" for value in node.inputs],
            output=names,
        )
        if node.metadata_props:
            _write_strings(proto.metadata_props, node.metadata_props)
        for configuration in node.device_configurations:
            proto.device_configurations.append(ir.serde.serialize_node_device_configuration(configuration))
        for attr in node.attributes.values():
            self.attribute(attr, proto.attribute)

    def attribute(self, attr: ir.Attr, attributes: Iterable[onnx.AttributeProto]) -> None:
        proto = attributes.add()  # type: ignore[attr-defined]
        kind = attr.type
        if attr.is_ref():
            ir.serde.serialize_reference_attribute_into(proto, attr)
            return
        if kind is ir.AttributeType.INT:  # most attributes there are
            proto.name, proto.i, proto.type = attr.name, attr.value, onnx.AttributeProto.INT
        elif kind is ir.AttributeType.INTS:
            proto.name, proto.type = attr.name, onnx.AttributeProto.INTS
            proto.ints.extend(attr.value)
        elif kind is ir.AttributeType.GRAPH:
            proto.name, proto.type = attr.name, onnx.AttributeProto.GRAPH
            self.graph(attr.as_graph(), proto.g)
        elif kind is ir.AttributeType.GRAPHS:
            proto.name, proto.type = attr.name, onnx.AttributeProto.GRAPHS
            for body in attr.as_graphs():
                self.graph(body, proto.graphs.add())
        elif kind is ir.AttributeType.TENSOR:
            held = self.placed(attr.as_tensor())
            if isinstance(held, SparseTensor):
                proto.name, proto.type = f"sparse_{attr.name}", onnx.AttributeProto.SPARSE_TENSOR
                proto.sparse_tensor.CopyFrom(held.to_proto(held.name or ""))
            else:
                proto.name, proto.type = attr.name, onnx.AttributeProto.TENSOR
                proto.t.CopyFrom(tensor_proto(held, held.name or ""))
        elif kind is ir.AttributeType.TENSORS:
            proto.name, proto.type = attr.name, onnx.AttributeProto.TENSORS
            for tensor in attr.as_tensors():
                held = self.placed(tensor)
                proto.tensors.append(tensor_proto(held, held.name or ""))
        else:
            ir.serde.serialize_attribute_into(proto, attr)
            return
        if attr.doc_string:
            proto.doc_string = attr.doc_string


def _has_info(value: ir.Value) -> bool:
    """Whether anything is known about ``value`` beyond its name."""
    if not value.name:
        return False
    return bool(value.type is not None or value.shape is not None or value.metadata_props or value.doc_string)


def _write_value(proto: onnx.ValueInfoProto, value: ir.Value) -> None:
    if isinstance(value.type, OpaqueType):
        proto.name = value.name or ""
        proto.type.CopyFrom(value.type.proto)
        _write_strings(proto.metadata_props, value.metadata_props)
        if value.doc_string:
            proto.doc_string = value.doc_string
    else:
        ir.serde.serialize_value_into(proto, value)


def _annotate(proto: onnx.GraphProto, value: ir.Value) -> None:
    names = value.meta.get(_ANNOTATION)
    if names:
        annotation = proto.quantization_annotation.add(tensor_name=value.name or "")
        _write_strings(annotation.quant_parameter_tensor_names, names)


def _write_strings(entries: Iterable[onnx.StringStringEntryProto], pairs: Mapping[str, str]) -> None:
    for key in sorted(pairs):
        entries.add(key=key, value=pairs[key])  # type: ignore[attr-defined]
