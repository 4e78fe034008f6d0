"""How a run tells its caller what it is doing, without knowing about terminals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from graphopt.transform import Progress


class Talk(Protocol):
    """What the pipeline says while it works."""

    def step(self, text: str) -> None:
        """A new stage begins, e.g. a pass."""
        ...

    def info(self, text: str) -> None:
        """Something worth knowing."""
        ...

    def warn(self, text: str) -> None:
        """Something the user should act on."""
        ...

    def progress(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """A progress bar over ``total`` steps."""
        ...


class Silent:
    """Says nothing: the default of the Python API."""

    def step(self, text: str) -> None:
        """Ignore."""

    def info(self, text: str) -> None:
        """Ignore."""

    def warn(self, text: str) -> None:
        """Ignore."""

    @contextmanager
    def progress(self, label: str, total: int) -> Iterator[Progress]:
        """Count for nobody."""
        yield _Nobody()


class _Nobody:
    def advance(self, steps: int = 1) -> None:
        """Ignore."""

    def tell(self, total: int, text: str) -> None:
        """Ignore."""
