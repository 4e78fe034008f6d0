"""A PassContext over arrays in memory, for testing passes and what they measure with."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.model import file_bytes
from graphopt.pipeline.fidelity import mean_divergence
from graphopt.probing.measuring import measure_variants
from graphopt.runtime.feeds import symbolic_dims, synthetic_feed
from graphopt.runtime.loaded import loaded_graph
from graphopt.runtime.provider import default_target
from graphopt.runtime.session import Session
from graphopt.runtime.sessions import Sessions
from graphopt.transform import Bounds, Variant

Feed = dict[str, np.ndarray]


class FakeContext:
    """Splits are lists of feeds; ``limit`` counts feeds. ``accept`` judges a divergence."""

    def __init__(
        self, original: ir.Model, *, feeds: int = 12, size: int = 6, has_data: bool = True, accept: float = 1.0
    ) -> None:
        self.original, self.has_data, self.can_run, self.seed = original, has_data, True, 0
        self.provider, self.target, self.native, self.bounds = "cpu", default_target(), True, Bounds()
        self.time: Callable[[ir.Model], float] = lambda _: 1.0  # seconds of a run
        self.accept, self.observed = accept, 0
        self.seconds: dict[str, float] = {}  # of single nodes; the others take 1.0
        dims = symbolic_dims(original)
        made = [synthetic_feed(original, dict.fromkeys(dims, size), seed=i, ragged=True) for i in range(feeds)]
        self.splits = {"calibration": made[: feeds * 2 // 3], "selection": made[feeds * 2 // 3 :]}

    def example(self) -> Feed | None:
        return self.splits["calibration"][0] if self.has_data else None

    def observe(
        self,
        model: ir.Model,
        values: Sequence[str],
        *,
        split: str = "calibration",
        limit: int | None = None,
        rows: int | None = None,
    ) -> Iterator[Feed]:
        for _, found in self.examples(model, values, split=split, limit=limit):
            yield found

    def examples(
        self, model: ir.Model, values: Sequence[str], *, split: str = "calibration", limit: int | None = None
    ) -> Iterator[tuple[Feed, Feed]]:
        assert self.has_data, "this pass must not read data"
        session = Session(model, optimize=False, outputs=list(dict.fromkeys(values)), threads=1)
        for feed in self.splits[split][:limit]:
            self.observed += 1
            yield feed, session.run(feed)

    def divergences(self, models: Iterable[ir.Model], *, limit: int | None = None) -> list[float]:
        reference = Session(self.original, optimize=False, threads=1)
        wanted = [reference.run(feed) for feed in self.splits["selection"][:limit]]
        found = []
        for model in models:
            session = Session(model, optimize=False, threads=1)
            runs = zip(self.splits["selection"][:limit], wanted, strict=True)
            found.append(float(np.mean([_far(session.run(feed), want) for feed, want in runs])))
        return found

    def divergence(self, model: ir.Model, *, limit: int | None = None) -> float:
        return self.divergences([model], limit=limit)[0]

    def sensitivities(
        self, model: ir.Model, variants: Sequence[Variant], *, limit: int | None = None
    ) -> dict[str, float]:
        def feeds() -> Iterator[Feed]:
            return iter(self.splits["selection"][:limit])

        parts = measure_variants(model, variants, feeds, Sessions(threads=1), mean_divergence, advance=lambda: None)
        return {key: loss for part in parts for key, loss in part.items()}

    def latency(
        self, models: Mapping[str, ir.Model], *, rounds: int | None = None, seconds: float | None = None
    ) -> dict[str, float]:
        return {name: self.time(model) for name, model in models.items()}

    def file_bytes(self, model: ir.Model) -> int:
        return file_bytes(model)

    def node_seconds(self, model: ir.Model) -> dict[str, float]:
        return {node.name or "": self.seconds.get(node.name or "", 1.0) for node in model.graph}

    def loaded(self, model: ir.Model) -> ir.Model:
        return loaded_graph(model, threads=1)

    def acceptable(self, model: ir.Model, *, margin: float = 0.0) -> bool:
        return self.divergence(model) <= self.accept * (1.0 - margin)

    def progress(self, label: str, total: int) -> contextlib.AbstractContextManager[_Silent]:
        return contextlib.nullcontext(_Silent())


class _Silent:
    def advance(self, steps: int = 1) -> None:
        pass

    def tell(self, total: int, text: str) -> None:
        pass


def _far(a: Feed, b: Feed) -> float:
    pairs = [(a[k].reshape(-1), b[k].reshape(-1)) for k in b]
    return float(np.mean([1 - x @ y / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-12) for x, y in pairs]))
