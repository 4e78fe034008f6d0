"""Where results go: checked before the work starts, staged beside the target, moved into place at the end."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.model import all_tensors, replaceable


def default_output(model: Path) -> Path:
    """``<stem>.opt.onnx`` beside the model."""
    return model.with_name(f"{model.stem}.opt.onnx")


def check_output(output: Path, model: ir.Model, source: Path | None) -> None:
    """Refuse a target that cannot be written or that holds part of the input; other existing files are replaced.

    Raises UsageError.
    """
    data = output.with_name(output.name + ".data") if output.name else output
    if output.is_dir() or not output.name:
        raise UsageError(f"{output} is a folder; name the file to write, e.g. {output / 'model.onnx'}")
    for target in (output, data):
        if not replaceable(target):
            raise UsageError(f"{target} is not a plain file, so it is not replaced; choose another output")
    folder = output.parent
    if not folder.is_dir():
        raise UsageError(f"{output}: the folder {str(folder)!r} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise ModelError(f"{output}: the folder {str(folder)!r} is not writable; choose another output")
    held = {Path(t.path) for t in all_tensors(model) if isinstance(t, ir.ExternalTensor)}
    if source is not None:
        held.add(source)
    for target in (output, data):
        if any(_same(target, file) for file in held):
            raise UsageError(f"{target} is part of the input, which is never overwritten; choose another output")


def check_report(report: Path | None, model: Path, output: Path | None = None, *, option: str = "--report") -> None:
    """Refuse a report path that cannot be written or is one of the models. Raises UsageError, naming ``option``."""
    if report is None:
        return
    if report.parent.is_dir() and not os.access(report.parent, os.W_OK):
        raise UsageError(f"{option} {report}: the folder {str(report.parent)!r} is not writable; choose another name")
    if report.is_dir() or not report.parent.is_dir():
        raise UsageError(f"{option} {report}: give a file name in an existing folder")
    if not replaceable(report):
        raise UsageError(f"{option} {report}: is not a plain file, so it is not replaced; choose another name")
    if any(other is not None and _same(report, other) for other in (model, output)):
        raise UsageError(f"{option} {report} is one of the models; choose another name")


def write_report(path: Path, text: str, *, option: str = "--report") -> None:
    """Write a report as a whole or not at all. Raises UsageError, naming ``option``, when the disk refuses."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text + "\n", encoding="utf-8")
        os.replace(draft, path)
    except OSError as error:
        raise UsageError(f"{option} {path}: cannot be written ({error.strerror or error})") from error
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A path of the same name in a private folder next to ``output``; whatever happens, the folder goes.

    ``publish`` moves what was written there.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))
    except OSError as error:
        raise ModelError(f"{output}: cannot be written ({error.strerror or error}); choose another output") from error
    draft = folder / output.name
    try:
        yield draft
    except ModelError as error:  # the user knows the file by its final name
        raise ModelError(str(error).replace(str(draft), str(output))) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def publish(files: list[Path], output: Path) -> list[Path]:
    """Move staged files into place, data before the model that points to it; returns where they are now.

    A Ctrl-C in between comes too late: the result is complete a moment later.
    """
    try:
        with _uninterrupted():
            for file in reversed(files):
                os.replace(file, output.parent / file.name)
    except OSError as error:
        raise ModelError(f"{output}: cannot be written ({error.strerror or error}); choose another output") from error
    return [output.parent / file.name for file in files]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _same(a: Path, b: Path) -> bool:
    try:
        return os.path.samefile(a, b)
    except OSError:
        return os.path.realpath(a) == os.path.realpath(b)
