"""Measured time of every node, from ONNX Runtime's profiler."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.model import clone_model, walk_nodes
from graphopt.runtime.dataset import Feed
from graphopt.runtime.session import Session

_MARK = "graphopt:"  #: nodes run under names of ours: the profiler writes names into JSON without escaping them
_SUFFIX = "_kernel_time"
_EVENTS = 400_000  #: the profiler drops what is beyond a million; and reading takes 10 us an event
_MICRO = 1e-6


def node_seconds(
    model: ir.Model,
    feeds: Mapping[str, Feed],
    *,
    provider: str = "cpu",
    threads: int | None = None,
    runs: int = 7,
    warmup: int = 2,
    budget_seconds: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Seconds that each node of the main graph takes in one run, by node name; ``model`` must have unique names.

    Graph optimisations are off, so that every node exists as written: the figures tell where time goes, and their sum
    is more than an optimised session takes. Of each feed the median over ``runs`` counts, after ``warmup`` runs in
    which kernels pack weights and fill caches. Feeds count alike, whatever their size: a node has the mean of its
    shares of each feed's time, times the geometric mean of these times. So the figures add up to a model's time as
    ``LatencyTable.median`` has it, and taking a node away saves its share of that.

    A node with bodies has the time of everything inside. Operators that ONNX Runtime adds (casts, copies) or expands a
    node into (functions without a kernel) are nobody's; a node that did not run has 0. On an accelerator the time is
    that of the call, which may return before the kernel ends.

    ``budget_seconds`` bounds the whole: later runs of a feed are dropped, never the first. ``progress`` is called with
    runs done and runs planned. The profile is written to a temporary folder that is gone afterwards, also on errors.

    Raises ModelError when the model does not run or its nodes cannot be told apart, UsageError without feeds.
    """
    if not feeds:
        raise UsageError("nothing to profile: give at least one feed")
    names = [node.name or "" for node in model.graph]
    if not names:
        return {}
    renamed = _marked(model)
    size = sum(1 for _ in walk_nodes(model))
    possible = _EVENTS // (size * len(feeds))
    warmup = min(warmup, max(possible - 1, 1))
    runs = max(1, min(runs, possible - warmup))
    label = f"model {model.graph.name!r}"
    with tempfile.TemporaryDirectory(prefix="graphopt-", ignore_cleanup_errors=True) as folder:
        prefix = Path(folder) / "profile"
        session = Session(renamed, provider=provider, threads=threads, optimize=False, label=label, profile=prefix)
        try:
            counts = _run(session, feeds, runs, warmup, budget_seconds, progress)
        finally:
            written = session.end_profile()
        measured = _runs(written)
        medians = [_median(label, measured, warmup, count) for count in counts]
    return dict(zip(names, _mean(len(names), medians), strict=True))


def _marked(model: ir.Model) -> ir.Model:
    """A clone whose main-graph nodes are named by their position, and whose other nodes have no name that counts."""
    clone = clone_model(model)
    for node in walk_nodes(clone):
        node.name = None
    for position, node in enumerate(clone.graph):
        node.name = f"{_MARK}{position}"
    return clone


def _run(
    session: Session,
    feeds: Mapping[str, Feed],
    runs: int,
    warmup: int,
    budget: float | None,
    progress: Callable[[int, int], None] | None,
) -> list[int]:
    """Run every feed; how often each ran, warm-up included."""
    counts = []
    planned = (warmup + runs) * len(feeds)
    for position, feed in enumerate(feeds.values(), 1):
        deadline = math.inf if budget is None else time.perf_counter() + budget / len(feeds)
        count = 0
        while count < warmup + runs and (count <= warmup or time.perf_counter() < deadline):
            session.run(feed)
            count += 1
            if progress is not None:
                progress((position - 1) * (warmup + runs) + count, planned)
        counts.append(count)
        if progress is not None:
            progress(position * (warmup + runs), planned)
    return counts


def _runs(path: Path) -> Iterator[dict[int, float]]:
    """Seconds by position of each complete run, in order. The profiler writes one event a line, as it ends."""
    found: dict[int, float] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if f'"{_MARK}' not in line and '"model_run"' not in line:
                continue
            event = json.loads(line.strip().removeprefix("[").removesuffix("]").rstrip(","))
            if event["name"] == "model_run":
                yield found
                found = {}
            elif event["name"].endswith(_SUFFIX):
                name = event["name"].removeprefix(_MARK).removesuffix(_SUFFIX)
                position = int(name.partition("/")[0])  # copies of a shared one: "<name>/duplicated_..."
                found[position] = found.get(position, 0.0) + event["dur"] * _MICRO


def _median(label: str, measured: Iterator[dict[int, float]], warmup: int, count: int) -> dict[int, float]:
    """Median seconds by position over one feed's runs, the first ``warmup`` left out."""
    taken = [run for _, run in zip(range(count), measured, strict=False)][warmup:]
    if not taken:
        raise ModelError(f"{label} runs more operators than ONNX Runtime's profiler records")
    positions = {position for run in taken for position in run}
    if not positions:
        raise ModelError(f"ONNX Runtime timed no node of {label}: its provider may run it as a whole")
    return {position: statistics.median(run.get(position, 0.0) for run in taken) for position in positions}


def _mean(nodes: int, medians: list[dict[int, float]]) -> list[float]:
    """Mean share of the feeds' totals, times the geometric mean of the totals."""
    totals = [max(sum(taken.values()), _MICRO) for taken in medians]
    middle = math.exp(statistics.fmean(map(math.log, totals)))
    found = [0.0] * nodes
    for taken, total in zip(medians, totals, strict=True):
        for position, seconds in taken.items():
            found[position] += middle * seconds / total / len(medians)
    return found
