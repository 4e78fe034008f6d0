"""A model, its session and what it answered: outputs are kept up to a bound, so nothing is run twice for nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.pipeline.inputs import Feed, Inputs
from graphopt.runtime.memory import release_free_memory
from graphopt.runtime.session import Session
from graphopt.runtime.sessions import Sessions

Outputs = dict[str, np.ndarray]
Shapes = tuple[tuple[int, ...], ...]

ROWS = 8  #: samples of one run: ONNX Runtime keeps what the widest of many shapes took, for each open session
RELEASED = 4  #: runs after which freed memory goes back to the system: holes between arrays of many sizes add up
KEPT_BYTES = 128 << 20  #: outputs kept per split of one model; further batches are run again when needed


class ModelRuns:
    """Runs one model, which must not be edited meanwhile, on the inputs of a pipeline."""

    def __init__(self, model: ir.Model | Path, inputs: Inputs, sessions: Sessions, *, label: str = "the model") -> None:
        self.model, self.inputs, self.sessions, self.label = model, inputs, sessions, label
        self._probed: dict[str, Outputs] = {}
        self._kept: dict[str, list[tuple[Shapes, Outputs]]] = {}

    @property
    def session(self) -> Session:
        """The session, opened when needed. Raises ModelError when ONNX Runtime refuses the model.

        Hold it in a variable over a loop: another model's session may take its place in memory meanwhile.
        """
        return self.sessions.get(self, self.model, label=self.label)

    def close(self) -> None:
        """Free the session; what it answered stays."""
        self.sessions.close(self)

    def probe(self, label: str) -> Outputs:
        """Outputs on one probe."""
        if label not in self._probed:
            self._probed[label] = self.session.run(self.inputs.probes[label])
        return self._probed[label]

    def pairs(self, split: str, limit: int | None = None) -> Iterator[tuple[Feed, Outputs]]:
        """Feeds of a split with this model's outputs, kept for the next time while they are few enough."""
        kept = self._kept.setdefault(split, [])
        session: Session | None = None
        used = sum(_size(value) for _, outputs in kept for value in outputs.values())
        for index, feed in enumerate(self.inputs.batches(split, limit).cut(ROWS)):
            shapes = tuple(array.shape for array in feed.values())
            if index < len(kept) and kept[index][0] == shapes:  # a smaller limit cuts the last batch short
                yield feed, kept[index][1]
                continue
            session = session or self.session
            outputs = session.run(feed)
            needed = sum(map(_size, outputs.values()))
            if index == len(kept) and used + needed <= KEPT_BYTES:
                kept.append((shapes, outputs))
                used += needed
            yield feed, outputs

    def examples(
        self, values: Sequence[str], split: str, limit: int | None, rows: int | None = None
    ) -> Iterator[tuple[Feed, Outputs]]:
        """Feeds of a split, each with the named values, on a session of their own."""
        session = self.sessions.open(self.model, outputs=list(values), label=self.label)
        batches = self.inputs.batches(split, limit)
        for number, feed in enumerate(batches if rows is None else batches.cut(rows), 1):
            yield feed, session.run(feed)
            if number % RELEASED == 0:
                release_free_memory()


def _size(value: Any) -> int:
    """Bytes of an output: an array, a sequence of them, or an optional that is empty."""
    if isinstance(value, list | tuple):
        return sum(map(_size, value))
    return int(getattr(value, "nbytes", 0))
