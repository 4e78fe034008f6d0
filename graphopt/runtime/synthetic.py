"""Datasets and probes made from the graph alone, at several shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle

import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError
from graphopt.runtime.dataset import Dataset, Feed, is_rowwise
from graphopt.runtime.dims import dim_role, symbolic_dims
from graphopt.runtime.feeds import synthetic_feed
from graphopt.runtime.inputs import input_facts
from graphopt.runtime.limits import max_length
from graphopt.runtime.session import Session

#: (batch, length, ragged); length only counts for models that have such a dim
_PROBES = ((1, 1, False), (1, 16, False), (3, 7, True), (2, 33, True))
_SHAPES = ((1, 1, False), (1, 16, False), (4, 8, True), (2, 32, True), (8, 16, False), (3, 7, True), (1, 64, False))


def probe_feeds(
    model: ir.Model, *, seed: int = 0, sizes: Mapping[str, int] | None = None, session: Session | None = None
) -> dict[str, Feed]:
    """Feeds by label ("1x16", "3x7 ragged"): batch 1, length 1 and odd ragged shapes, those that ``model`` can run."""
    session = session or Session(model)
    found: dict[str, Feed] = {}
    longest = max_length(model)
    for batch, wanted, ragged in _PROBES:
        length = min(wanted, longest or wanted)
        assigned = _assignment(model, batch, length, sizes)
        try:
            feed = synthetic_feed(model, assigned, seed=seed, ragged=ragged, session=session)
        except GraphoptError:
            continue
        found.setdefault(_label(model, batch, length, ragged), feed)
    if not found:
        found["default"] = synthetic_feed(model, sizes, seed=seed, session=session)
    return found


def synthesize(
    model: ir.Model,
    *,
    samples: int = 32,
    seed: int = 0,
    sizes: Mapping[str, int] | None = None,
    opener: Callable[[], Session] | None = None,
) -> Dataset:
    """A synthetic dataset: several shapes, batch 1, length 1 and ragged masks among them, up to ``samples`` samples.

    Loudly so: ``.synthetic`` is set and ``.note`` says what that means. Shapes the model cannot run are left out, tried
    on the session that ``opener`` gives (default: one of its own), when samples are first asked for.
    """
    rowwise = is_rowwise(model)
    working: list[tuple[dict[str, int], bool]] = []

    def shapes() -> list[tuple[dict[str, int], bool]]:
        if working:
            return working
        try:
            session = opener() if opener is not None else Session(model)
        except ModelError:
            working.append((dict(sizes or {}), False))
            return working
        for batch, length, ragged in _SHAPES:
            assigned = _assignment(model, batch, length, sizes)
            if (assigned, ragged) in working:
                continue
            try:
                feed = synthetic_feed(model, assigned, seed=seed, ragged=ragged, session=session)
            except GraphoptError:
                continue
            working.append((_sizes_of(model, feed) | assigned, ragged))
        if not working:
            synthetic_feed(model, sizes, seed=seed, session=session)  # raises with the reason when nothing runs
            working.append((dict(sizes or {}), False))
        return working

    def source() -> Iterator[Feed]:
        left = samples
        for number, (assigned, ragged) in enumerate(cycle(shapes())):
            if left <= 0:
                return
            feed = synthetic_feed(model, assigned, seed=seed * 1_000_003 + number, ragged=ragged)
            size = counter.size(feed)
            yield feed if size <= left else {n: a[:left] for n, a in feed.items()}
            left -= size

    counter = Dataset("synthetic", source, rowwise=rowwise)
    return Dataset(
        "synthetic",
        source,
        samples=samples,
        rowwise=rowwise,
        synthetic=True,
        note="no data given: inputs are random, bounded by the graph; figures on them say little about real use",
    )


def _assignment(model: ir.Model, batch: int, length: int, sizes: Mapping[str, int] | None) -> dict[str, int]:
    """Sizes for the batch and length dims (and, through them, for all others by default)."""
    facts = {f.name: f for f in input_facts(model)}
    longest = max_length(model)
    assigned = dict(sizes or {})
    for name, places in symbolic_dims(model).items():
        role = dim_role(name, places, facts)
        if role == "batch":
            assigned.setdefault(name, batch)
        elif role == "length":
            assigned.setdefault(name, min(length, longest or length))
    return assigned


def _sizes_of(model: ir.Model, feed: Feed) -> dict[str, int]:
    """All dynamic dims as a feed has them: with every one given, making another such feed runs nothing."""
    return {name: feed[places[0][0]].shape[places[0][1]] for name, places in symbolic_dims(model).items()}


def _label(model: ir.Model, batch: int, length: int, ragged: bool) -> str:
    facts = {f.name: f for f in input_facts(model)}
    roles = {dim_role(name, places, facts) for name, places in symbolic_dims(model).items()}
    if "length" in roles:
        return f"{batch}x{length}{' ragged' if ragged else ''}"
    return f"batch {batch}" if "batch" in roles else "fixed"
