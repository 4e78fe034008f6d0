"""Latency of one or several model files in one interleaved run."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, Field

from graphopt.errors import UsageError
from graphopt.model import open_model
from graphopt.pipeline.facts import environment
from graphopt.pipeline.result import Environment
from graphopt.runtime.data import load_dataset
from graphopt.runtime.latency import time_models, timing_feeds
from graphopt.runtime.provider import resolve_provider
from graphopt.runtime.session import Session


class BenchRow(BaseModel):
    """One model at one shape; ``ratio`` refers to the first model in the same rounds."""

    model: str
    shape: str
    median_ms: float
    spread_ms: float
    ratio: float
    rounds: int


class BenchReport(BaseModel):
    """All rows, and the geometric mean of the ratios by model."""

    rows: list[BenchRow]
    ratios: dict[str, float] = Field(default_factory=dict)
    environment: Environment


def bench(
    paths: list[Path],
    *,
    data: str | None = None,
    tokenizer: str | None = None,
    rounds: int = 30,
    provider: str = "cpu",
    threads: int | None = None,
    seed: int = 0,
) -> BenchReport:
    """Time the files on the first one's timing shapes, or on the first batch of ``data``.

    Files are loaded by ONNX Runtime from disk, as a user's program would. Raises UsageError when one file is named
    twice, ModelError when a file does not load or run.
    """
    if len({path.resolve() for path in paths}) != len(paths):
        raise UsageError("the same file is named twice; give each model once")
    resolve_provider(provider)
    names = _short_names(paths)
    first, *_ = [open_model(path) for path in paths]  # ONNX Runtime loads whatever it is given, and says less
    sessions = {
        name: Session(path, provider=provider, threads=threads) for name, path in zip(names, paths, strict=True)
    }
    if data is None:
        feeds = timing_feeds(first, seed=seed, session=sessions[names[0]])
    else:
        batch = next(iter(load_dataset(data, first, tokenizer=tokenizer, seed=seed)), None)
        if batch is None:
            raise UsageError(f"data {data}: no samples in it")
        feeds = {"data": batch}
    table = time_models(sessions, feeds, rounds=rounds)
    rows = [
        BenchRow(
            model=row.model,
            shape=row.shape,
            median_ms=1e3 * row.median,
            spread_ms=1e3 * row.spread,
            ratio=row.ratio,
            rounds=row.rounds,
        )
        for row in table.rows
    ]
    return BenchReport(
        rows=rows,
        ratios={name: table.ratio(name) for name in names},
        environment=environment(sessions[names[0]].providers, threads),
    )


def _short_names(paths: list[Path]) -> list[str]:
    """File names where they tell the models apart, else the paths as given."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]
