"""What a pass measures with: the pipeline's side of ``graphopt.transform.PassContext``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, PassError
from graphopt.model import file_bytes
from graphopt.pipeline.fidelity import mean_divergence
from graphopt.pipeline.inputs import Feed, Inputs
from graphopt.pipeline.runs import ModelRuns, Outputs
from graphopt.pipeline.talk import Talk
from graphopt.pipeline.timing import Stopwatch
from graphopt.probing.measuring import measure_variants
from graphopt.runtime.loaded import loaded_graph
from graphopt.runtime.metrics import ComparisonAccumulator
from graphopt.runtime.sessions import Sessions
from graphopt.transform import Bounds, Progress, Variant

#: Splits a pass may read; the guard's own is not among them.
OPEN_SPLITS = ("calibration", "selection")


class PipelineContext:
    """Implements PassContext over ONNX Runtime. Answers for the original are kept and shared between calls."""

    def __init__(
        self,
        original: ModelRuns,
        *,
        target: str,
        native: bool,
        seed: int,
        has_data: bool,
        bounds: Bounds,
        judge: Callable[[ir.Model, float], bool],
        stopwatch: Stopwatch,
        talk: Talk,
    ) -> None:
        assert isinstance(original.model, ir.Model)
        self.original: ir.Model = original.model
        self.provider: str = original.sessions.provider
        self.target, self.native, self.bounds = target, native, bounds
        self.seed, self.has_data = seed, has_data
        self._runs = original
        self._judge = judge
        self._stopwatch = stopwatch
        self._talk = talk

    @cached_property
    def can_run(self) -> bool:
        """Whether ONNX Runtime runs the original here; tried when first asked."""
        try:
            for label in self._inputs.probes:
                self._runs.probe(label)
        except GraphoptError:
            return False
        return True

    @property
    def _inputs(self) -> Inputs:
        return self._runs.inputs

    @property
    def _sessions(self) -> Sessions:
        return self._runs.sessions

    def example(self) -> dict[str, np.ndarray] | None:
        """One feed of the calibration split, where real inputs were given."""
        return next(iter(self._inputs.batches("calibration", 1)), None) if self.has_data else None

    def observe(
        self,
        model: ir.Model,
        values: Sequence[str],
        *,
        split: str = "calibration",
        limit: int | None = None,
        rows: int | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Named values of ``model``, batch by batch, over a split."""
        for _, found in self._examples(model, values, split, limit, rows):
            yield found

    def examples(
        self, model: ir.Model, values: Sequence[str], *, split: str = "calibration", limit: int | None = None
    ) -> Iterator[tuple[Feed, Outputs]]:
        """The same with the inputs of each batch."""
        yield from self._examples(model, values, split, limit, None)

    def _examples(
        self, model: ir.Model, values: Sequence[str], split: str, limit: int | None, rows: int | None
    ) -> Iterator[tuple[Feed, Outputs]]:
        self._demand_runs()
        if split not in OPEN_SPLITS:
            raise PassError(f"a pass may observe the splits {' and '.join(OPEN_SPLITS)}, not {split!r}")
        runs = self._runs if model is self.original else ModelRuns(model, self._inputs, self._sessions)
        yield from runs.examples(values, split, limit, rows)

    def divergence(self, model: ir.Model, *, limit: int | None = None) -> float:
        """Mean ``1 - cosine`` to the original's outputs on the selection split."""
        return self.divergences([model], limit=limit)[0]

    def divergences(self, models: Iterable[ir.Model], *, limit: int | None = None) -> list[float]:
        """The same for several models, one after another; the original runs once."""
        self._demand_runs()
        found = []
        for model in models:
            candidate = ModelRuns(model, self._inputs, self._sessions, label="a candidate")
            total = ComparisonAccumulator()
            session = candidate.session
            for feed, expected in self._runs.pairs("selection", limit):
                total.update(expected, session.run(feed))
            found.append(mean_divergence(total.result()))
        return found

    def sensitivities(
        self, model: ir.Model, variants: Sequence[Variant], *, limit: int | None = None
    ) -> dict[str, float]:
        """Mean ``1 - cosine`` of each variant's outputs to ``model``'s on the selection split, by key."""
        self._demand_runs()
        found: dict[str, float] = {}
        with self._talk.progress("sensitivity", len(variants)) as bar:

            def feeds() -> Iterator[Feed]:
                return iter(self._inputs.batches("selection", limit))

            for part in measure_variants(model, variants, feeds, self._sessions, mean_divergence, advance=bar.advance):
                found |= part
        return found

    def latency(
        self, models: Mapping[str, ir.Model], *, rounds: int | None = None, seconds: float | None = None
    ) -> dict[str, float]:
        """Median seconds per run, interleaved; geometric mean over the timing shapes."""
        self._demand_runs()
        runs = {name: self._runs_of(model) for name, model in models.items()}
        return self._stopwatch.seconds(runs, rounds=rounds, budget=seconds)

    def file_bytes(self, model: ir.Model) -> int:
        """Bytes that the model would be written in."""
        return file_bytes(model)

    def node_seconds(self, model: ir.Model) -> dict[str, float]:
        """Measured seconds of each node of the main graph, over the timing shapes."""
        self._demand_runs()
        return self._stopwatch.node_seconds(model)

    def loaded(self, model: ir.Model) -> ir.Model:
        """The graph that ONNX Runtime makes of ``model`` on loading it."""
        self._demand_runs()
        return loaded_graph(model, provider=self.provider, threads=self._sessions.threads)

    def acceptable(self, model: ir.Model, *, margin: float = 0.0) -> bool:
        """Whether the guard would accept ``model`` as a LOSSY result, judged on the selection split."""
        self._demand_runs()
        return self._judge(model, margin)

    def progress(self, label: str, total: int) -> AbstractContextManager[Progress]:
        """A progress bar."""
        return self._talk.progress(label, total)

    def _runs_of(self, model: ir.Model) -> ModelRuns:
        return self._runs if model is self.original else ModelRuns(model, self._inputs, self._sessions)

    def _demand_runs(self) -> None:
        if not self.can_run:
            raise PassError("this model cannot be run here, so nothing can be measured on it")
