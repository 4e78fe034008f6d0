"""Failures as one line on stderr and an exit code; a traceback only with ``--debug``.

0 ok; 1 a guard, target or comparison failed; 2 usage or recipe error; 3 the model cannot be read or is unsupported;
4 a provider or optional dependency is missing; 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import warnings
from typing import Any

from graphopt.errors import GraphoptError

USAGE, UNSUPPORTED, MISSING, INTERRUPTED = 2, 3, 4, 130


def guarded(arguments: list[str]) -> int:
    """Run the command line; never raises."""
    try:
        _stop_cleanly_on_terminate()
        from graphopt.cli.app import app

        with warnings.catch_warnings():
            if "--debug" not in arguments:  # other packages' warnings are no talk of ours
                warnings.simplefilter("ignore")
            code = app(args=arguments, prog_name="graphopt", standalone_mode=False)
        if code == INTERRUPTED:
            return report(KeyboardInterrupt(), arguments)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except SystemExit as stop:
        if isinstance(stop.__context__, OSError):  # the argument parser exits on a closed pipe without a word
            return report(stop.__context__, arguments)
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException as error:
        return report(error, arguments)


def report(error: BaseException, arguments: list[str]) -> int:
    """Print one line about ``error`` and return its exit code."""
    if isinstance(error, BrokenPipeError) or (isinstance(error, OSError) and error.errno == errno.EPIPE):
        # The reader went away, e.g. `graphopt inspect | head`: no failure. The interpreter's own flush must stay quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if "--debug" in arguments and not _is_exit(error):
        import traceback

        traceback.print_exception(error)
    text, code = describe(error, arguments)
    if text:
        print(f"graphopt: {text}", file=sys.stderr)
    return code


def describe(error: BaseException, arguments: list[str]) -> tuple[str, int]:
    """The line and the exit code of one failure."""
    if isinstance(error, GraphoptError):
        return _one_line(str(error)), error.exit_code
    if isinstance(error, KeyboardInterrupt) or type(error).__name__ == "Abort":
        return "interrupted; no output was written", INTERRUPTED
    if _is_exit(error):
        return "", int(getattr(error, "exit_code", 0))
    if hasattr(error, "format_message"):  # the argument parser's own errors
        command = _command_of(error, arguments)
        return f"{_one_line(error.format_message())} Try 'graphopt {command}--help'.", USAGE
    if isinstance(error, MemoryError):
        return "out of memory; close other programs or use a machine with more", UNSUPPORTED
    if isinstance(error, ModuleNotFoundError):
        return f"package {error.name!r} is not installed; install it with pip", MISSING
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}", UNSUPPORTED
    kind = f"{type(error).__name__}: {_one_line(str(error))}"
    return f"unexpected {kind}; run again with --debug for the traceback", UNSUPPORTED


def _is_exit(error: BaseException) -> bool:
    return type(error).__name__ == "Exit" and hasattr(error, "exit_code")


def _command_of(error: Any, arguments: list[str]) -> str:
    context = getattr(error, "ctx", None)
    path = str(getattr(context, "command_path", "")).split()[1:]
    return " ".join(path) + " " if path else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _stop_cleanly_on_terminate() -> None:
    """Treat SIGTERM like Ctrl-C, so that temporary files go in both cases."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
