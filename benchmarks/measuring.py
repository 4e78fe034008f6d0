"""What the checks in this folder share: how they time, how they score, and how they report.

Every check prints a markdown table with one verdict line a limit, and exits 1 when a verdict fails. ``--json FILE``
also writes the rows with the machine, the versions and the settings they hold under.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from graphopt.runtime import Session, cpu_flags
from models.minilm.metric import batches, cosine, pool, read_pairs, spearman

SHAPES: tuple[tuple[int, int], ...] = ((1, 16), (1, 128), (16, 32))  #: batch, sequence of every latency column
VOCABULARY = 30522  #: rows of the reference model's table
_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
_SAMPLE_SECONDS = 0.003  #: shorter runs are repeated inside a round until they take this long

Feed = dict[str, np.ndarray]
Array = np.ndarray


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the module's text with its example, and knows ``--json``."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write rows, verdicts and machine as JSON")
    return made


# -- reports --------------------------------------------------------------------------------------------------------
def machine() -> dict[str, Any]:
    """What the numbers hold for: cores, kernels' instruction sets, versions, and how busy the machine was."""
    from graphopt.pipeline.facts import environment

    facts = environment([], 1)
    return {
        "cpu": facts.cpu,
        "cores": os.cpu_count(),
        "flags": [flag for flag in _TELLING if flag in cpu_flags()],
        "onnxruntime": facts.onnxruntime,
        "onnx": facts.onnx,
        "graphopt": facts.graphopt,
        "python": facts.python,
        "system": platform.system(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }


@dataclass
class Report:
    """One check's table and verdicts, in the order they were measured."""

    title: str
    columns: Sequence[str]
    settings: dict[str, Any] = field(default_factory=dict)
    rows: list[list[Any]] = field(default_factory=list)
    verdicts: list[tuple[bool, str]] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)  #: for JSON only

    def add(self, *cells: Any) -> None:
        """Add one row; progress goes to the terminal at once, because some rows take minutes."""
        self.rows.append(list(cells))
        print("  " + "  ".join(shown(cell) for cell in cells), file=sys.stderr, flush=True)

    def expect(self, holds: bool, text: str) -> None:
        """Note one limit and whether it is met."""
        self.verdicts.append((bool(holds), text))

    @property
    def passed(self) -> bool:
        return all(holds for holds, _ in self.verdicts)

    def finish(self, file: Path | None) -> int:
        """Print everything, write the JSON form if asked for, and return the exit status."""
        about = machine()
        print(f"\n### {self.title}\n")
        print(f"{about['cpu']}, {about['cores']} cores, {' '.join(about['flags'])}; onnxruntime {about['onnxruntime']}")
        for key, value in self.settings.items():
            print(f"{key}: {value}")
        print("\n| " + " | ".join(self.columns) + " |\n|" + "---|" * len(self.columns))
        for row in self.rows:
            print("| " + " | ".join(shown(cell) for cell in row) + " |")
        print()
        for holds, text in self.verdicts:
            print(f"{'PASS' if holds else 'FAIL'}  {text}")
        if file is not None:
            fields = {
                "title": self.title,
                "machine": about,
                "settings": self.settings,
                "rows": [dict(zip(self.columns, row, strict=True)) for row in self.rows],
                "verdicts": [{"holds": holds, "text": text} for holds, text in self.verdicts],
                **self.details,
            }
            file.write_text(json.dumps(fields, indent=2, default=str) + "\n", encoding="utf-8")
        return 0 if self.passed else 1


def shown(cell: Any) -> str:
    """Four significant digits are more than any of these numbers deserves."""
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


