"""Weights that stay on disk: tensors that are windows into a file, and the walk over every tensor of a model."""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.model.graphs import bodies

_CACHED = 1 << 19  #: bytes; two pieces of this size stay in the processor's cache
CHUNK = 8 << 20  #: bytes of weights held in memory at once while hashing, comparing or copying


class DataFile:
    """One file of weights, opened once and mapped at most once, however many tensors lie in it.

    The descriptor stays open, so what is read later is the very file that was checked, even if its path changes hands.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self._fd).st_size
        self._mapping: mmap.mmap | None = None

    @property
    def fd(self) -> int:
        return self._fd

    @property
    def mapping(self) -> mmap.mmap:
        if self._mapping is None:
            self._mapping = mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ)
        return self._mapping

    def read(self, offset: int, length: int) -> bytes:
        """``length`` bytes at ``offset``, through a read and not the mapping, so resident memory does not grow."""
        data = os.pread(self._fd, length, offset)
        if len(data) != length:
            raise OSError(f"{self.path}: the file ended at byte {offset + len(data)}, it has been changed while in use")
        return data

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill ``buffer`` from ``offset``; a buffer used again and again stays in the cache."""
        count = os.preadv(self._fd, [buffer], offset)
        if count != len(buffer):
            raise OSError(f"{self.path}: the file ended at byte {offset + count}, it has been changed while in use")

    def __del__(self) -> None:
        fd, self._fd = getattr(self, "_fd", -1), -1
        if fd >= 0:
            os.close(fd)


class FileTensor(ir.ExternalTensor):
    """A tensor that lies in a ``DataFile``: nothing is read before it is asked for, and all tensors share one mapping.

    It is an ``onnx_ir.ExternalTensor`` to everyone else (``path``, ``offset`` and ``length`` are set), so tools that
    know those treat it right.
    """

    __slots__ = ("file",)

    def __init__(
        self, file: DataFile, offset: int, length: int, dtype: ir.DataType, shape: ir.Shape, *, name: str
    ) -> None:
        folder, location = os.path.split(os.path.abspath(file.path))
        super().__init__(location, offset, length, dtype, shape=shape, name=name, base_dir=folder)
        self.file = file

    @property
    def nbytes(self) -> int:  # the base class works it out from the shape, every time
        return self.length or 0

    def numpy(self) -> np.ndarray[Any, Any]:
        if self.size == 0:
            return np.zeros(self.shape.numpy(), dtype=self.dtype.numpy())
        if self.dtype.bitwidth < 8:
            return tensor_from_bytes(self.dtype, self.shape.numpy(), self.tobytes()).numpy()
        dtype = np.dtype(self.dtype.numpy()).newbyteorder("<")
        start = self.offset or 0
        array = np.frombuffer(self.file.mapping, dtype=dtype, offset=start, count=self.size)
        return (array if array.flags.aligned else array.copy()).reshape(self.shape.numpy())

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def tobytes(self) -> bytes:
        return self.file.read(self.offset or 0, self.nbytes)

    def tofile(self, file: Any) -> None:
        for chunk in tensor_chunks(self):
            file.write(chunk)


class MemoryTensor(ir.LazyTensor):
    """A tensor on a part of ``data``, memory that never changes; nothing is copied.

    ``data`` is in ONNX's raw layout (little-endian, small types packed).
    """

    __slots__ = ("memory",)

    def __init__(
        self, data: bytes, offset: int, length: int, dtype: ir.DataType, shape: ir.Shape, *, name: str
    ) -> None:
        super().__init__(self._tensor_over_memory, dtype, shape, name=name)
        self.memory = memoryview(data)[offset : offset + length]

    @property
    def nbytes(self) -> int:
        return len(self.memory)

    def _tensor_over_memory(self) -> ir.TensorProtocol:
        if self.dtype.bitwidth < 8:
            return tensor_from_bytes(self.dtype, self.shape.numpy(), self.tobytes())
        array = np.frombuffer(self.memory, dtype=np.dtype(self.dtype.numpy()).newbyteorder("<"))
        array = array if array.flags.aligned else array.copy()
        return ir.Tensor(array.reshape(self.shape.numpy()), dtype=self.dtype)

    def tobytes(self) -> bytes:
        return bytes(self.memory)


