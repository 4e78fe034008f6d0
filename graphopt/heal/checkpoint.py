"""The state of a training on disk: written as a whole or not at all, and only taken up by the training it is of."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from graphopt.errors import UsageError


def save(path: Path, fingerprint: str, state: dict[str, Any]) -> None:
    """Write ``state``. Raises UsageError when the disk refuses."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save({"fingerprint": fingerprint, **state}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise UsageError(f"checkpoint {path}: cannot be written ({error.strerror or error})") from error
    finally:
        draft.unlink(missing_ok=True)


def load(path: Path, fingerprint: str) -> dict[str, Any]:
    """The state written to ``path``. Raises UsageError for a file that is none, or is of another training."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever its parsers stumble over
        raise UsageError(
            f"checkpoint {path}: cannot be read ({type(error).__name__}); start again without it"
        ) from error
    if not isinstance(state, dict) or state.get("fingerprint") != fingerprint:
        raise UsageError(
            f"checkpoint {path}: is of another training (other model, data or parameters); name another file"
        )
    return state
