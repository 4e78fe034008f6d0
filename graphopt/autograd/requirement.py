"""torch is an optional dependency: said in one line where it is needed and missing."""

from __future__ import annotations

from importlib.util import find_spec

from graphopt.errors import MissingDependencyError


def require_torch() -> None:
    """Raise MissingDependencyError unless torch is installed; nothing is imported."""
    if find_spec("torch") is None:
        raise MissingDependencyError(
            "running ONNX in torch needs torch, which is not installed: pip install graphopt[torch]"
        )
