"""Fitting outside arrays to a model's inputs, or saying in one line why they do not fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from graphopt.errors import UsageError
from graphopt.runtime.inputs import InputFacts, Kind


def conform(where: str, feed: Mapping[str, np.ndarray], facts: Sequence[InputFacts]) -> dict[str, np.ndarray]:
    """The model's inputs out of ``feed``, with their types; entries the model does not have are left out.

    Raises UsageError, naming ``where``, the input, what is expected and what was found.
    """
    result = {}
    for fact in facts:
        if fact.name not in feed:
            raise UsageError(
                f"{where}: no array for input {fact.name!r} {describe(fact)}; found {', '.join(feed) or 'nothing'}"
            )
        array = feed[fact.name]
        if fact.kind is Kind.OTHER:
            result[fact.name] = array
            continue
        array = as_type(where, np.asarray(array), fact)
        check_shape(where, array.shape, fact)
        result[fact.name] = array
    _check_shared_dims(where, result, facts)
    return result


def as_type(where: str, array: np.ndarray, fact: InputFacts) -> np.ndarray:
    """``array`` in the input's type, where no information is lost but float precision."""
    if fact.kind is Kind.TEXT:
        if array.dtype.kind not in "OUS":
            raise UsageError(f"{where}: input {fact.name!r} must hold strings, found {array.dtype}")
        return array.astype(object)
    wanted = fact.dtype.numpy()
    if array.dtype == wanted:
        return array
    found = array.dtype.kind
    floats = fact.dtype.is_floating_point()
    if (floats and found == "f") or (wanted.kind == "b" and found in "iu"):
        return array.astype(wanted)
    if wanted.kind in "iu" and found in "iub":
        cast = array.astype(wanted)
        if np.array_equal(cast, array):
            return cast
        raise UsageError(
            f"{where}: input {fact.name!r} must be {wanted}, and some values of the {array.dtype} found do not fit"
        )
    raise UsageError(f"{where}: input {fact.name!r} must be {fact.dtype.name.lower()}, found {array.dtype}")


def check_shape(where: str, shape: tuple[int, ...], fact: InputFacts) -> None:
    """Rank and fixed dims."""
    fits = len(shape) == len(fact.dims) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(fact.dims, shape, strict=True)
    )
    if not fits:
        raise UsageError(f"{where}: input {fact.name!r} must have shape {shown(fact.dims)}, found {list(shape)}")


def _check_shared_dims(where: str, feed: Mapping[str, np.ndarray], facts: Sequence[InputFacts]) -> None:
    first: dict[str, tuple[str, int]] = {}
    for fact in facts:
        if fact.kind is Kind.OTHER:
            continue
        for dim, size in zip(fact.dims, feed[fact.name].shape, strict=True):
            if not isinstance(dim, str):
                continue
            other, expected = first.setdefault(dim, (fact.name, size))
            if expected != size:
                raise UsageError(
                    f"{where}: dim {dim!r} is {expected} in input {other!r} and {size} in input {fact.name!r}"
                )


def describe(fact: InputFacts) -> str:
    """Type and dims, for a message."""
    return f"({fact.dtype.name.lower()} {shown(fact.dims)})"


def shown(dims: Sequence[int | str]) -> str:
    """Dims as a user writes them."""
    return "[" + ", ".join(str(d) for d in dims) + "]"
