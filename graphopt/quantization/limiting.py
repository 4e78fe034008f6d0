"""The highest error limit under which a quantized model passes the guard."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Protocol, TypeVar


class Drafted(Protocol):
    """A way to quantize a model: the sites that it changes."""

    @property
    def sites(self) -> Sized: ...


D = TypeVar("D", bound=Drafted)


def within(
    max_error: float, errors: Callable[[], Iterable[float]], draft: Callable[[float], D], accepts: Callable[[D], bool]
) -> D:
    """The draft under ``max_error``, or under the highest lower limit that is accepted, found by bisection.

    ``draft(limit)`` holds every site to ``limit``; ``errors()`` are those that sites have in one form or another, asked
    for when limits are to be tried. Where no draft is accepted, the first one is given back, for the guard to refuse.
    """
    whole = draft(max_error)
    if not whole.sites or accepts(whole):
        return whole
    limits = sorted({0.0, *(error for error in errors() if error <= max_error)})[:-1]
    low, high, best = 0, len(limits), None
    while low < high:
        middle = (low + high) // 2
        found = draft(limits[middle])
        if found.sites and accepts(found):
            best, low = found, middle + 1
        elif not found.sites and best is None:
            low = middle + 1
        else:
            high = middle
    return best or whole