def tensor_from_bytes(dtype: ir.DataType, dims: Sequence[int], data: bytes, *, name: str = "") -> ir.TensorProtocol:
    """A tensor in memory over ``data`` in ONNX's raw layout (little-endian, small types packed)."""
    return ir.serde.TensorProtoTensor(onnx.TensorProto(name=name, data_type=int(dtype), dims=dims, raw_data=data))


def tensor_chunks(tensor: ir.TensorProtocol, size: int = CHUNK) -> Iterator[bytes | memoryview]:
    """The tensor's little-endian bytes in pieces of at most ``size``; a tensor on disk is never held as a whole.

    Strings come as one piece each, preceded by their length, so that two different lists never look alike.
    """
    if tensor.dtype is ir.DataType.STRING:
        for item in string_data(tensor):
            yield len(item).to_bytes(8, "little")
            yield item
        return
    total = tensor.nbytes
    if isinstance(tensor, FileTensor):
        start = tensor.offset or 0
        for at in range(0, total, size):
            yield tensor.file.read(start + at, min(size, total - at))
        return
    data = tensor.memory if isinstance(tensor, MemoryTensor) else memoryview(tensor.tobytes())
    for at in range(0, len(data), size):
        yield data[at : at + size]


def same_bytes(a: ir.TensorProtocol, b: ir.TensorProtocol) -> bool:
    """Whether two tensors hold the same bytes, piece by piece; their types and dims are not looked at."""
    pieces = zip_longest(tensor_chunks(a, _CACHED), tensor_chunks(b, _CACHED), fillvalue=b"")
    return all(bytes(x) == bytes(y) for x, y in pieces)  # views would be compared item by item


def tensor_window(tensor: ir.TensorProtocol, at: int, length: int) -> bytes:
    """``length`` bytes of a numeric tensor from byte ``at``, without reading the rest when it lies on disk."""
    if isinstance(tensor, FileTensor):
        return tensor.file.read((tensor.offset or 0) + at, length)
    if isinstance(tensor, MemoryTensor):
        return bytes(tensor.memory[at : at + length])
    if tensor.dtype.bitwidth >= 8:
        array = tensor.numpy()
        if array.flags.c_contiguous:
            return array.reshape(-1).view(np.uint8)[at : at + length].tobytes()
    return tensor.tobytes()[at : at + length]


def string_data(tensor: ir.TensorProtocol) -> list[bytes]:
    """The elements of a string tensor as bytes, whichever class holds them."""
    if isinstance(tensor, ir.StringTensor):
        return [bytes(item) for item in tensor.string_data()]
    items = np.asarray(tensor.numpy()).reshape(-1).tolist()
    return [item if isinstance(item, bytes) else str(item).encode() for item in items]


def tensor_identity(tensor: ir.TensorProtocol) -> tuple[object, ...]:
    """Equal for two tensors that are one piece of storage (not: for two with equal contents)."""
    if isinstance(tensor, FileTensor):
        return (tensor.file.path, tensor.offset or 0, tensor.nbytes)
    if isinstance(tensor, ir.ExternalTensor):
        return (os.path.realpath(tensor.path), tensor.offset or 0, tensor.nbytes)
    return (id(tensor),)


def byte_count(dtype: ir.DataType, dims: tuple[int, ...]) -> int:
    """Bytes of a dense tensor, in exact integers (2**62 elements are no problem)."""
    return (math.prod(dims) * dtype.bitwidth + 7) // 8


def attribute_tensors(attr: ir.Attr) -> list[ir.TensorProtocol]:
    """The tensors an attribute holds itself; those inside its graphs are not among them."""
    kind = attr.type
    if kind is ir.AttributeType.TENSOR and not attr.is_ref():
        return [attr.as_tensor()]
    if kind is ir.AttributeType.TENSORS and not attr.is_ref():
        return list(attr.as_tensors())
    return []


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Every tensor of every scope: initializers, then those in node attributes. Shared ones come repeatedly."""
    graphs = [model.graph]
    for graph in graphs:
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
        for node in graph:
            if attributes := node.attributes.data:
                for attr in attributes.values():
                    yield from attribute_tensors(attr)
                graphs.extend(bodies(node))
