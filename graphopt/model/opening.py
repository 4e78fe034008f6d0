"""Opening a file: every defect is one clear line, and nothing outside the model's folder is read."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.errors import ModelError
from graphopt.model.checks import DefectError, check_proto
from graphopt.model.foreign import conceal, reveal
from graphopt.model.graphs import all_graphs, uncollected
from graphopt.model.names import make_names_unique
from graphopt.model.operators import operator_fault
from graphopt.model.saving import SOURCE_KEY
from graphopt.model.tensors import DataFile, FileTensor, MemoryTensor, attribute_tensors
from graphopt.model.upgrading import upgraded
from graphopt.model.wire import WireError, looks_truncated, read_skeleton

_LAZY_ABOVE = 256 << 20  #: bytes; weights inside larger .onnx files stay in the file
_PLAIN = frozenset(
    {
        ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BOOL, ir.DataType.INT8,
        ir.DataType.INT32, ir.DataType.INT64, ir.DataType.UINT8,
    }
)  # fmt: skip
_WHOLE_BELOW = 1 << 20  #: bytes; smaller files are parsed in one piece


def open_model(path: Path | str) -> ir.Model:
    """Open and validate an ONNX file. Nothing outside its folder is read, and no weight before it is used.

    Raises ModelError with one line, "<file>: <cause>; <what to do>".
    """
    file = Path(path)
    try:
        with uncollected():
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
    proto, weights = _parse(data)
    folders = [os.path.realpath(file.parent), os.path.dirname(os.path.realpath(file))]
    check_proto(proto, folders, {i: tensor.nbytes for i, tensor in weights.items()})
    fault = operator_fault(proto)
    if fault:
        raise DefectError(f"it is not valid ONNX ({fault}); export the model again")
    names = {proto.graph.initializer[i].name: tensor for i, tensor in weights.items()}
    proto = upgraded(proto)
    concealed = conceal(proto)
    try:
        model = ir.from_proto(proto)
        reveal(model, concealed)
        _inline(model)
    except (
        ir.serde.SerdeError,
        ir.passes.InvariantError,
        ir.passes.PassError,
        ValueError,
        TypeError,
        NotImplementedError,
    ) as error:
        raise DefectError(f"it cannot be represented ({_innermost(error)}); export the model again") from error
    for name, tensor in names.items():
        tensor.name = name
        model.graph.initializers[name].const_value = tensor
    _leave_on_disk(model, folders[0])
    model.meta[SOURCE_KEY] = os.path.abspath(file)
    make_names_unique(model)
    return model


def _parse(data: DataFile) -> tuple[onnx.ModelProto, dict[int, ir.TensorProtocol]]:
    """The model message without its big weights, and these by their place among the initializers."""
    view = memoryview(data.mapping)
    try:
        if data.size <= min(_WHOLE_BELOW, _LAZY_ABOVE):
            return onnx.ModelProto.FromString(data.read(0, data.size)), {}
        held = None if data.size > _LAZY_ABOVE else data.read(0, data.size)
        skeleton = read_skeleton(view if held is None else held)
        return skeleton.proto, {
            index: _weight(data, held, skeleton.proto.graph.initializer[index], *window)
            for index, window in skeleton.windows.items()
        }
    except WireError as error:
        raise DefectError(_unreadable(view)) from error
    except DecodeError as error:
        if "depth" in str(error).lower() or "recursion" in str(error).lower():
            raise DefectError(
                "its graphs are nested deeper than protobuf can read (about 32 levels); flatten the control flow"
            ) from error
        raise DefectError(_unreadable(view)) from error


def _weight(
    data: DataFile, held: bytes | None, header: onnx.TensorProto, offset: int, length: int
) -> ir.TensorProtocol:
    """A weight that lies in the file itself: left there, or on the memory that the file has been read into."""
    dtype = ir.DataType(header.data_type)
    if held is None:
        return FileTensor(data, offset, length, dtype, ir.Shape(header.dims), name=header.name)
    return MemoryTensor(held, offset, length, dtype, ir.Shape(header.dims), name=header.name)


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


def _inline(model: ir.Model) -> None:
    """Replace calls of functions by their bodies; the interface stays as it was."""
    if not model.functions:
        return
    from onnx_ir.passes.common import InlinePass

    before = {id(v): v.name for v in model.graph.inputs}
    outputs = [v.name for v in model.graph.outputs]
    InlinePass()(model)
    model.functions.clear()
    _restore_interface(model, before, outputs)
    model.graph.sort()


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


def _leave_on_disk(model: ir.Model, folder: str) -> None:
    """Turn every tensor whose data is in a file beside the model into a FileTensor; the locations have been checked.

    Those in the protobuf become arrays: asking a message for its size and shape, again and again, takes long.
    """
    files: dict[str, DataFile] = {}

    def placed(tensor: ir.TensorProtocol, name: str) -> ir.TensorProtocol:
        if isinstance(tensor, ir.serde.TensorProtoTensor) and tensor.dtype in _PLAIN:
            return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=tensor.name)
        if not isinstance(tensor, ir.ExternalTensor):
            return tensor
        real = os.path.realpath(os.path.join(folder, tensor.location))
        if real not in files:
            files[real] = DataFile(real)
        return FileTensor(files[real], tensor.offset or 0, tensor.nbytes, tensor.dtype, tensor.shape, name=name)

    for graph in all_graphs(model):
        for value in graph.initializers.values():
            if value.const_value is not None:
                value.const_value = placed(value.const_value, value.name or "")
        for node in graph:
            if not len(node.attributes):
                continue
            for name, attr in list(node.attributes.items()):
                held = attribute_tensors(attr)
                if held:
                    moved = [placed(tensor, tensor.name or name) for tensor in held]
                    single = attr.type is ir.AttributeType.TENSOR
                    node.attributes[name] = ir.AttrTensor(name, moved[0]) if single else ir.AttrTensors(name, moved)


def is_standard_op(node: ir.Node, model: ir.Model) -> bool:
    """Whether the ONNX standard has this operator at the opset the model imports."""
    if node.domain:
        return False
    return bool(onnx.defs.has(node.op_type, model.graph.opset_imports.get("", 1), ""))
