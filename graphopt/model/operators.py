"""Lets ``onnx.checker`` judge operators and attributes, on a message whose weights need not be there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx

# Operators that ONNX Runtime keeps in the standard domain though the standard does not have them (at that version).
_RUNTIME_OPS = {"LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "Gelu", "FusedConv"}
_LOCATED = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


def operator_fault(proto: onnx.ModelProto) -> str:
    """What the checker says about the first operator, attribute or sparse tensor that breaks the standard; or nothing.

    ``proto`` is changed while the checker looks at it, and put back: weights without data count as empty, and
    operators that only ONNX Runtime has are of its domain.
    """
    with _presentable(proto):
        data = proto.SerializeToString()
    try:
        onnx.checker.check_model(data)
    except onnx.checker.ValidationError as error:
        return " ".join(str(error).split("\n\n==>")[0].split()).rstrip(".")[:300]
    return ""


@contextmanager
def _presentable(proto: onnx.ModelProto) -> Iterator[None]:
    opset = next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 1)
    missing = {op for op in _RUNTIME_OPS if not onnx.defs.has(op, opset, "")}
    moved: list[onnx.NodeProto] = []
    emptied: list[tuple[onnx.TensorProto, onnx.TensorProto]] = []

    def empty(tensor: onnx.TensorProto) -> None:
        if tensor.data_location != onnx.TensorProto.EXTERNAL and any(_has(tensor, field) for field in _LOCATED):
            return
        before = onnx.TensorProto()
        before.CopyFrom(tensor)
        emptied.append((tensor, before))
        tensor.Clear()
        tensor.name, tensor.data_type, tensor.raw_data = before.name, before.data_type, b""
        tensor.dims.append(0)

    graphs = [proto.graph]
    nodes = [proto.graph.node, *(function.node for function in proto.functions)]
    for body in nodes:
        for node in body:
            if node.op_type in missing and node.domain in ("", "ai.onnx"):
                moved.append(node)
                node.domain = "com.microsoft"
            for attr in node.attribute:
                kind = attr.type
                if kind in (onnx.AttributeProto.TENSOR, onnx.AttributeProto.TENSORS):
                    for tensor in (*([attr.t] if attr.HasField("t") else ()), *attr.tensors):
                        empty(tensor)
                elif kind in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
                    inner = [*([attr.g] if attr.HasField("g") else ()), *attr.graphs]
                    graphs.extend(inner)
                    nodes.extend(graph.node for graph in inner)
    for graph in graphs:
        for tensor in graph.initializer:
            empty(tensor)
    added = bool(moved) and all(entry.domain != "com.microsoft" for entry in proto.opset_import)
    if added:
        proto.opset_import.add(domain="com.microsoft", version=1)
    try:
        yield
    finally:
        for tensor, before in emptied:
            tensor.CopyFrom(before)
        for node in moved:
            node.domain = ""
        if added:
            del proto.opset_import[-1]


def _has(tensor: onnx.TensorProto, field: str) -> bool:
    return tensor.HasField(field) if field == "raw_data" else len(getattr(tensor, field)) > 0
