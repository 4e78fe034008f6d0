"""How far a candidate's outputs are from the reference's, over any number of batches in constant memory."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from graphopt.errors import UsageError

#: "equal" in decibels: a noise-free output reports this instead of infinity
MAX_SQNR_DB = 300.0
_LOGIT_NAMES = re.compile(r"logit|prob|score|class|label|pred|softmax", re.IGNORECASE)
_WIDTHS = {"float32", "float16", "bfloat16"}  #: floats that are compared with each other
_BLOCK = 1 << 20  #: elements compared at a time, in float64


@dataclass(frozen=True, slots=True)
class OutputComparison:
    """One output, over all batches seen.

    Float outputs carry the numeric fields, all others ``match`` only. Values that are not finite in the reference are
    left out of every figure.
    """

    name: str
    elements: int
    problem: str | None = None  #: why the candidate fails whatever the figures say: shape, type, new NaN or Inf
    match: float | None = None  #: share of equal elements, of integer, bool and string outputs
    max_abs: float | None = None  #: largest absolute error
    max_rel: float | None = None  #: ``max_abs`` over the reference's largest magnitude
    cosine: float | None = None  #: mean over the rows of the last axis
    min_cosine: float | None = None  #: the worst row
    sqnr_db: float | None = None  #: signal over error energy, capped at ``MAX_SQNR_DB``
    kl: float | None = None  #: mean KL(reference || candidate) over rows, in nats; logits-like outputs only
    top1: float | None = None  #: share of rows with the same largest element; logits-like outputs only

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def looks_like_logits(name: str) -> bool:
    """Whether an output is called like scores of classes."""
    return _LOGIT_NAMES.search(name) is not None


def compare_outputs(
    reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray]
) -> dict[str, OutputComparison]:
    """Compare one batch of outputs by name; see ``ComparisonAccumulator``."""
    accumulator = ComparisonAccumulator()
    accumulator.update(reference, candidate)
    return accumulator.result()


def first_problem(comparisons: Mapping[str, OutputComparison]) -> str | None:
    """The first output that fails outright, in words."""
    return next((f"output {c.name!r}: {c.problem}" for c in comparisons.values() if c.problem), None)


class ComparisonAccumulator:
    """Feed it pairs of outputs batch by batch, then ask for the ``result``.

    Rows are the last axis; outputs of rank 0 or 1, or with a last axis of 1, count as one row per batch. An output is
    logits-like, and gets ``kl`` and ``top1``, when its rows have two or more elements and its name says so (logits,
    prob, score, class, label, pred, softmax), or its first batch holds probabilities (rows of non-negative numbers that
    add up to 1).
    """

    def __init__(self) -> None:
        self._outputs: dict[str, _Running] = {}

    def update(self, reference: Mapping[str, np.ndarray], candidate: Mapping[str, np.ndarray]) -> None:
        """Add one batch. Raises UsageError when the two sides do not have the same outputs."""
        if set(reference) != set(candidate):
            odd = sorted(set(reference) ^ set(candidate))
            raise UsageError(f"the two models do not have the same outputs: {', '.join(odd)} only in one of them")
        for name in reference:
            for label, left, right in _parts(name, reference[name], candidate[name]):
                self._outputs.setdefault(label, _Running(label)).update(np.asarray(left), np.asarray(right))

    def result(self) -> dict[str, OutputComparison]:
        """Figures so far, by output."""
        return {name: running.result() for name, running in self._outputs.items()}


def _parts(name: str, left: Any, right: Any) -> Iterator[tuple[str, Any, Any]]:
    """Sequence outputs element by element."""
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for i, (a, b) in enumerate(zip(left, right, strict=True)):
            yield from _parts(f"{name}[{i}]", a, b)
    else:
        yield name, left, right


class _Running:
    """Sums for one output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.problem: str | None = None
        self.is_float = False
        self.logits: bool | None = None
        self.probabilities = False
        self.elements = self.rows = self.equal = 0
        self.max_abs = self.scale = self.signal = self.noise = 0.0
        self.cosine = self.kl = 0.0
        self.min_cosine = 1.0
        self.top1 = 0

    def update(self, left: np.ndarray, right: np.ndarray) -> None:
        if left.shape != right.shape:
            self._fail(f"shape {list(left.shape)} became {list(right.shape)}")
            return
        if left.dtype != right.dtype and not {left.dtype.name, right.dtype.name} <= _WIDTHS:
            self._fail(f"type {left.dtype} became {right.dtype}")
            return
        self.elements += left.size
        if left.size == 0:
            return
        # numpy gives bfloat16 and the 8-bit floats the kind "V"
        self.is_float = left.dtype.kind in "fc" or (left.dtype.kind == "V" and left.dtype.names is None)
        if left.dtype.kind == "c":
            left, right = (a.astype(np.complex128).view(np.float64) for a in (left, right))
        if not self.is_float:
            self.equal += int(np.count_nonzero(np.asarray(left == right)))
            return
        width = left.shape[-1] if left.ndim > 1 and left.shape[-1] > 1 else left.size
        a, b = left.reshape(-1, width), right.reshape(-1, width)
        if self.logits is None:
            self.probabilities = left.ndim > 1 and _are_probabilities(a[: max(1, _BLOCK // width)])
            named = looks_like_logits(self.name)
            self.logits = (named or self.probabilities) and left.ndim > 1 and width > 1
        step = max(1, _BLOCK // width)
        for start in range(0, len(a), step):
            self._block(a[start : start + step].astype(np.float64), b[start : start + step].astype(np.float64))

    def _block(self, a: np.ndarray, b: np.ndarray) -> None:
        usable = np.isfinite(a)
        broken = usable & ~np.isfinite(b)
        flipped = np.isinf(a) & np.isinf(b) & (a != b)
        if broken.any() or flipped.any():
            count = int(np.count_nonzero(broken | flipped))
            kinds = "NaN" if np.isnan(b[broken]).any() else "Inf"
            self._fail(f"{kinds} in {count} of {a.size} values where the reference has none")
        if self.logits:
            self._distributions(a, b)
        usable &= np.isfinite(b)
        a, b = np.where(usable, a, 0.0), np.where(usable, b, 0.0)
        error = np.abs(a - b)
        self.max_abs = max(self.max_abs, float(error.max()))
        self.scale = max(self.scale, float(np.abs(a).max()))
        self.signal += float(np.square(a).sum())
        self.noise += float(np.square(error).sum())
        cosines = _cosines(a, b)
        self.rows += len(cosines)
        self.cosine += float(cosines.sum())
        self.min_cosine = min(self.min_cosine, float(cosines.min()))

    def _distributions(self, a: np.ndarray, b: np.ndarray) -> None:
        """KL and top-1 of rows; an element that is -Inf on both sides has probability 0 on both."""
        rows = ~(np.isnan(a).any(axis=1) | np.isnan(b).any(axis=1))
        self.top1 += int(np.count_nonzero(np.argmax(a, axis=1)[rows] == np.argmax(b, axis=1)[rows]))
        self.top1 += int(np.count_nonzero(~rows & np.isnan(a).any(axis=1) & np.isnan(b).any(axis=1)))
        if not rows.any():
            return
        left, right = (_log_probabilities(x[rows], given=self.probabilities) for x in (a, b))
        p = np.exp(left)
        terms = np.where(p > 0, p * (left - right), 0.0)
        self.kl += float(np.maximum(np.nan_to_num(terms.sum(axis=1), posinf=1e3), 0.0).sum())

    def _fail(self, problem: str) -> None:
        self.problem = self.problem or problem

    def result(self) -> OutputComparison:
        if not self.is_float:
            match = self.equal / self.elements if self.elements and self.problem is None else None
            return OutputComparison(self.name, self.elements, self.problem, match=match)
        rows = max(self.rows, 1)
        scale = self.scale or 1.0
        if self.noise == 0:
            sqnr = MAX_SQNR_DB
        else:
            ratio = self.signal / self.noise
            sqnr = max(-MAX_SQNR_DB, min(MAX_SQNR_DB, 10 * math.log10(ratio) if ratio > 0 else -MAX_SQNR_DB))
        return OutputComparison(
            self.name,
            self.elements,
            self.problem,
            max_abs=self.max_abs,
            max_rel=self.max_abs / scale,
            cosine=self.cosine / rows,
            min_cosine=self.min_cosine,
            sqnr_db=sqnr,
            kl=self.kl / rows if self.logits else None,
            top1=self.top1 / rows if self.logits else None,
        )


def _are_probabilities(rows: np.ndarray) -> bool:
    values = rows.astype(np.float64)
    return bool((values >= 0).all() and np.allclose(values.sum(axis=1), 1.0, atol=1e-3)) and values.shape[1] > 1


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Per row; two zero rows agree, a zero row and another do not."""
    left, right = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    both = left * right
    dots = np.einsum("ij,ij->i", a, b)
    found = np.divide(dots, both, out=np.zeros_like(dots), where=both > 0)
    found[(left == 0) & (right == 0)] = 1.0
    return np.asarray(np.clip(found, -1.0, 1.0))


def _log_probabilities(rows: np.ndarray, *, given: bool) -> np.ndarray:
    if given:
        return np.asarray(np.log(np.clip(rows, 1e-30, None)))
    shifted = rows - rows.max(axis=1, keepdims=True)
    shifted = np.where(np.isnan(shifted), 0.0, shifted)  # a row led by Inf: Inf - Inf
    return np.asarray(np.maximum(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)), -1e3))
