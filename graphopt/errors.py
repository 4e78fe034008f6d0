"""Every error graphopt raises on purpose: one line that names the value, the limit and the fix.

The command line prints ``str(error)`` and exits with ``error.exit_code``; a traceback needs ``--debug``.
"""

from __future__ import annotations

from typing import ClassVar


class GraphoptError(Exception):
    """Base of all deliberate failures."""

    exit_code: ClassVar[int] = 3


class GuardError(GraphoptError):
    """A guard, a target or a comparison failed: the model ran, but is not good enough."""

    exit_code = 1


class UsageError(GraphoptError):
    """A command line, a recipe, a pass parameter or a data specification is wrong."""

    exit_code = 2


class ModelError(GraphoptError):
    """The model cannot be read, is not valid ONNX, or is unsupported."""

    exit_code = 3


class MissingDependencyError(GraphoptError):
    """An execution provider or an optional package is not installed; the message names what to install."""

    exit_code = 4


class PassError(GraphoptError):
    """A pass broke its contract; the pipeline rolls it back and records the message."""
