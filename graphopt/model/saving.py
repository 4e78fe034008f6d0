"""Writes a model to disk as a whole or not at all, streaming the weights."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.model.foreign import SparseTensor
from graphopt.model.interrupts import InterruptGate
from graphopt.model.proto import tensor_proto, to_proto
from graphopt.model.readback import read_back, read_back_data
from graphopt.model.tensors import FileTensor, all_tensors, tensor_chunks, tensor_identity
from graphopt.model.wire import length_tag

EXTERNAL_ABOVE = 1_500_000_000  #: bytes of weights; larger models get a data file beside them
_PROTOBUF_LIMIT = 2_000_000_000
_KERNEL_COPY_FROM = 1 << 20  #: bytes; smaller tensors are copied through a buffer
_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW = 7, 5, 9
_KEEP_INLINE = 1024  #: bytes; smaller tensors stay in the .onnx even when the rest is external
SOURCE_KEY = "graphopt.source"  #: ``model.meta`` key: the path a model was opened from

ProgressCallback = Callable[[int, int], None]


def save_model(
    model: ir.Model, path: Path | str, *, external: bool | None = None, progress: ProgressCallback | None = None
) -> list[Path]:
    """Write ``model`` to ``path``; returns the files written, the ``.onnx`` first.

    The weights go into the file, or into ``<name>.data`` beside it when they exceed 1.5 GB or ``external`` is true.
    Both are written under temporary names, synced, read back and compared, and renamed: whatever happens (full disk,
    Ctrl-C), there is either the whole model or nothing. Weights on disk are copied in pieces. ``progress(done, total)``
    counts bytes.

    Raises ModelError when the target is the file the model comes from, or cannot be written.
    """
    target = Path(path)
    layout = _Layout(model, target, external)
    _check_target(model, layout)
    files = [target, layout.data_path] if layout.slots else [target]
    temporary = [file.with_name(f".{file.name}.{secrets.token_hex(6)}.tmp") for file in files]
    written: list[Path] = []
    with InterruptGate() as gate:
        # Two nests of cleaning up: an interrupt that breaks the inner one finds the gate closed behind it.
        try:
            try:
                _write(layout, temporary, progress)
                gate.close()
                for here, there in reversed(list(zip(temporary, files, strict=True))):
                    os.replace(here, there)
                    written.append(there)
                _sync_folder(target.parent)
                if gate.pending:
                    raise KeyboardInterrupt
            except BaseException:
                gate.close()
                _remove((*temporary, *written))
                raise
        except OSError as error:
            _remove((*temporary, *written))
            reason = error.strerror or str(error)
            raise ModelError(
                f"{target}: cannot be written ({reason}); nothing is left of it, free the place"
            ) from error
        except BaseException:
            gate.close()
            _remove((*temporary, *written))
            raise
    return files


def file_bytes(model: ir.Model) -> int:
    """Bytes of the files that ``save_model`` would write, but for the few that frame each weight."""
    layout = _Layout(model, Path(model.graph.name or "model"), None)
    message, streamed = _message(layout)
    return int(message.ByteSize()) + layout.length + sum(tensor.nbytes for tensor in streamed if tensor is not None)


@dataclass
class _Layout:
    """Where each tensor goes."""

    model: ir.Model
    target: Path
    external: bool | None
    slots: dict[tuple[object, ...], tuple[int, ir.TensorProtocol]] = field(default_factory=dict)
    length: int = 0  #: bytes of the data file

    def __post_init__(self) -> None:
        sizes: dict[tuple[object, ...], int] = {}
        inline = 0
        for tensor in all_tensors(self.model):
            if _streams(tensor):
                sizes[tensor_identity(tensor)] = tensor.nbytes
                inline += tensor.nbytes
        if self.external is None:
            self.external = sum(sizes.values()) > EXTERNAL_ABOVE or inline > EXTERNAL_ABOVE
        if not self.external:
            if inline > _PROTOBUF_LIMIT:
                raise ModelError(
                    f"{self.target}: {inline} bytes of weights do not fit in one protobuf file; save with external data"
                )
            return
        for tensor in all_tensors(self.model):
            key = tensor_identity(tensor)
            if not _streams(tensor) or tensor.nbytes <= _KEEP_INLINE or key in self.slots:
                continue
            alignment = 4096 if tensor.nbytes >= 1 << 20 else 64
            offset = -(-self.length // alignment) * alignment
            self.slots[key] = (offset, tensor)
            self.length = offset + tensor.nbytes

    @property
    def data_path(self) -> Path:
        return self.target.with_name(self.target.name + ".data")

    def placed(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """What to write in the .onnx for ``tensor``: a pointer into the data file, or itself."""
        slot = self.slots.get(tensor_identity(tensor))
        if slot is None:
            return tensor
        shape = ir.Shape(tensor.shape.numpy())
        return ir.ExternalTensor(
            self.data_path.name, slot[0], tensor.nbytes, tensor.dtype, shape=shape, name=tensor.name or "", base_dir=""
        )

    def in_protobuf(self, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
        """The same for tensors that are not streamed: those on disk are read in."""
        placed = self.placed(tensor)
        if isinstance(placed, FileTensor):
            return ir.tensor(placed.numpy(), dtype=placed.dtype, name=placed.name)
        return placed


def _streams(tensor: ir.TensorProtocol) -> bool:
    """Whether a tensor's bytes are written as they are; strings and sparse tensors are messages of their own."""
    return tensor.dtype is not ir.DataType.STRING and not isinstance(tensor, SparseTensor)


