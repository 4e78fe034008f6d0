"""Named arrays on disk, read row by row: the members of an .npz file, or the .npy files of a folder."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import IO, Self

import numpy as np

from graphopt.errors import UsageError


class ArrayStore:
    """Arrays by name, opened one at a time and never unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_dir():
            self.names = sorted(p.stem for p in path.glob("*.npy"))
            return
        try:
            with zipfile.ZipFile(path) as archive:
                self.names = [n[: -len(".npy")] for n in archive.namelist() if n.endswith(".npy")]
        except (zipfile.BadZipFile, OSError) as error:
            raise UsageError(f"data {path}: not a readable .npz file ({error})") from error

    def header(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        """Shape and type, without the contents."""
        with self._open(name) as stream:
            shape, _, dtype = self._read_header(name, stream)
            return shape, dtype

    def load(self, name: str) -> np.ndarray:
        """The whole array."""
        with self._open(name) as stream:
            try:
                array: np.ndarray = np.lib.format.read_array(stream, allow_pickle=False)
            except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise UsageError(f"data {self.path}: array {name!r} cannot be read ({_short(error)})") from error
            return array

    def rows(self, name: str, sizes: Sequence[int]) -> Generator[np.ndarray]:
        """Consecutive runs of rows, of the given sizes."""
        with self._open(name) as stream:
            shape, fortran, dtype = self._read_header(name, stream)
            if fortran:
                whole = self.load(name)
                start = 0
                for size in sizes:
                    yield whole[start : start + size]
                    start += size
                return
            row_bytes = math.prod(shape[1:]) * dtype.itemsize
            for size in sizes:
                data = stream.read(size * row_bytes)
                if len(data) != size * row_bytes:
                    raise UsageError(f"data {self.path}: array {name!r} is cut short")
                yield np.frombuffer(data, dtype=dtype).reshape(size, *shape[1:])

    def _open(self, name: str) -> IO[bytes]:
        if self.path.is_dir():
            return (self.path / f"{name}.npy").open("rb")
        return _Member(self.path, f"{name}.npy")  # type: ignore[return-value]

    def _read_header(self, name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
        try:
            version = np.lib.format.read_magic(stream)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(stream)
        except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise UsageError(f"data {self.path}: array {name!r} cannot be read ({_short(error)})") from error
        if dtype.hasobject:
            raise UsageError(f"data {self.path}: array {name!r} holds Python objects (a pickle); save plain arrays")
        return shape, fortran, dtype


class _Member:
    """One member of a zip file as a stream that closes the file with itself."""

    def __init__(self, path: Path, name: str) -> None:
        self._archive = zipfile.ZipFile(path)
        self._stream = self._archive.open(name)

    def read(self, size: int = -1) -> bytes:
        return self._stream.read(size)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._archive.close()


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
