"""The only door to model files: open, save, clone, hash, describe.

In memory a model is an ``onnx_ir.Model`` whose functions are inlined, whose nodes are in order, and in which every node
and value has a name of its own over all scopes. Weights on disk stay there until somebody asks for them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx_ir.passes.common import InlinePass, RemoveInitializersFromInputsPass

from graphopt.errors import ModelError
from graphopt.model_checks import Defect, check_proto, external_window
from graphopt.model_digest import digest, tensor_digest
from graphopt.model_names import make_names_unique
from graphopt.model_saving import EXTERNAL_ABOVE, SOURCE_KEY, save_model
from graphopt.model_tensors import (
    DataFile,
    FileTensor,
    all_tensors,
    attribute_tensors,
    string_data,
    tensor_chunks,
    tensor_identity,
    tensor_window,
)
from graphopt.model_wire import WireError, looks_truncated, read_skeleton

__all__ = [
    "EXTERNAL_ABOVE",
    "FileTensor",
    "Signature",
    "ValueInfo",
    "all_tensors",
    "clone_model",
    "digest",
    "file_digest",
    "is_standard_op",
    "make_names_unique",
    "model_bytes",
    "open_model",
    "provenance",
    "save_model",
    "set_provenance",
    "signature",
    "source_path",
    "string_data",
    "tensor_chunks",
    "tensor_digest",
    "tensor_window",
]

_LAZY_ABOVE = 256 << 20  #: bytes; weights inside larger .onnx files stay in the file
_PREFIX = "graphopt."
# Operators that ONNX Runtime keeps in the standard domain though the standard does not have them (at that version).
_RUNTIME_OPS = {"LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization", "Gelu", "FusedConv"}


# -- opening --------------------------------------------------------------------------------------------------------
def open_model(path: Path | str) -> ir.Model:
    """Open and validate an ONNX file. Nothing outside its folder is read, and no weight before it is used.

    Raises ModelError with one line, "<file>: <cause>; <what to do>".
    """
    file = Path(path)
    try:
        return _open(file)
    except Defect as defect:
        raise ModelError(f"{file}: {defect}") from defect
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error}); check the path") from error


def _open(file: Path) -> ir.Model:
    status = os.stat(file)
    if stat.S_ISDIR(status.st_mode):
        raise Defect("is a folder; give the .onnx file in it")
    if not stat.S_ISREG(status.st_mode):
        raise Defect("is not a plain file; give a .onnx file")
    if status.st_size == 0:
        raise Defect("the file is empty; export or fetch it again")
    data = DataFile(os.path.abspath(file))
    proto, windows = _parse(data)
    folders = [os.path.realpath(file.parent), os.path.dirname(os.path.realpath(file))]
    check_proto(proto, folders, windows)
    files: dict[str, DataFile] = {}
    places = _external_places(proto, folders, files)
    for index, (offset, length) in windows.items():
        places[id(proto.graph.initializer[index])] = (data, offset, length)
    model = _deserialize(proto, places)
    model.meta[SOURCE_KEY] = os.path.abspath(file)
    _normalise(model)
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
        raise Defect(_unreadable(view)) from error
    except DecodeError as error:
        if "depth" in str(error).lower() or "recursion" in str(error).lower():
            raise Defect(
                "its graphs are nested deeper than protobuf can read (about 32 levels); flatten the control flow"
            ) from error
        raise Defect(_unreadable(view)) from error


def _unreadable(view: memoryview) -> str:
    if bytes(view[4:8]) == b"ORTM":
        return "is in ORT format, which cannot be edited; give the .onnx it was made from"
    if looks_truncated(view):
        return "the protobuf is truncated; export or fetch it again"
    return "is not an ONNX protobuf; give a .onnx file"


_Places = dict[int, tuple[DataFile, int, int]]


def _external_places(proto: onnx.ModelProto, folders: list[str], files: dict[str, DataFile]) -> _Places:
    """Where the data of each external TensorProto lies; the key is the message's ``id``."""
    places: _Places = {}

    def place(tensor: onnx.TensorProto) -> None:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            real, offset, length = external_window(tensor, folders, f"initializer {tensor.name!r}")
            if real not in files:
                files[real] = DataFile(real)
            places[id(tensor)] = (files[real], offset, length)

    bodies: list[onnx.GraphProto | onnx.FunctionProto] = [proto.graph, *proto.functions]
    for body in bodies:
        if isinstance(body, onnx.GraphProto):
            for tensor in body.initializer:
                place(tensor)
        for node in body.node:
            for attr in node.attribute:
                for tensor in (*([attr.t] if attr.HasField("t") else ()), *attr.tensors):
                    place(tensor)
                bodies.extend((*([attr.g] if attr.HasField("g") else ()), *attr.graphs))
    return places
