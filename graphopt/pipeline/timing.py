"""Latency of several models in one interleaved run, over the same inputs every time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, partial

import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.pipeline.inputs import Feed
from graphopt.pipeline.result import LatencyRow
from graphopt.pipeline.runs import ModelRuns
from graphopt.pipeline.talk import Silent, Talk
from graphopt.runtime.feeds import synthetic_feed
from graphopt.runtime.latency import LatencyTable, time_in_turns, time_models, timing_feeds
from graphopt.runtime.profile import node_seconds

SLOWER = 1.05  #: a step counts as slower beyond this ratio, in two measurements
_ROUNDS, _BUDGET = 9, 2.5  #: rounds, and seconds for one table, when a pass or a step is judged
_FINAL_ROUNDS, _FINAL_BUDGET = 20, 6.0  #: for the table in the report
_PROFILE_RUNS, _PROFILE_WARMUP, _PROFILE_BUDGET = 7, 2, 6.0  #: of each shape, when nodes are timed one by one
_SLOW = 0.5  #: seconds of one run of the original, beyond which a shape is left to the final table


class Stopwatch:
    """Times models on the shapes of one original; with ``sizes`` of its dynamic dims, by name, at these alone."""

    def __init__(
        self, original: ModelRuns, *, seed: int, talk: Talk | None = None, sizes: Mapping[str, int] | None = None
    ) -> None:
        self._original, self._seed, self._sizes = original, seed, sizes
        self._talk = talk or Silent()

    @cached_property
    def feeds(self) -> dict[str, Feed]:
        """The timing inputs, by shape."""
        model = self._original.model
        assert isinstance(model, ir.Model)
        if self._sizes is not None:
            label = " ".join(f"{name}={size}" for name, size in self._sizes.items())
            return {label: synthetic_feed(model, self._sizes, seed=self._seed, session=self._original.session)}
        try:
            return timing_feeds(model, seed=self._seed, session=self._original.session)
        except UsageError:  # it runs on no synthetic input
            return self._original.inputs.probes

    @cached_property
    def quick_feeds(self) -> dict[str, Feed]:
        """Those that a step is judged on: without the ones that take the original longer than a moment, but one."""
        taken: dict[str, float] = {}
        for shape, feed in self.feeds.items():
            started = time.perf_counter()
            self._original.session.run(feed)
            taken[shape] = time.perf_counter() - started
        fastest = min(taken, key=lambda shape: taken[shape])
        return {shape: feed for shape, feed in self.feeds.items() if taken[shape] <= _SLOW or shape == fastest}

    def table(
        self, models: Mapping[str, ModelRuns], feeds: Mapping[str, Feed], *, rounds: int, budget: float
    ) -> LatencyTable:
        """All figures; ratios refer to the first model."""
        together = self._original.sessions.fit([runs.model for runs in models.values()])
        with self._advancing("timing", rounds * len(feeds)) as advance:
            if together:
                sessions = {name: runs.session for name, runs in models.items()}
                return time_models(sessions, feeds, rounds=rounds, budget_seconds=budget, progress=advance)
            openers = {name: partial(getattr, runs, "session") for name, runs in models.items()}
            return time_in_turns(openers, feeds, rounds=rounds, budget_seconds=budget, progress=advance)

    def seconds(
        self, models: Mapping[str, ModelRuns], *, rounds: int | None = None, budget: float | None = None
    ) -> dict[str, float]:
        """Median seconds, geometric mean over the shapes; ``budget`` is what the table may take, in seconds.

        Those of the first model; the others' are its times their ratio to it, round by round, which noise hits less.
        """
        if not models:
            return {}
        table = self.table(models, self.quick_feeds, rounds=rounds or _ROUNDS, budget=budget or _BUDGET)
        first = table.median(next(iter(models)))
        return {name: first * table.ratio(name) for name in models}

    def node_seconds(self, model: ir.Model) -> dict[str, float]:
        """Seconds of each node by name, as ``graphopt.runtime.profile`` measures them."""
        sessions, feeds = self._original.sessions, self.quick_feeds
        with self._advancing("timing nodes", (_PROFILE_RUNS + _PROFILE_WARMUP) * len(feeds)) as advance:
            return node_seconds(
                model,
                feeds,
                provider=sessions.provider,
                threads=sessions.threads,
                runs=_PROFILE_RUNS,
                warmup=_PROFILE_WARMUP,
                budget_seconds=_PROFILE_BUDGET,
                progress=advance,
            )

    @contextmanager
    def _advancing(self, label: str, total: int) -> Iterator[Callable[[int, int], None]]:
        """A bar that is told how much is done of how much; what was planned less scales to ``total``."""
        with self._talk.progress(label, total) as bar:
            shown = 0

            def advance(done: int, planned: int) -> None:
                nonlocal shown
                reached = total * done // max(planned, 1)
                bar.advance(reached - shown)
                shown = reached

            yield advance

    def step(self, original: ModelRuns, before: ModelRuns, after: ModelRuns) -> tuple[float, float]:
        """``after`` against the original and against ``before``; of a slow-down, the better of two tries counts."""
        models = {"original": original, "before": before, "after": after}
        if before is original:
            del models["before"]
        reference = "before" if "before" in models else "original"
        table = self.table(models, self.quick_feeds, rounds=_ROUNDS, budget=_BUDGET)
        total, step = table.ratio("after"), table.ratio("after") / table.ratio(reference)
        if step > SLOWER:
            again = self.table(models, self.quick_feeds, rounds=2 * _ROUNDS, budget=2 * _BUDGET)
            repeated = again.ratio("after") / again.ratio(reference)
            if repeated < step:
                total, step = again.ratio("after"), repeated
        return total, step

    def final(self, original: ModelRuns, result: ModelRuns) -> tuple[list[LatencyRow], float, LatencyTable]:
        """The rows of the report and the geometric mean of their ratios."""
        models = {"original": original, "result": result}
        table = self.table(models, self.feeds, rounds=_FINAL_ROUNDS, budget=_FINAL_BUDGET)
        rows = [latency_row(table, shape, "original", "result") for shape in self.feeds]
        return rows, table.ratio("result"), table


def latency_row(table: LatencyTable, shape: str, first: str, second: str) -> LatencyRow:
    """One shape of two models, in milliseconds."""
    a, b = table.row(first, shape), table.row(second, shape)
    spread = max(a.spread / a.median, b.spread / b.median) if a.median > 0 and b.median > 0 else math.nan
    return LatencyRow(
        shape=shape,
        original_ms=1e3 * a.median,
        optimized_ms=1e3 * b.median,
        ratio=b.ratio,
        spread=None if math.isnan(spread) else spread,
    )
