"""How long a step takes here, from a few of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

STEPS = 8  #: timed at least
_SECONDS = 2.0  #: that they are spread over at least, or over a share of the budget where that is less
_SHARE = 0.02


def seconds_per_step(step: Callable[[int], object], sizes: Sequence[int], budget: float) -> float:
    """The mean over all steps, where ``sizes`` are those of the first and so many more are alike.

    What counts is the median of what one unit of size took: neither a moment in which the machine was busy nor a few
    steps of long samples decide. As such a moment may be longer than some steps, they are spread over a while, by the
    ``budget`` in seconds. ``step`` gets 0, 1, 2, ... and starts over with the sizes at their end.
    """
    times: list[float] = []
    step(0)  # plans the run, and takes longer
    end = time.monotonic() + min(_SECONDS, _SHARE * budget)
    while len(times) < STEPS or time.monotonic() < end:
        number = len(times)
        start = time.monotonic()
        step(number)
        times.append((time.monotonic() - start) / sizes[number % len(sizes)])
    return statistics.median(times) * statistics.fmean(sizes)
