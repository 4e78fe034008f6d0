"""Datasets: re-iterable streams of feeds, made of samples that can be counted, limited and told apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from graphopt.runtime.dims import dim_role, symbolic_dims
from graphopt.runtime.inputs import input_facts

Feed = dict[str, np.ndarray]
BATCH_ROWS = 32


@dataclass(frozen=True)
class Dataset:
    """A stream of feeds. Iterating again starts again; nothing but the current batch is held in memory.

    A *sample* is one row of a batch where every input has a batch axis in front (``rowwise``), else a whole feed.
    """

    name: str
    source: Callable[[], Iterable[Feed]]
    samples: int | None = None  #: None: not known before reading
    rowwise: bool = True
    synthetic: bool = False
    note: str = ""  #: what a reader of the report should know

    def __iter__(self) -> Iterator[Feed]:
        return iter(self.source())

    def count(self) -> int:
        """The number of samples, reading through the data when it is not known."""
        return self.samples if self.samples is not None else sum(self.size(feed) for feed in self)

    def size(self, feed: Feed) -> int:
        """How many samples one feed holds."""
        if not self.rowwise:
            return 1
        leading = {a.shape[0] if a.ndim else -1 for a in feed.values()}
        return leading.pop() if len(leading) == 1 and -1 not in leading else 1

    def head(self, limit: int | None) -> Dataset:
        """The first ``limit`` samples; the last batch is cut when it holds more."""
        if limit is None or (self.samples is not None and self.samples <= limit):
            return self

        def source() -> Iterator[Feed]:
            left = limit
            for feed in self:
                if left <= 0:
                    return
                size = self.size(feed)
                yield feed if size <= left else rows_of(feed, slice(0, left))
                left -= size

        return replace(self, source=source, samples=None if self.samples is None else min(limit, self.samples))

    def cut(self, rows: int) -> Dataset:
        """The same samples in batches of ``rows`` at most."""

        def source() -> Iterator[Feed]:
            for feed in self:
                if self.size(feed) <= rows or not self._separable(feed):
                    yield feed
                else:
                    yield from (rows_of(feed, slice(at, at + rows)) for at in range(0, self.size(feed), rows))

        return replace(self, source=source)

    def keys(self, feed: Feed) -> list[bytes]:
        """A content digest per sample."""
        size = self.size(feed)
        if size == 1 or not self._separable(feed):
            return [_digest(feed)]
        return [_digest(rows_of(feed, slice(i, i + 1))) for i in range(size)]

    def where(self, wanted: Callable[[bytes], bool], name: str, *, rows: int = BATCH_ROWS) -> Dataset:
        """Only the samples whose digest is wanted. Rows of equal shapes are batched again, up to ``rows`` at a time."""

        def source() -> Iterator[Feed]:
            waiting: dict[tuple[object, ...], list[Feed]] = {}
            for feed in self:
                keep = [i for i, key in enumerate(self.keys(feed)) if wanted(key)]
                if not keep:
                    continue
                if not self._separable(feed):
                    yield feed
                    continue
                part = rows_of(feed, keep) if len(keep) < self.size(feed) else feed
                signature = tuple((n, a.shape[1:], a.dtype.str) for n, a in part.items())
                queue = waiting.setdefault(signature, [])
                queue.append(part)
                total = sum(self.size(q) for q in queue)
                if total >= rows:
                    joined = joined_rows(queue)
                    yield rows_of(joined, slice(0, rows))
                    waiting[signature] = [rows_of(joined, slice(rows, None))] if total > rows else []
            for queue in waiting.values():
                if queue:
                    yield joined_rows(queue)

        return replace(self, source=source, name=name, samples=None)

    def _separable(self, feed: Feed) -> bool:
        return (
            self.rowwise
            and len({a.shape[0] if a.ndim else -1 for a in feed.values()} - {-1}) == 1
            and all(a.ndim for a in feed.values())
        )


def rows_of(feed: Mapping[str, np.ndarray], rows: slice | Sequence[int]) -> Feed:
    """The chosen rows of every input."""
    return {name: array[rows] for name, array in feed.items()}


def joined_rows(feeds: Sequence[Feed]) -> Feed:
    """Feeds of equal row shapes as one."""
    return feeds[0] if len(feeds) == 1 else {n: np.concatenate([f[n] for f in feeds]) for n in feeds[0]}


def is_rowwise(model: ir.Model) -> bool:
    """Whether every input has a dynamic batch axis in front, so that a batch is a stack of independent samples."""
    facts = {f.name: f for f in input_facts(model)}
    places = symbolic_dims(model)
    for fact in facts.values():
        if not fact.dims or isinstance(fact.dims[0], int):
            return False
        name = fact.dims[0]
        if name not in places or dim_role(name, places[name], facts) != "batch":
            return False
    return bool(facts)


def _digest(feed: Feed) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(feed):
        array = feed[name]
        hasher.update(f"{name}{array.dtype.str}{array.shape}".encode())
        hasher.update(repr(array.tolist()).encode() if array.dtype == object else np.ascontiguousarray(array).tobytes())
    return hasher.digest()