# -- time and memory ------------------------------------------------------------------------------------------------
def token_feed(batch: int, length: int, *, ragged: bool = False, seed: int = 0) -> Feed:
    """Inputs of the reference model ``[batch, length]``; ragged rows keep at least one token, the first keeps all."""
    rng = np.random.default_rng(seed)
    kept = rng.integers(1, length + 1, batch) if ragged else np.full(batch, length)
    kept[0] = length
    mask = (np.arange(length) < kept[:, None]).astype(np.int64)
    return {
        "input_ids": rng.integers(1000, VOCABULARY, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": np.zeros_like(mask),
    }


@dataclass(frozen=True)
class Timing:
    """One model at one shape."""

    median: float  #: seconds
    spread: float  #: interquartile range over median
    ratio: float  #: median over the rounds of its time to the reference's in the same round
    rounds: int


def interleaved(
    sessions: Mapping[str, Session],
    shapes: Iterable[tuple[int, int]] = SHAPES,
    *,
    reference: str,
    seconds: float = 60.0,
    feed_of: Callable[[int, int], Feed] = token_feed,
) -> dict[str, dict[tuple[int, int], Timing]]:
    """Time all sessions in turn, one after another in every round, in an order that is drawn anew each round.

    Sessions have one thread, the caller's, so the clock is that thread's processor time: what else runs on the machine
    then costs cache and frequency but no turns. On an idle machine it is the wall clock. Every sample follows an
    untimed run, because a model in service does not find its weights pushed out by two dozen others. ``seconds`` are
    spent per shape, at least 15 rounds.
    """
    found: dict[str, dict[tuple[int, int], Timing]] = {name: {} for name in sessions}
    for shape in shapes:
        feed = feed_of(*shape)
        repeats = {name: _repeats(session, feed) for name, session in sessions.items()}
        times: dict[str, list[float]] = {name: [] for name in sessions}
        order, rng, end = list(sessions), random.Random(0), time.perf_counter() + seconds
        gc.collect()
        gc.disable()
        try:
            while time.perf_counter() < end or len(times[reference]) < 15:
                rng.shuffle(order)
                for name in order:
                    _once(sessions[name], feed, 1)
                    times[name].append(_once(sessions[name], feed, repeats[name]))
        finally:
            gc.enable()
        base = np.asarray(times[reference])
        for name, taken in times.items():
            array = np.asarray(taken)
            low, middle, high = np.percentile(array, (25, 50, 75))
            found[name][shape] = Timing(
                float(middle), float((high - low) / middle), float(np.median(array / base)), len(taken)
            )
    return found


def _repeats(session: Session, feed: Feed) -> int:
    best = min(_once(session, feed, 1) for _ in range(4))
    return max(1, min(20, round(_SAMPLE_SECONDS / max(best, 1e-6))))


def _once(session: Session, feed: Feed, repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        session.run(feed)
    return (time.thread_time() - start) / repeats


def column(shape: tuple[int, int]) -> str:
    """``1x16``."""
    return f"{shape[0]}x{shape[1]}"


@dataclass(frozen=True)
class Usage:
    """What a command took."""

    status: int  #: exit status
    seconds: float  #: by the clock on the wall
    cpu: float  #: processor seconds, user and system
    peak: int  #: resident bytes


def child(command: Sequence[Any], log: Path | None = None) -> Usage:
    """Run a command in a process of its own.

    A child's peak starts at what its parent had resident, so callers must stay small themselves.
    """
    start = time.perf_counter()
    stream = log.open("wb") if log is not None else subprocess.DEVNULL
    try:
        started = subprocess.Popen([str(part) for part in command], stdout=stream, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(started.pid, 0)
    finally:
        if not isinstance(stream, int):
            stream.close()
    started.returncode = os.waitstatus_to_exitcode(status)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Usage(started.returncode, time.perf_counter() - start, usage.ru_utime + usage.ru_stime, peak)


# -- quality --------------------------------------------------------------------------------------------------------
class Pairs:
    """STS-B pairs, tokenized once, on which several models are scored."""

    def __init__(self, folder: Path, split: str = "dev", limit: int | None = None) -> None:
        pairs = read_pairs(folder / f"stsb-en-{split}.csv", limit)
        self.scores = pairs.scores
        self._texts = [*pairs.left, *pairs.right]
        self._unique = list(dict.fromkeys(self._texts))
        self._batches = list(batches(self._unique))
        self.split = split

    def embed(self, session: Session) -> Array:
        """``[2 * pairs, D]``, left sentences first."""
        vectors: dict[str, Array] = {}
        for indices, feed in self._batches:
            rows = pool(next(iter(session.run(feed).values())), feed["attention_mask"])
            vectors.update(zip((self._unique[i] for i in indices), rows, strict=True))
        return np.stack([vectors[text] for text in self._texts])

    def spearman(self, vectors: Array) -> float:
        """Rank correlation x100 with the human scores; 0 for a model that answers with NaN."""
        half = len(self.scores)
        if not np.isfinite(vectors).all():
            return 0.0
        return 100.0 * spearman(cosine(vectors[:half], vectors[half:]), self.scores)

    @staticmethod
    def likeness(vectors: Array, reference: Array) -> float:
        """Mean cosine of each embedding to the reference's."""
        return float(cosine(np.nan_to_num(vectors), reference).mean())


def open_guard(run: Callable[[Feed], Any]) -> float:
    """A task metric that is always content: with it the guard lets every finite result through."""
    return 1.0


def size_of(path: Path) -> int:
    """Bytes of a model file and of the data files beside it that carry its name."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))
