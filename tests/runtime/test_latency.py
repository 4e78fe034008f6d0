from __future__ import annotations

import json
from functools import partial

import pytest

from graphopt.errors import UsageError
from graphopt.runtime.latency import time_in_turns, time_models, timing_feeds
from graphopt.runtime.memory import peak_memory
from graphopt.runtime.session import Session
from tests.runtime.models import encoder, mlp


def test_table_holds_every_model_at_every_shape() -> None:
    model = mlp()
    sessions = {"a": Session(model, threads=1), "b": Session(model, threads=1)}
    seen: list[tuple[int, int]] = []
    table = time_models(sessions, timing_feeds(model), rounds=4, warmup=1, progress=lambda *s: seen.append(s))
    assert [(r.model, r.shape) for r in table.rows] == [(m, s) for s in ("batch 1", "batch 8") for m in ("a", "b")]
    assert all(r.rounds == 4 and r.median > 0 and r.spread >= 0 for r in table.rows)
    assert table.row("a", "batch 1").ratio == 1 and table.ratio("a") == 1 and table.ratio("b") > 0
    assert table.threads == 1 and table.provider == "CPUExecutionProvider" and table.median("b") > 0
    assert seen == [(i, 8) for i in range(1, 9)]
    json.dumps(table.to_dict())


def test_a_spent_budget_still_leaves_three_rounds() -> None:
    table = time_models({"a": Session(mlp())}, timing_feeds(mlp()), rounds=50, budget_seconds=0.0)
    assert {r.rounds for r in table.rows} == {3}


def test_nothing_to_time() -> None:
    with pytest.raises(UsageError, match="nothing to time"):
        time_models({}, {})


def test_shapes_stay_within_the_position_table() -> None:
    feeds = timing_feeds(encoder(positions=24))
    assert list(feeds) == ["1x16", "1x24", "16x24"] and feeds["16x24"]["input_ids"].shape == (16, 24)


def test_peak_memory() -> None:
    peak = peak_memory()
    assert peak is None or peak > 2**20


def test_models_that_take_turns_are_opened_one_at_a_time() -> None:
    model, opened = mlp(), []

    def opener(name: str) -> Session:
        opened.append(name)
        return Session(model, threads=1)

    openers = {name: partial(opener, name) for name in ("a", "b")}
    table = time_in_turns(openers, timing_feeds(model), rounds=6, budget_seconds=5.0)
    assert opened == ["a", "b", "b", "a", "a", "b"]
    assert [(r.model, r.shape) for r in table.rows] == [(m, s) for s in ("batch 1", "batch 8") for m in ("a", "b")]
    assert all(r.rounds == 6 and r.median > 0 for r in table.rows) and table.ratio("a") == 1
    assert {r.rounds for r in time_in_turns(openers, timing_feeds(model), budget_seconds=0.0).rows} == {3}
