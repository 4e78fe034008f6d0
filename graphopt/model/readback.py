"""Reads a written model back and holds it against what was to be written, weights by content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from graphopt.model.tensors import DataFile, FileTensor, byte_count, same_bytes
from graphopt.model.wire import WireError, read_skeleton

Slot = tuple[int, ir.TensorProtocol]  #: byte offset in the data file, and the tensor written there


def read_back(path: Path, message: onnx.ModelProto, streamed: Sequence[ir.TensorProtocol | None]) -> None:
    """Raise OSError unless the file at ``path`` is ``message``, whose initializers are stored in order.

    ``streamed`` has for each initializer of ``message`` the tensor that holds its data, or None where the message does.
    """
    data = DataFile(str(path))
    try:
        skeleton = read_skeleton(memoryview(data.mapping))
    except (WireError, DecodeError) as error:
        raise OSError("what was written cannot be read back") from error
    found = skeleton.proto.graph.initializer
    pairs: list[tuple[ir.TensorProtocol, ir.TensorProtocol]] = []
    for index, (header, tensor) in enumerate(zip(found, streamed, strict=False)):
        if tensor is None:
            continue
        dtype, shape = ir.DataType(header.data_type), ir.Shape(header.dims)
        if index in skeleton.windows:
            offset, length = skeleton.windows[index]
            if length != byte_count(dtype, shape.numpy()):
                raise OSError(f"what was written differs in weight {header.name!r}")
            pairs.append((tensor, FileTensor(data, offset, length, dtype, shape, name=header.name)))
        else:
            pairs.append((tensor, ir.serde.TensorProtoTensor(_copied(header))))
            header.ClearField("raw_data")
    _same_contents(pairs)
    if skeleton.proto != message:
        raise OSError("what was written reads back as another model")


def read_back_data(path: Path, slots: Sequence[Slot]) -> None:
    """Raise OSError unless every tensor stands at its offset in the data file at ``path``."""
    data = DataFile(str(path))
    _same_contents(
        [(t, FileTensor(data, at, t.nbytes, t.dtype, ir.Shape(t.shape.numpy()), name=t.name or "")) for at, t in slots]
    )


def _copied(header: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(header)
    return copy


def _same_contents(pairs: Sequence[tuple[ir.TensorProtocol, ir.TensorProtocol]]) -> None:
    for meant, found in pairs:
        same = (meant.dtype, meant.shape.numpy()) == (found.dtype, found.shape.numpy()) and same_bytes(meant, found)
        if not same:
            raise OSError(f"what was written differs in weight {found.name!r}")
