"""Open sessions within bounded memory: a run that compares many models holds only as many as fit at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from weakref import WeakKeyDictionary

import onnx_ir as ir

from graphopt.model import model_bytes
from graphopt.runtime.memory import release_free_memory
from graphopt.runtime.session import Session

OPEN_BYTES = 1 << 30  #: weights of all open sessions together; a single larger model is still opened, alone


class Sessions:
    """Opens sessions with the same settings, and lets go of the least recently used ones when memory is short.

    A session that somebody else still refers to stays alive; here it is only no longer kept for the next call.
    """

    def __init__(
        self, provider: str = "cpu", threads: int | None = None, *, exact: bool = False, limit: int = OPEN_BYTES
    ) -> None:
        self.provider, self.threads, self.exact, self.limit = provider, threads, exact, limit
        self.used_providers: list[str] = []  #: what ONNX Runtime really took, of the session opened last
        self._open: WeakKeyDictionary[object, tuple[Session, int]] = WeakKeyDictionary()  # least recently used first

    def get(self, owner: object, model: ir.Model | Path, *, label: str | None = None) -> Session:
        """The session that ``owner`` opened before, or a new one on ``model``.

        Raises ModelError when ONNX Runtime refuses the model.
        """
        found = self._open.pop(owner, None) or (self.open(model, label=label), weight_bytes(model))
        self._open[owner] = found
        return found[0]

    def open(
        self,
        model: ir.Model | Path,
        *,
        outputs: Sequence[str] | None = None,
        optimize: bool = True,
        label: str | None = None,
    ) -> Session:
        """A session for the caller alone, after making room for it."""
        self.make_room(weight_bytes(model))
        session = Session(
            model,
            provider=self.provider,
            threads=self.threads,
            optimize=optimize,
            exact=self.exact,
            outputs=outputs,
            label=label,
        )
        self.used_providers = session.providers
        return session

    def close(self, owner: object) -> None:
        """Let go of one owner's session, if it has one."""
        self._open.pop(owner, None)

    def make_room(self, size: int) -> None:
        """Let go of sessions, oldest first, until ``size`` more bytes of weights fit."""
        while self._open and size + sum(kept for _, kept in self._open.values()) > self.limit:
            del self._open[next(iter(self._open.keys()))]
            release_free_memory()

    def fit(self, models: Sequence[ir.Model | Path]) -> bool:
        """Whether all these models can be open together."""
        return sum(map(weight_bytes, models)) <= self.limit


def weight_bytes(model: ir.Model | Path) -> int:
    """Bytes of a model's weights: counted in memory, or read off the sizes of the file and its data file."""
    if isinstance(model, ir.Model):
        return model_bytes(model)
    data = model.with_name(model.name + ".data")
    return model.stat().st_size + (data.stat().st_size if data.exists() else 0)
