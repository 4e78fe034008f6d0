"""Latency of several sessions in one interleaved run, as medians, spread, and ratios to the first."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, UsageError
from graphopt.model import uncollected
from graphopt.runtime.dataset import Feed
from graphopt.runtime.dims import dim_role, symbolic_dims
from graphopt.runtime.feeds import synthetic_feed
from graphopt.runtime.inputs import input_facts
from graphopt.runtime.limits import max_length
from graphopt.runtime.provider import cpu_flags, cpu_name
from graphopt.runtime.session import Session

_SEQUENCE_SHAPES = ((1, 16), (1, 128), (16, 32))
_BATCHES = (1, 8)
_SAMPLE_SECONDS = 0.004  #: shorter runs are repeated within a round until they take this long
_MIN_ROUNDS = 3
_TELLING_FLAGS = (
    *("avx2", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "sve"),
)


@dataclass(frozen=True, slots=True)
class LatencyRow:
    """One model at one shape."""

    model: str
    shape: str
    median: float  #: seconds per run
    spread: float  #: interquartile range, seconds
    ratio: float  #: median over the rounds of this model's time to the first model's in the same round
    rounds: int


@dataclass(frozen=True)
class LatencyTable:
    """All rows of one run, and the circumstances that the figures hold under."""

    rows: tuple[LatencyRow, ...]
    threads: int | None  #: None: ONNX Runtime's default, the physical cores
    provider: str
    cpu: str
    cpu_flags: tuple[str, ...]
    onnxruntime: str
    seconds: float  #: what measuring took

    def row(self, model: str, shape: str) -> LatencyRow:
        """One cell."""
        return next(r for r in self.rows if r.model == model and r.shape == shape)

    def median(self, model: str) -> float:
        """Geometric mean over the shapes of the median seconds."""
        return _geometric([r.median for r in self.rows if r.model == model])

    def ratio(self, model: str) -> float:
        """Geometric mean over the shapes of the ratio to the first model."""
        return _geometric([r.ratio for r in self.rows if r.model == model])

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(r) for r in self.rows],
            "threads": self.threads,
            "provider": self.provider,
            "cpu": self.cpu,
            "cpu_flags": list(self.cpu_flags),
            "onnxruntime": self.onnxruntime,
            "seconds": self.seconds,
        }


def time_models(
    sessions: Mapping[str, Session],
    feeds: Mapping[str, Feed],
    *,
    rounds: int = 20,
    warmup: int = 3,
    budget_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """Time every session on every feed. The first session is what ratios refer to.

    In each round every session runs once (or often enough to be measurable), in an order that rotates from round to
    round, so that drift of the machine hits all alike. ``budget_seconds`` bounds the whole table: later rounds are
    dropped, never below three. ``progress`` is called with rounds done and rounds planned.
    """
    _demand(sessions, feeds)
    rounds = max(rounds, 1)
    started = time.perf_counter()
    names = list(sessions)
    taken: Samples = {}
    planned = rounds * len(feeds)
    with uncollected():
        for position, (label, feed) in enumerate(feeds.items()):
            deadline = _deadline(started, budget_seconds, len(feeds) - position)
            repeats = {name: _warm_up(sessions[name], feed, max(warmup, 1)) for name in names}
            for number in range(rounds):
                if number >= _MIN_ROUNDS and time.perf_counter() > deadline:
                    break
                shift = number % len(names)
                for name in names[shift:] + names[:shift]:
                    taken.setdefault((name, label), []).append(_timed(sessions[name], feed, repeats[name]))
                if progress is not None:
                    progress(position * rounds + number + 1, planned)
    return _table(taken, names, list(feeds), (sessions[names[0]].threads, sessions[names[0]].providers[0]), started)


def time_in_turns(
    openers: Mapping[str, Callable[[], Session]],
    feeds: Mapping[str, Feed],
    *,
    rounds: int = 20,
    budget_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LatencyTable:
    """``time_models`` for models that do not fit in memory together: each is opened, timed and let go, in turns.

    Three turns, whose order alternates; sample ``i`` of one model is compared with sample ``i`` of the first, which was
    taken in the same turn. ``budget_seconds`` bounds the runs, not the opening, and leaves a run of each feed a turn.
    """
    _demand(openers, feeds)
    started = time.perf_counter()
    names = list(openers)
    taken: Samples = {}
    each = math.ceil(rounds / _MIN_ROUNDS)
    share = math.inf if budget_seconds is None else budget_seconds / (_MIN_ROUNDS * len(names) * len(feeds))
    counts: dict[str, int] = {}  # samples a turn, by shape
    settings: tuple[int | None, str] = (None, "")
    with uncollected():
        for turn in range(_MIN_ROUNDS):
            for name in names if turn % 2 == 0 else names[::-1]:
                session = openers[name]()
                settings = session.threads, session.providers[0]
                for label, feed in feeds.items():
                    repeats = _warm_up(session, feed, 1)
                    if label not in counts:
                        sample = _timed(session, feed, repeats) * repeats
                        counts[label] = max(1, min(each, int(min(share / max(sample, 1e-9), each))))
                    samples = taken.setdefault((name, label), [])
                    samples += [_timed(session, feed, repeats) for _ in range(counts[label])]
                del session
            if progress is not None:
                progress((turn + 1) * rounds * len(feeds) // _MIN_ROUNDS, rounds * len(feeds))
    return _table(taken, names, list(feeds), settings, started)


Samples = dict[tuple[str, str], list[float]]  #: seconds by model and shape, in the order taken


def _demand(sessions: Mapping[str, Any], feeds: Mapping[str, Feed]) -> None:
    if not sessions or not feeds:
        raise UsageError("nothing to time: give at least one session and one feed")


def _deadline(started: float, budget: float | None, shapes_left: int) -> float:
    """When the next shape has to end: an equal share of what is left."""
    now = time.perf_counter()
    return math.inf if budget is None else now + max(budget - (now - started), 0.0) / shapes_left


def _table(
    taken: Samples, names: Sequence[str], labels: Sequence[str], settings: tuple[int | None, str], started: float
) -> LatencyTable:
    """``settings`` are the threads and the provider that the sessions had."""
    import onnxruntime as ort

    rows: list[LatencyRow] = []
    for label in labels:
        first = np.asarray(taken[names[0], label])
        for name in names:
            times = np.asarray(taken[name, label])
            low, middle, high = np.percentile(times, (25, 50, 75))
            ratio = float(np.median(times / first))
            rows.append(LatencyRow(name, label, float(middle), float(high - low), ratio, len(times)))
    return LatencyTable(
        rows=tuple(rows),
        threads=settings[0],
        provider=settings[1],
        cpu=cpu_name(),
        cpu_flags=tuple(f for f in _TELLING_FLAGS if f in cpu_flags()),
        onnxruntime=ort.__version__,
        seconds=time.perf_counter() - started,
    )


def timing_feeds(model: ir.Model, *, seed: int = 0, session: Session | None = None) -> dict[str, Feed]:
    """Feeds to time a model on: 1x16, 1x128 and 16x32 tokens for sequence models, else batches of 1 and 8.

    Shapes beyond the model's position table are cut to it; shapes that the model cannot run are left out.
    """
    session = session or Session(model)
    facts = {f.name: f for f in input_facts(model)}
    roles = {n: dim_role(n, places, facts) for n, places in symbolic_dims(model).items()}
    longest = max_length(model) or 2**31
    if "length" in roles.values():
        shapes = list(dict.fromkeys((b, min(n, longest)) for b, n in _SEQUENCE_SHAPES))
    else:
        shapes = [(b, 1) for b in _BATCHES] if "batch" in roles.values() else [(1, 1)]
    feeds: dict[str, Feed] = {}
    for batch, length in shapes:
        sizes = {n: {"batch": batch, "length": length}[r] for n, r in roles.items() if r in ("batch", "length")}
        try:
            feed = synthetic_feed(model, sizes, seed=seed, session=session)
        except GraphoptError:
            continue
        feeds[f"{batch}x{length}" if "length" in roles.values() else f"batch {batch}"] = feed
    return feeds or {"default": synthetic_feed(model, seed=seed, session=session)}


def _warm_up(session: Session, feed: Feed, runs: int) -> int:
    """Run a few times; how many runs make one measurable sample."""
    best = math.inf
    for _ in range(runs):
        best = min(best, _timed(session, feed, 1))
    return max(1, min(100, math.ceil(_SAMPLE_SECONDS / max(best, 1e-7))))


def _timed(session: Session, feed: Feed, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        session.run(feed)
    return (time.perf_counter() - start) / repeats


def _geometric(values: list[float]) -> float:
    return math.exp(sum(math.log(max(v, 1e-12)) for v in values) / len(values)) if values else math.nan
