"""How close a model of sentences is to the one it was made from, in three numbers of which none says all."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from benchmarks import measuring
from graphopt.runtime import Session
from models.minilm.metric import batches, pool

NEIGHBOURS, FEW = 10, 100
COLUMNS = ("dev", "overlap", f"of {FEW}", "cosine")


class Neighbours:
    """The ten nearest of each sentence, by cosine, among the first ``limit`` sentences or all."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line]
        self._texts = [line.rsplit("\t", 1)[0] for line in lines[:limit]]

    def of(self, session: Session) -> list[set[int]]:
        """Numbers of each sentence's nearest, itself left out."""
        vectors = np.zeros((len(self._texts), 0), np.float32)
        for indices, feed in batches(self._texts):
            rows = pool(next(iter(session.run(feed).values())), feed["attention_mask"])
            if not vectors.shape[1]:
                vectors = np.zeros((len(self._texts), rows.shape[1]), np.float32)
            vectors[indices] = rows
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        near = vectors @ vectors.T
        np.fill_diagonal(near, -np.inf)
        return [set(row) for row in np.argpartition(-near, NEIGHBOURS, axis=1)[:, :NEIGHBOURS].tolist()]


def overlap(found: list[set[int]], wanted: list[set[int]]) -> float:
    """Mean share of the neighbours kept."""
    return float(np.mean([len(a & b) / NEIGHBOURS for a, b in zip(found, wanted, strict=True)]))


class Closeness:
    """Measures models beside the original.

    STS-B dev is a score of its own; overlap is the share of each sentence's ten nearest neighbours among the SST-2 dev
    sentences that it keeps, and moves where STS-B no longer does; among the first hundred alone there is less to be
    confused with, so it is higher there. Cosine is the mean over the sentences of STS-B dev.
    """

    def __init__(self, original: Session, stsb: Path, sst2: Path, *, pairs: int | None = None) -> None:
        self._pairs = measuring.Pairs(stsb, limit=pairs)
        self._crowds = [Neighbours(sst2, limit) for limit in (None, FEW)]
        self._vectors = self._pairs.embed(original)
        self._near = [crowd.of(original) for crowd in self._crowds]

    @property
    def whole(self) -> float:
        """The original's own STS-B dev."""
        return self._pairs.spearman(self._vectors)

    def __call__(self, session: Session) -> tuple[float, float, float, float]:
        """The numbers of ``COLUMNS``."""
        vectors = self._pairs.embed(session)
        every, few = (overlap(crowd.of(session), near) for crowd, near in zip(self._crowds, self._near, strict=True))
        return self._pairs.spearman(vectors), every, few, self._pairs.likeness(vectors, self._vectors)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser for the original, what ``Closeness`` reads, and sentences to work with."""
    made = measuring.parser(doc)
    made.add_argument("model", type=Path, help="the original")
    made.add_argument("--stsb", type=Path, required=True, help="folder with stsb-en-dev.csv")
    made.add_argument("--sst2", type=Path, required=True, help="sentences with a tab and a label each")
    made.add_argument("--text", type=Path, required=True, help="unlabelled sentences, one a line")
    return made
