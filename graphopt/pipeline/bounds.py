"""How far outputs may move, by what a pass promises, and the streaming check that holds them to it.

EXACT: 1e-4 of the output's largest magnitude. Float32 rounds at 6e-8; sums over a thousand terms in a graph a hundred
nodes deep, added up in another order, differ by 1e-6 to 1e-5 of the scale. Ten times that is still far below the effect
of one wrong constant. Where the model itself amplifies rounding (integer kernels round activations to steps), the bound
is what ONNX Runtime's own rewriting moves the same model by, times four, and never above 1e-2.
APPROXIMATE: 1e-2 of the scale, mean cosine at least 0.999.
LOSSY: the recipe's ``min_cosine``, ``max_drop`` on its metric, or the default below.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from graphopt.transform import Fidelity

EXACT_BOUND = 1e-4
EXACT_BOUND_HALF = 1e-2  #: float16 and bfloat16 outputs: 8 or 11 bits of mantissa
NOISE_FACTOR, NOISE_LIMIT = 4.0, 1e-2
APPROXIMATE_BOUND = 1e-2
APPROXIMATE_COSINE = 0.999
DEFAULT_MIN_COSINE = 0.95  #: LOSSY, mean over the rows of the worst output
MIN_SQNR_DB = 0.0  #: LOSSY without a metric: cosine is blind to scale, so the error may not outweigh the output
DEFAULT_DROP_SHARE = 0.01  #: LOSSY with a metric: share of the original's score
_HUGE = 1e30  #: masks written as -3.4e38 are no part of an output's scale
_TINY = 1e-6  #: absolute floor, for outputs that are all zero


def bound_of(fidelity: Fidelity) -> float:
    """Largest error relative to the output's scale."""
    return EXACT_BOUND if fidelity is Fidelity.EXACT else APPROXIMATE_BOUND


@dataclass
class TightCheck:
    """Compares outputs batch by batch in constant memory; ``worst`` is the largest error relative to its scale."""

    worst: float = 0.0
    where: str = ""
    fault: str = ""  #: a difference no bound can excuse: shape, type, integers, NaN or Inf
    half: bool = field(default=False)

    def add(self, reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray], label: str) -> None:
        """Compare one run; ``label`` says on which input."""
        for name, expected in reference.items():
            if self.fault:
                return
            found = candidate[name]
            if isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):  # sequences
                for index, (a, b) in enumerate(zip(expected, found, strict=True)):
                    self._add(f"{name}[{index}]", np.asarray(a), np.asarray(b), label)
            else:
                self._add(name, np.asarray(expected), np.asarray(found), label)

    def _add(self, name: str, expected: np.ndarray, found: np.ndarray, label: str) -> None:
        if expected.shape != found.shape or expected.dtype != found.dtype:
            now, was = f"{found.dtype}{list(found.shape)}", f"{expected.dtype}{list(expected.shape)}"
            self.fault = f"output {name!r} is {now} instead of {was} at {label}"
        if self.fault or expected.size == 0:
            return
        if not is_float(expected):
            unequal = int(np.count_nonzero(expected != found))
            if unequal:
                self.fault = f"output {name!r} differs in {unequal} of {expected.size} elements at {label}"
            return
        self.half = self.half or expected.dtype.itemsize == 2
        a, b = expected.astype(np.float64), found.astype(np.float64)
        finite = np.isfinite(a)
        if not np.array_equal(finite, np.isfinite(b)) or not np.array_equal(a[~finite], b[~finite], equal_nan=True):
            self.fault = f"output {name!r} has NaN or Inf in other places at {label}"
            return
        a, b = a[finite], b[finite]
        ordinary = np.abs(a) < _HUGE
        scale = max(float(np.abs(a[ordinary]).max(initial=0.0)), _TINY / EXACT_BOUND)
        error = float((np.abs(a - b) / np.where(ordinary, scale, np.abs(a))).max(initial=0.0))
        if error > self.worst:
            self.worst, self.where = error, f"output {name!r} at {label}"


def is_float(array: np.ndarray) -> bool:
    """True for numpy's floats and for bfloat16 and the float8 types."""
    return array.dtype.kind == "f" or "float" in array.dtype.name
