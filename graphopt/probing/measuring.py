"""How far the outputs of many variants are from the original's: one pass over the inputs serves a dozen of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.model import model_bytes
from graphopt.probing.tails import Tail, Trunk
from graphopt.runtime.metrics import ComparisonAccumulator, OutputComparison
from graphopt.runtime.sessions import Sessions
from graphopt.transform import Variant

TOGETHER = 12  #: variants whose sessions are open at once

Judge = Callable[[Mapping[str, OutputComparison]], float]


def measure_variants(
    model: ir.Model,
    variants: Sequence[Variant],
    feeds: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    sessions: Sessions,
    judge: Judge,
    *,
    advance: Callable[[], None],
) -> Iterator[dict[str, float]]:
    """What ``judge`` says of each variant's outputs beside the original's, by key; a dozen variants at a time.

    Of each variant only the part behind its first change is run, on values that one run of the original gives for all
    variants of a pass. Each has its own session, so they run in the kernels that they would have in the end. Memory
    does not grow with the number of inputs. ``advance`` is called for each variant and pass.
    """
    trunk = Trunk(model)
    position = {v.key: min((trunk.order.get(n.name or "", 0) for n in v.nodes), default=0) for v in variants}
    waiting = sorted(variants, key=lambda variant: position[variant.key])
    while waiting:
        tails, taken = _open(trunk, waiting, sessions)
        waiting = waiting[taken:]
        yield _compare(model, tails, feeds, sessions, judge)
        for _ in range(taken):
            advance()


def _open(trunk: Trunk, waiting: Sequence[Variant], sessions: Sessions) -> tuple[dict[str, Tail], int]:
    """The tails of as many variants as fit in memory together, at least one."""
    built: dict[str, tuple[ir.Model, int]] = {}
    total = 0
    for variant in waiting[:TOGETHER]:
        changed = variant.build()
        size = model_bytes(changed)
        if built and total + size > sessions.limit:
            break
        built[variant.key] = (changed, trunk.first_difference(changed))
        total += size
    alive = trunk.alive(cut for _, cut in built.values())
    return {key: trunk.tail(changed, alive[cut]) for key, (changed, cut) in built.items()}, len(built)


def _compare(
    model: ir.Model,
    tails: Mapping[str, Tail],
    feeds: Callable[[], Iterable[Mapping[str, np.ndarray]]],
    sessions: Sessions,
    judge: Judge,
) -> dict[str, float]:
    outputs = [value.name or "" for value in model.graph.outputs]
    given = list(dict.fromkeys(name for tail in tails.values() for name in tail.reads))
    whole = sessions.open(model, outputs=list(dict.fromkeys([*outputs, *given])), label="the original")
    opened = {
        key: sessions.open(tail.model, label=f"the model with only {key} changed")
        for key, tail in tails.items()
        if tail.outputs
    }
    totals = {key: ComparisonAccumulator() for key in tails}
    for feed in feeds():
        values = whole.run(feed)
        expected = {name: values[name] for name in outputs}
        for key, total in totals.items():
            found = opened[key].run({**feed, **values}) if key in opened else {}
            total.update(expected, {**expected, **found})
    return {key: judge(total.result()) for key, total in totals.items()}
