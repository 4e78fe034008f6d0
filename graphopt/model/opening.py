"""Opening a file: every defect is one clear line, and nothing outside the model's folder is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from graphopt.errors import ModelError
from graphopt.model.checks import DefectError, check_proto
from graphopt.model.names import make_names_unique
from graphopt.model.saving import SOURCE_KEY
from graphopt.model.tensors import (
    DataFile,
    FileTensor,
    attribute_tensors,
    tensor_from_bytes,
)
from graphopt.model.upgrading import upgraded
from graphopt.model.wire import WireError, looks_truncated, read_skeleton

_LAZY_ABOVE = 256 << 20  #: bytes; weights inside larger .onnx files stay in the file
_SMALL = 64  #: elements; the checker sees smaller tensors as they are
# Operators that ONNX Runtime keeps in the standard domain though the standard does not have them (at that version).
_RUNTIME_OPS = {"LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "Gelu", "FusedConv"}


def open_model(path: Path | str) -> ir.Model:
    """Open and validate an ONNX file. Nothing outside its folder is read, and no weight before it is used.

    Raises ModelError with one line, "<file>: <cause>; <what to do>".
    """
    file = Path(path)
    try:
        return _open(file)
    except DefectError as defect:
        raise ModelError(f"{file}: {defect}") from defect
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error}); check the path") from error


def _open(file: Path) -> ir.Model:
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise DefectError("is a folder; give the .onnx file in it")
    if not stat.S_ISREG(status.st_mode):
        raise DefectError("is not a plain file; give a .onnx file")
    if status.st_size == 0:
        raise DefectError("the file is empty; export or fetch it again")
    data = DataFile(os.path.abspath(file))
    proto, windows = _parse(data)
    folders = [os.path.realpath(file.parent), os.path.dirname(os.path.realpath(file))]
    check_proto(proto, folders, windows)
    windows_by_name = {proto.graph.initializer[i].name: (data, *window) for i, window in windows.items()}
    proto = upgraded(proto)
    try:
        model = ir.from_proto(proto)
        _normalise(model)
    except (
        ir.serde.SerdeError,
        ir.passes.InvariantError,
        ir.passes.PassError,
        ValueError,
        TypeError,
        NotImplementedError,
    ) as error:
        raise DefectError(f"it cannot be represented ({_innermost(error)}); export the model again") from error
    _leave_on_disk(model, folders[0], windows_by_name)
    model.meta[SOURCE_KEY] = os.path.abspath(file)
    make_names_unique(model)
    _check_operators(model)
    return model


def _parse(data: DataFile) -> tuple[onnx.ModelProto, dict[int, tuple[int, int]]]:
    view = memoryview(data.mapping)
    try:
        if data.size > _LAZY_ABOVE:
            skeleton = read_skeleton(view)
            return skeleton.proto, skeleton.windows
        return onnx.ModelProto.FromString(data.read(0, data.size)), {}
    except WireError as error:
        raise DefectError(_unreadable(view)) from error
    except DecodeError as error:
        if "depth" in str(error).lower() or "recursion" in str(error).lower():
            raise DefectError(
                "its graphs are nested deeper than protobuf can read (about 32 levels); flatten the control flow"
            ) from error
        raise DefectError(_unreadable(view)) from error


def _unreadable(view: memoryview) -> str:
    if bytes(view[4:8]) == b"ORTM":
        return "is in ORT format, which cannot be edited; give the .onnx it was made from"
    if looks_truncated(view):
        return "the protobuf is truncated; export or fetch it again"
    return "is not an ONNX protobuf; give a .onnx file"


def _innermost(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:200]


def _normalise(model: ir.Model) -> None:
    """Functions inlined, nodes in order, an IR version in which initializers need not be inputs."""
    if model.functions:
        before = {id(v): v.name for v in model.graph.inputs}
        outputs = [v.name for v in model.graph.outputs]
        InlinePass()(model)
        model.functions.clear()
        _restore_interface(model, before, outputs)
    model.graph.sort()
    if model.ir_version < 4:
        RemoveInitializersFromInputsPass()(model)
        model.ir_version = 4


def _restore_interface(model: ir.Model, inputs: Mapping[int, str | None], outputs: list[str | None]) -> None:
    """Undo what inlining does to a function that returns its own input: the input took over the output's name."""
    for value in model.graph.inputs:
        value.name = inputs[id(value)]
    for i, (value, name) in enumerate(zip(list(model.graph.outputs), outputs, strict=True)):
        if value.name == name:
            continue
        copy = ir.node("Identity", [value], outputs=[ir.Value(name=name, type=value.type, shape=value.shape)])
        model.graph.append(copy)
        model.graph.outputs[i] = copy.outputs[0]