def _check_target(model: ir.Model, layout: _Layout) -> None:
    target = layout.target
    if not target.parent.is_dir():
        raise ModelError(f"{target}: the folder {str(target.parent)!r} does not exist; create it first")
    sources = {str(model.meta[SOURCE_KEY])} if SOURCE_KEY in model.meta else set()
    for tensor in all_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            sources.add(tensor.file.path if isinstance(tensor, FileTensor) else tensor.path)
    for file in (target, layout.data_path):
        if file.is_dir():
            raise ModelError(f"{file}: is a folder; give a file name")
        if not replaceable(file):
            raise ModelError(f"{file}: is not a plain file, so it is not replaced; choose another output")
        if any(_same_file(file, source) for source in sources):
            raise ModelError(f"{file}: holds the input model, which is never overwritten; choose another output")


def replaceable(path: Path) -> bool:
    """Whether nothing or a plain file is there: renaming over a device or a pipe would destroy it for everybody."""
    return path.is_file() or not path.exists()


def _same_file(a: Path, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)


def _remove(files: tuple[Path, ...]) -> None:
    for file in files:
        with contextlib.suppress(OSError):
            file.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


# -- writing --------------------------------------------------------------------------------------------------------
class _Meter:
    """Counts bytes written and tells the callback."""

    def __init__(self, total: int, progress: ProgressCallback | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def add(self, count: int) -> None:
        self.done += count
        if self.progress is not None:
            self.progress(self.done, self.total)


def _write(layout: _Layout, files: list[Path], progress: ProgressCallback | None) -> None:
    """Write both files and read them back. Raises OSError when that fails, or when something else comes back."""
    meter = _Meter(sum(t.nbytes for t in all_tensors(layout.model) if _streams(t)), progress)
    if layout.slots:
        with open(files[1], "xb") as out:
            for offset, tensor in layout.slots.values():
                out.write(b"\0" * (offset - out.tell()))
                _copy(tensor, out, meter)
            _settle(out, lambda: read_back_data(files[1], list(layout.slots.values())))
    message, streamed = _message(layout)
    with open(files[0], "xb") as out:
        _write_protobuf(layout.target, message, streamed, out, meter)
        _settle(out, lambda: read_back(files[0], message, streamed))


def _settle(out: BinaryIO, check: Callable[[], None]) -> None:
    """Have what was written put on the disk, and checked meanwhile."""
    out.flush()
    with ThreadPoolExecutor(1) as pool:
        synced = pool.submit(os.fsync, out.fileno())
        check()
        synced.result()


def _copy(tensor: ir.TensorProtocol, out: BinaryIO, meter: _Meter) -> None:
    if isinstance(tensor, FileTensor) and tensor.nbytes >= _KERNEL_COPY_FROM and _copied_by_kernel(tensor, out, meter):
        return
    for chunk in tensor_chunks(tensor):
        out.write(chunk)
        meter.add(len(chunk))


def _copied_by_kernel(tensor: FileTensor, out: BinaryIO, meter: _Meter) -> bool:
    """Copy file to file without passing through this process; False where the system or file system cannot."""
    copy = getattr(os, "copy_file_range", None)
    if copy is None:
        return False
    out.flush()
    start, target, done = tensor.offset or 0, out.tell(), 0
    while done < tensor.nbytes:
        wanted = min(_KERNEL_COPY_FROM << 6, tensor.nbytes - done)
        try:
            count = copy(tensor.file.fd, out.fileno(), wanted, start + done, target + done)
        except OSError as error:
            if done == 0 and error.errno in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EXDEV):
                return False
            raise
        if count == 0:
            raise OSError(f"{tensor.file.path} ended early, it has been changed while in use")
        done += count
        meter.add(count)
    out.seek(target + done)
    return True


