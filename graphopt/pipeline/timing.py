"""Latency of several models in one interleaved run, over the same inputs every time."""

from __future__ import annotations

import math
from collections.abc import Mapping

from graphopt.pipeline.inputs import Feed
from graphopt.pipeline.result import LatencyRow
from graphopt.pipeline.runs import ModelRuns
from graphopt.runtime.latency import LatencyTable, time_models, timing_feeds

SLOWER = 1.05  #: a step counts as slower beyond this ratio, in two measurements
_ROUNDS, _BUDGET = 9, 2.5  #: rounds, and seconds for one table, when a pass or a step is judged
_FINAL_ROUNDS, _FINAL_BUDGET = 20, 6.0  #: for the table in the report


class Stopwatch:
    """Times models on the shapes of one original."""

    def __init__(self, original: ModelRuns, *, seed: int) -> None:
        self._original, self._seed = original, seed
        self._feeds: dict[str, Feed] | None = None

    @property
    def feeds(self) -> dict[str, Feed]:
        """The timing inputs, by shape."""
        if self._feeds is None:
            from onnx_ir import Model

            model = self._original.model
            assert isinstance(model, Model)
            self._feeds = timing_feeds(model, seed=self._seed, session=self._original.session)
        return self._feeds

    def table(self, models: Mapping[str, ModelRuns], *, rounds: int = _ROUNDS, budget: float = _BUDGET) -> LatencyTable:
        """All figures; ratios refer to the first model."""
        sessions = {name: runs.session for name, runs in models.items()}
        return time_models(sessions, self.feeds, rounds=rounds, budget_seconds=budget)

    def seconds(self, models: Mapping[str, ModelRuns], *, rounds: int | None = None) -> dict[str, float]:
        """Median seconds, geometric mean over the shapes."""
        if not models:
            return {}
        table = self.table(models, rounds=rounds or _ROUNDS)
        return {name: table.median(name) for name in models}

    def step(self, original: ModelRuns, before: ModelRuns, after: ModelRuns) -> tuple[float, float]:
        """``after`` against the original and against ``before``; of a slow-down, the better of two tries counts."""
        models = {"original": original, "before": before, "after": after}
        if before is original:
            del models["before"]
        reference = "before" if "before" in models else "original"
        table = self.table(models)
        total, step = table.ratio("after"), table.ratio("after") / table.ratio(reference)
        if step > SLOWER:
            again = self.table(models, rounds=2 * _ROUNDS, budget=2 * _BUDGET)
            repeated = again.ratio("after") / again.ratio(reference)
            if repeated < step:
                total, step = again.ratio("after"), repeated
        return total, step

    def final(self, original: ModelRuns, result: ModelRuns) -> tuple[list[LatencyRow], float, LatencyTable]:
        """The rows of the report and the geometric mean of their ratios."""
        models = {"original": original, "result": result}
        table = self.table(models, rounds=_FINAL_ROUNDS, budget=_FINAL_BUDGET)
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
