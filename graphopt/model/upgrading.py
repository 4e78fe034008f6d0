"""Raises models to newer opsets through ONNX's version converter, weights and interface untouched."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.model.checks import OLDEST_OPSET, DefectError
from graphopt.model.foreign import OpaqueType
from graphopt.model.graphs import all_graphs
from graphopt.model.names import make_names_unique
from graphopt.model.proto import to_proto
from graphopt.model.tensors import all_tensors

_SEEN_BYTES = 1024  #: smaller initializers are converted with their contents: shapes, axes and scales matter


def upgraded(proto: onnx.ModelProto) -> onnx.ModelProto:
    """``proto`` itself, or a copy at opset 7 where it is older: up to 6, broadcasting was an attribute.

    Raises DefectError when ``onnx.version_converter`` has no way.
    """
    versions = [entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    if not versions or versions[0] >= OLDEST_OPSET:
        return proto
    try:
        return onnx.version_converter.convert_version(proto, OLDEST_OPSET)
    except Exception as error:  # the converter raises whatever its C++ side throws
        cause = " ".join(str(error).split())[:200]
        raise DefectError(
            f"it uses opset {versions[0]}, which cannot be converted to {OLDEST_OPSET} ({cause}); export it again"
        ) from error


def upgrade_opset(model: ir.Model, target: int) -> ir.Model:
    """A copy of ``model`` at opset ``target`` (or ``model`` itself when it is there); weights are shared with it.

    Raises ModelError naming the operator that has no way up, or what else the converter does not carry over.
    """
    version = model.graph.opset_imports.get("", 1)
    if version >= target:
        return model
    blocked = f"the model cannot be raised from opset {version} to {target}"
    advice = f"export it again at opset {target} or later"
    if len(all_graphs(model)) > 1:
        raise ModelError(f"{blocked}: the version converter leaves the bodies of If, Loop and Scan behind; {advice}")
    if any(isinstance(v.type, OpaqueType) for v in (*model.graph.inputs, *model.graph.outputs)):
        raise ModelError(f"{blocked}: the version converter does not know map types; {advice}")
    large = {id(t) for t in all_tensors(model) if t.dtype is not ir.DataType.STRING and t.nbytes > _SEEN_BYTES}
    weights = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if value.const_value is not None and id(value.const_value) in large
    }

    def light(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        if tensor.dtype is ir.DataType.STRING:
            return tensor
        if id(tensor) not in large:
            return ir.tensor(tensor.numpy(), dtype=tensor.dtype, name=tensor.name)
        return ir.serde.TensorProtoTensor(
            onnx.TensorProto(data_type=int(tensor.dtype), dims=tensor.shape.numpy(), raw_data=b"")
        )

    if any(id(attr.as_tensor()) in large for node in model.graph for attr in node.attributes.values()
           if attr.type is ir.AttributeType.TENSOR and not attr.is_ref()):  # fmt: skip
        raise ModelError(f"{blocked}: large constants must be initializers first; run cleanup before")
    try:
        converted = ir.from_proto(onnx.version_converter.convert_version(to_proto(model, stand_in=light), target))
    except (RuntimeError, ValueError) as error:
        cause = " ".join(str(error).split()).rstrip(".")[-200:]
        raise ModelError(f"{blocked}: {cause}; {advice}") from error
    for name, tensor in weights.items():
        if name in converted.graph.initializers:
            converted.graph.initializers[name].const_value = tensor
    old = (*model.graph.inputs, *model.graph.outputs)
    new = (*converted.graph.inputs, *converted.graph.outputs)
    if [v.name for v in old] != [v.name for v in new]:
        raise ModelError(f"{blocked}: the version converter changed its inputs or outputs; {advice}")
    for mine, its in zip(old, new, strict=True):
        its.type, its.shape = mine.type, mine.shape.copy() if mine.shape is not None else None
    converted.metadata_props.update(model.metadata_props)
    converted.meta.update(model.meta)
    make_names_unique(converted)
    return converted