Streamed = list[ir.TensorProtocol | None]  #: for each initializer, the tensor whose data follows its header


def _message(layout: _Layout) -> tuple[onnx.ModelProto, Streamed]:
    """The model as it will be stored, without the data of the main graph's weights, and those that hold it."""
    message = to_proto(layout.model, stand_in=layout.in_protobuf, initializers=False, given_names=True)
    streamed: Streamed = []
    for value in layout.model.graph.initializers.values():
        if value.const_value is None:
            continue
        name, tensor = value.name or "", layout.placed(value.const_value)
        if isinstance(tensor, SparseTensor):
            message.graph.sparse_initializer.append(tensor.to_proto(name))
        elif type(tensor) is ir.ExternalTensor or tensor.dtype is ir.DataType.STRING:
            message.graph.initializer.append(tensor_proto(tensor, name))
            streamed.append(None)
        else:
            message.graph.initializer.add(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
            streamed.append(tensor)
    return message, streamed


def _write_protobuf(target: Path, message: onnx.ModelProto, streamed: Streamed, out: BinaryIO, meter: _Meter) -> None:
    """The model message: everything small through protobuf, the main graph's initializers streamed behind it."""
    rest = onnx.ModelProto()
    rest.CopyFrom(message)
    del rest.graph.initializer[:]
    graph = rest.graph.SerializeToString()
    rest.ClearField("graph")
    heads = [_initializer_head(*pair) for pair in zip(message.graph.initializer, streamed, strict=True)]
    length = len(graph) + sum(map(len, heads)) + sum(tensor.nbytes for tensor in streamed if tensor is not None)
    if length > _PROTOBUF_LIMIT:
        raise ModelError(f"{target}: {length} bytes do not fit in one protobuf file; save with external data")
    out.write(rest.SerializeToString())
    out.write(length_tag(_MODEL_GRAPH, length))
    out.write(graph)
    for head, tensor in zip(heads, streamed, strict=True):
        out.write(head)
        if tensor is not None:
            _copy(tensor, out, meter)


def _initializer_head(header: onnx.TensorProto, tensor: ir.TensorProtocol | None) -> bytes:
    """An initializer inside the graph message, up to where the data of ``tensor`` follows."""
    head: bytes = header.SerializeToString()
    if tensor is None:
        return length_tag(_GRAPH_INITIALIZER, len(head)) + head
    head += length_tag(_TENSOR_RAW, tensor.nbytes)
    return length_tag(_GRAPH_INITIALIZER, len(head) + tensor.nbytes) + head
