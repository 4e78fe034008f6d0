"""Synthetic inputs, typed and bounded by the graph itself."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.errors import GraphoptError, ModelError, UsageError
from graphopt.runtime.dims import default_sizes, dim_role, dim_size, size_candidates, symbolic_dims
from graphopt.runtime.inputs import InputFacts, Kind, input_facts
from graphopt.runtime.session import Session

__all__ = ["default_sizes", "fitted_feed", "symbolic_dims", "synthetic_feed"]

_WORDS = ("one small step", "the quick brown fox", "a second sentence", "rain", "numbers 1 2 3")
#: no synthetic input may be larger than this
_ELEMENT_LIMIT = 2**30


def synthetic_feed(
    model: ir.Model,
    sizes: Mapping[str, int] | None = None,
    *,
    seed: int = 0,
    ragged: bool = False,
    session: Session | None = None,
) -> dict[str, np.ndarray]:
    """One feed: ids below their table's rows, masks of 0 and 1, images in the range of the first op, else N(0, 1).

    ``sizes`` gives dims by name (see ``symbolic_dims``); dims it leaves out get a default that fits the rest, and the
    feed is then tried in ONNX Runtime (on ``session`` if given) and a few other consistent sizes after it. With every
    dim given, nothing is run unless ``session`` is given. ``ragged`` masks the end of each row, never all of it.

    Raises UsageError when no assignment runs, naming the inputs and what ONNX Runtime said.
    """
    facts = input_facts(model)
    given = dict(sizes or {})
    free = symbolic_dims(model)
    if all(name in given for name in free) and session is None:
        return _feed(facts, free, given, seed=seed, ragged=ragged)
    if session is None:
        try:
            session = Session(model)
        except ModelError:  # cannot run here at all: hand out the likeliest feed
            return _feed(facts, free, default_sizes(model, facts, given), seed=seed, ragged=ragged)
    problem: GraphoptError | None = None
    for candidate in size_candidates(model, facts, given):
        feed = _feed(facts, free, candidate, seed=seed, ragged=ragged)
        try:
            session.run(feed)
        except (ModelError, UsageError) as error:
            problem = problem or error
            continue
        return feed
    listed = ", ".join(f"{f.name} {f.dtype.name.lower()}{list(f.dims)} as {f.kind}" for f in facts)
    raise UsageError(f"no synthetic input runs; give real ones with data=. Inputs: {listed}. First failure: {problem}")


def fitted_feed(model: ir.Model, example: Mapping[str, np.ndarray], sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    """A real feed brought to other sizes of the dynamic dims, all of them given: its rows are repeated or left out.

    What the graph cannot tell, such as the range of an input, is as in the real one. Raises UsageError for an input
    that ``example`` lacks, or has in another rank or empty.
    """
    feed: dict[str, np.ndarray] = {}
    for fact in input_facts(model):
        array = example.get(fact.name)
        if not isinstance(array, np.ndarray) or array.ndim != len(fact.dims) or array.size == 0:
            raise UsageError(f"the data has no input {fact.name!r} of rank {len(fact.dims)} that could be cut to size")
        for axis, dim in enumerate(fact.dims):
            array = np.take(array, range(dim_size(dim, sizes)), axis=axis, mode="wrap")
        feed[fact.name] = array
    return feed


def _feed(
    facts: Sequence[InputFacts],
    free: Mapping[str, list[tuple[str, int]]],
    sizes: Mapping[str, int],
    *,
    seed: int,
    ragged: bool,
) -> dict[str, np.ndarray]:
    by_name = {f.name: f for f in facts}
    roles = {name: dim_role(name, places, by_name) for name, places in free.items()}
    length = max((sizes[n] for n, r in roles.items() if r == "length" and n in sizes), default=1)
    feed: dict[str, np.ndarray] = {}
    for fact in facts:
        if fact.kind is Kind.OTHER:
            raise UsageError(f"input {fact.name!r} is not a tensor; synthetic inputs cover tensors only: give data=")
        shape = tuple(dim_size(dim, sizes) for dim in fact.dims)
        if any(size < 0 for size in shape) or float(np.prod([float(s) for s in shape])) > _ELEMENT_LIMIT:
            raise UsageError(f"input {fact.name!r} cannot be made with shape {list(shape)}; give smaller sizes")
        # masks over the same dims agree with one another; everything else draws its own numbers
        key = repr(fact.dims) if fact.kind in (Kind.MASK, Kind.ADDITIVE_MASK) else fact.name
        rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
        feed[fact.name] = _array(fact, shape, rng, ragged=ragged, length=length)
    return feed


def _array(
    fact: InputFacts, shape: tuple[int, ...], rng: np.random.Generator, *, ragged: bool, length: int
) -> np.ndarray:
    if fact.kind is Kind.TEXT:
        return np.asarray(rng.choice(np.array(_WORDS, dtype=object), size=shape), dtype=object)
    dtype = fact.dtype.numpy()
    if fact.kind in (Kind.MASK, Kind.ADDITIVE_MASK):
        mask = _mask(shape, rng, ragged=ragged)
        values = mask if fact.kind is Kind.MASK else np.where(mask > 0, 0.0, -1e4)
        return values.astype(dtype)
    if fact.kind is Kind.POSITIONS:
        count = shape[-1] if shape else 1
        return np.broadcast_to(np.minimum(np.arange(count), fact.high).astype(dtype), shape).copy()
    if fact.kind is Kind.LENGTHS:
        drawn = rng.integers(1, length + 1, size=shape) if ragged else np.full(shape, length)
        return np.asarray(drawn).astype(dtype)
    if fact.kind is Kind.SIZE:
        return np.ones(shape, dtype)
    if fact.kind is Kind.NORMAL:
        return np.asarray(rng.standard_normal(size=shape)).astype(dtype)
    if fact.dtype.is_floating_point():
        return np.asarray(rng.uniform(fact.low, fact.high, size=shape)).astype(dtype)
    return np.asarray(rng.integers(int(fact.low), int(fact.high), size=shape, endpoint=True)).astype(dtype)


def _mask(shape: tuple[int, ...], rng: np.random.Generator, *, ragged: bool) -> np.ndarray:
    """Ones; ragged: along the last axis a run of ones of random length, at least one, then zeros."""
    if not ragged or not shape or shape[-1] < 2:
        return np.ones(shape)
    rows = shape[0] if len(shape) > 1 else 1
    lengths = rng.integers(1, shape[-1] + 1, size=rows)
    if rows > 1:
        lengths[rng.integers(rows)] = shape[-1]
    mask = (np.arange(shape[-1]) < lengths[:, None]).astype(np.float64)
    if len(shape) == 1:
        return np.asarray(mask[0])
    return np.broadcast_to(mask.reshape(rows, *([1] * (len(shape) - 2)), shape[-1]), shape)
