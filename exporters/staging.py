"""Write a model beside its target and move it into place in one step, so that a failure leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from graphopt.errors import GraphoptError, UsageError
from graphopt.model import replaceable


def target_path(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` when an export may be written there.

    Raises: UsageError when it is a folder or its folder is missing.
    """
    target = Path(path)
    if target.is_dir():
        raise UsageError(f"{target} is a folder; name the file to write, such as {target / 'model.onnx'}")
    if not replaceable(target):
        raise UsageError(f"{target} is not a plain file, so it is not replaced; choose another output")
    if not target.parent.is_dir():
        raise UsageError(f"cannot write {target}: the folder {target.parent} does not exist")
    return target


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Yield a path of the same name in a private folder next to ``target``; publish what is there on success.

    External data written as ``<name>.data`` moves along: its location inside the model stays valid because names do
    not change. Data goes first, so that a model never appears without its weights.
    Raises: GraphoptError when the disk refuses (full, read-only).
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise GraphoptError(f"cannot write {target}: {error.strerror or error}") from error
    try:
        draft = folder / target.name
        yield draft
        try:
            for file in sorted(folder.iterdir(), key=lambda file: file == draft):
                with file.open("rb+") as stream:
                    os.fsync(stream.fileno())
                file.replace(target.parent / file.name)
        except OSError as error:
            raise GraphoptError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def external_data_of(path: Path) -> Path | None:
    """Return the file that holds the weights of the model at ``path``, None when the model is a single file."""
    data = path.with_name(path.name + ".data")
    return data if data.exists() else None
