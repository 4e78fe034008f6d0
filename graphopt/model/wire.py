"""Reads an ONNX protobuf without its weights: big initializers stay in the file and are told by offset and length.

Protobuf keeps a message in one piece of memory, twice while parsing. Cutting the ``raw_data`` of big initializers out
of the byte stream first makes a file of any size cheap to open.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW = 7, 5, 9
_KEEP_BELOW = 4096  #: bytes; smaller initializers are parsed like everything else

Buffer = bytes | memoryview


class WireError(ValueError):
    """The bytes are no protobuf message, or end inside one."""


@dataclass
class Skeleton:
    """A parsed model whose big main-graph initializers have no data, and where that data lies."""

    proto: onnx.ModelProto
    windows: dict[int, tuple[int, int]] = field(default_factory=dict)  #: initializer index -> (offset, length)


def varint(value: int) -> bytes:
    """``value`` >= 0 as a protobuf varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def length_tag(number: int, length: int) -> bytes:
    """What precedes ``length`` bytes of field ``number``."""
    return varint(number << 3 | _LENGTH) + varint(length)


def _read_varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= end:
            raise WireError("truncated")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise WireError("not a protobuf")


def _fields(data: Buffer, at: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """(field number, wire type, start of the field, start of its payload, end) for each field of one message."""
    while at < end:
        start = at
        key, at = _read_varint(data, at, end)
        number, kind = key >> 3, key & 7
        if number == 0:
            raise WireError("not a protobuf")
        body = at
        if kind == _VARINT:
            _, at = _read_varint(data, at, end)
        elif kind == _FIXED64:
            at += 8
        elif kind == _FIXED32:
            at += 4
        elif kind == _LENGTH:
            length, body = _read_varint(data, at, end)
            at = body + length
        else:
            raise WireError("not a protobuf")
        if at > end:
            raise WireError("truncated")
        yield number, kind, start, body, at


def looks_truncated(data: Buffer) -> bool:
    """Whether ``data`` reads like a protobuf whose last field runs past the end."""
    seen = False
    try:
        for number, kind, _, _, _ in _fields(data, 0, len(data)):
            seen = seen or (number == 1 and kind == _VARINT)
    except WireError as error:
        return seen and str(error) == "truncated"
    return False


def read_skeleton(data: Buffer) -> Skeleton:
    """Parse ``data`` (a mapped file), leaving the ``raw_data`` of big initializers where it is.

    Raises WireError, or protobuf's DecodeError for what is wrong inside the smaller parts.
    """
    model: list[Buffer] = []
    windows: dict[int, tuple[int, int]] = {}
    for number, kind, start, body, end in _fields(data, 0, len(data)):
        if number == _MODEL_GRAPH and kind == _LENGTH:
            graph = b"".join(_graph_parts(data, body, end, windows))
            model += [length_tag(_MODEL_GRAPH, len(graph)), graph]
        else:
            model.append(data[start:end])
    return Skeleton(onnx.ModelProto.FromString(b"".join(model)), windows)


def _graph_parts(data: Buffer, at: int, end: int, windows: dict[int, tuple[int, int]]) -> Iterator[Buffer]:
    index, kept_from = 0, at
    for number, kind, start, body, stop in _fields(data, at, end):
        if number != _GRAPH_INITIALIZER or kind != _LENGTH:
            continue
        if stop - body >= _KEEP_BELOW:
            header, window = _split_tensor(data, body, stop)
            if window is not None:
                yield data[kept_from:start]
                yield length_tag(_GRAPH_INITIALIZER, len(header)) + header
                windows[index] = window
                kept_from = stop
        index += 1
    yield data[kept_from:end]


def _split_tensor(data: Buffer, at: int, end: int) -> tuple[bytes, tuple[int, int] | None]:
    header, window = [], None
    for number, kind, start, body, stop in _fields(data, at, end):
        if number == _TENSOR_RAW and kind == _LENGTH:
            window = (body, stop - body)
        else:
            header.append(bytes(data[start:stop]))
    return b"".join(header), window
