"""Keeps large rewritten weights on disk between passes, so that a run's memory does not grow with what it has made."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx_ir as ir

from graphopt.model.foreign import SparseTensor
from graphopt.model.graphs import all_graphs
from graphopt.model.tensors import DataFile, FileTensor, tensor_chunks, tensor_identity

SPILL_ABOVE = 256 << 20  #: bytes of one model's weights in memory; less than that stays there
_SMALLEST = 1 << 16  #: bytes; smaller tensors stay where they are
_ALIGNMENT = 4096  #: a page, so that ONNX Runtime can map a weight by itself


class SpillFolder:
    """A temporary folder for weights. What was moved there can still be read after ``close``."""

    def __init__(self, above: int = SPILL_ABOVE) -> None:
        self.above = above
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def spill(self, model: ir.Model) -> int:
        """Move ``model``'s initializers that are in memory to a file when there are many; returns the bytes moved.

        Raises OSError when the file cannot be written; the model is then as it was.
        """
        found: dict[tuple[object, ...], tuple[ir.TensorProtocol, list[ir.Value]]] = {}
        for graph in all_graphs(model):
            for value in graph.initializers.values():
                tensor = value.const_value
                if (
                    tensor is None
                    or isinstance(tensor, ir.ExternalTensor | SparseTensor)
                    or tensor.dtype is ir.DataType.STRING
                ):
                    continue
                if tensor.nbytes >= _SMALLEST:
                    found.setdefault(tensor_identity(tensor), (tensor, []))[1].append(value)
        total = sum(tensor.nbytes for tensor, _ in found.values())
        if total < self.above or not found:
            return 0
        path = self._path()
        offsets: list[int] = []
        try:
            with path.open("wb") as file:
                for tensor, _ in found.values():
                    file.seek(-(-file.tell() // _ALIGNMENT) * _ALIGNMENT)
                    offsets.append(file.tell())
                    for chunk in tensor_chunks(tensor):
                        file.write(chunk)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        data = DataFile(str(path))
        for offset, (old, values) in zip(offsets, found.values(), strict=True):
            shape = ir.Shape(old.shape.numpy())
            new = FileTensor(data, offset, old.nbytes, old.dtype, shape, name=values[0].name or "")
            for value in values:
                value.const_value = new
        return total

    def close(self) -> None:
        """Remove the folder. Its files stay readable to the tensors that lie in them."""
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _path(self) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True)
        self._count += 1
        return Path(self._folder.name) / f"weights-{self._count}.data"