def _leave_on_disk(model: ir.Model, folder: str, windows: Mapping[str, tuple[DataFile, int, int]]) -> None:
    """Turn every tensor whose data is in a file into a FileTensor; the locations have been checked."""
    files: dict[str, DataFile] = {}

    def placed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        real = os.path.realpath(os.path.join(folder, tensor.location))
        if real not in files:
            files[real] = DataFile(real)
        return FileTensor(files[real], tensor.offset or 0, tensor.nbytes, tensor.dtype, tensor.shape, name=name)

    for name, (file, offset, length) in windows.items():
        value = model.graph.initializers[name]
        if value.const_value is not None:
            header = value.const_value
            value.const_value = FileTensor(
                file, offset, length, header.dtype, ir.Shape(header.shape.numpy()), name=name
            )
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = placed(value.const_value, value.name or "")
        for node in graph:
            for name, attr in list(node.attributes.items()):
                held = attribute_tensors(attr)
                if any(isinstance(tensor, ir.ExternalTensor) for tensor in held):
                    moved = [placed(tensor, tensor.name or name) for tensor in held]
                    single = attr.type is ir.AttributeType.TENSOR
                    node.attributes[name] = ir.AttrTensor(name, moved[0]) if single else ir.AttrTensors(name, moved)


def _check_operators(model: ir.Model) -> None:
    """Let ``onnx.checker`` judge operators and attributes, on a serialised copy without weights."""
    undo: list[Callable[[], None]] = []
    try:
        for graph in model.graphs():
            for value in graph.initializers.values():
                if value.const_value is not None:
                    undo.append(partial(setattr, value, "const_value", value.const_value))
                    value.const_value = _placeholder(value.const_value)
            for node in graph:
                if node.op_type in _RUNTIME_OPS and not node.domain and not is_standard_op(node, model):
                    undo.append(partial(setattr, node, "domain", node.domain))
                    node.domain = "com.microsoft"
                for name, attr in list(node.attributes.items()):
                    if any(_placeholder(tensor) is not tensor for tensor in attribute_tensors(attr)):
                        undo.append(partial(node.attributes.__setitem__, name, attr))
                        held = [_placeholder(tensor) for tensor in attribute_tensors(attr)]
                        single = attr.type is ir.AttributeType.TENSOR
                        node.attributes[name] = ir.AttrTensor(name, held[0]) if single else ir.AttrTensors(name, held)
        proto = ir.to_proto(model)
    finally:
        for step in undo:
            step()
    if "com.microsoft" not in model.graph.opset_imports:
        proto.opset_import.add(domain="com.microsoft", version=1)
    try:
        onnx.checker.check_model(proto.SerializeToString())
    except onnx.checker.ValidationError as error:
        cause = " ".join(str(error).split("\n\n==>")[0].split()).rstrip(".")
        raise DefectError(f"it is not valid ONNX ({cause[:300]}); export the model again") from error


def _placeholder(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """What the checker sees: small tensors with their values, wherever these are stored, and large ones empty."""
    if tensor.dtype is not ir.DataType.STRING and tensor.size > _SMALL:
        return tensor_from_bytes(tensor.dtype, [0], b"", name=tensor.name or "")
    if isinstance(tensor, ir.ExternalTensor):  # the checker would look for the data file in the working folder
        return tensor_from_bytes(tensor.dtype, tensor.shape.numpy(), tensor.tobytes(), name=tensor.name or "")
    return tensor


def is_standard_op(node: ir.Node, model: ir.Model) -> bool:
    """Whether the ONNX standard has this operator at the opset the model imports."""
    if node.domain:
        return False
    return bool(onnx.defs.has(node.op_type, model.graph.opset_imports.get("", 1), ""))
