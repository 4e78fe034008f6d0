"""How long to train: a number of steps, or a time that is turned into one."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from graphopt.errors import UsageError

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(s|sec|m|min|h|steps?)$")
_SECONDS = {"s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Budget:
    """Exactly one of both is set."""

    steps: int | None = None
    seconds: float | None = None

    @staticmethod
    def parse(text: str) -> Budget:
        """``5m``, ``90s``, ``1h`` or ``300steps``. Raises UsageError for anything else, and for nothing at all."""
        found = _FORM.match(text.strip().lower())
        amount = float(found[1]) if found else 0.0
        if found is None or amount <= 0:
            raise UsageError(f"budget {text!r} is no training time; write 5m, 90s, 1h or 300steps")
        if found[2] in _SECONDS:
            return Budget(seconds=amount * _SECONDS[found[2]])
        if amount != int(amount):
            raise UsageError(f"budget {text!r}: steps are whole")
        return Budget(steps=int(amount))

    def in_steps(self, seconds_per_step: float) -> int:
        """Steps that fit, at least one."""
        if self.steps is not None:
            return self.steps
        assert self.seconds is not None
        return max(1, int(self.seconds / seconds_per_step))


def learning_rate(step: int, total: int, peak: float, warmup: float) -> float:
    """The rate of step ``step`` of ``total``: a linear rise over the share ``warmup``, then half a cosine down to 0.

    Loshchilov and Hutter, SGDR, 2017 (arXiv:1608.03983), one cycle.
    """
    rising = max(1, round(warmup * total))
    if step < rising:
        return peak * (step + 1) / rising
    done = (step - rising) / max(1, total - rising)
    return peak * 0.5 * (1.0 + math.cos(math.pi * min(1.0, done)))
