"""What the student is to answer: the original's values, or what several teachers make of the same inputs together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphopt.errors import UsageError
from graphopt.heal.lessons import Arrays
from graphopt.heal.taps import Kind, Tap, output_taps, teacher_names
from graphopt.model import interface_fault, open_model, signature
from graphopt.transform import PassContext


class Teachers:
    """The original, and files that answer beside it.

    Logits are averaged as probabilities, as in an ensemble (Hinton et al., 2015, arXiv:1503.02531; for translation:
    Freitag et al., 2017, arXiv:1702.01802), other outputs as they are. Values on the way are the original's alone.

    Raises UsageError for a file that has not the original's inputs and outputs, or ends in no softmax where it does.
    """

    def __init__(self, ctx: PassContext, student: ir.Model, files: Sequence[Path], kinds: Mapping[str, Kind]) -> None:
        self._ctx = ctx
        self.outputs = output_taps(ctx.original, student, dict(kinds))
        self._others: list[tuple[ir.Model, list[Tap]]] = []
        for file in files:
            model = open_model(file)
            fault = interface_fault(signature(ctx.original), signature(model))
            if fault:
                raise UsageError(f"teacher {file}: its interface is not the original's: {fault}")
            taps = output_taps(model, student, dict(kinds))
            for tap, mine in zip(self.outputs, taps, strict=True):
                if (tap.kind, tap.student) != (mine.kind, mine.student):
                    raise UsageError(
                        f"teacher {file}: output {tap.label!r} is {mine.kind}, the original's is {tap.kind}"
                    )
            self._others.append((model, taps))

    @property
    def models(self) -> list[ir.Model]:
        """The files' models, in order; the original apart."""
        return [model for model, _ in self._others]

    def answers(self, taps: Sequence[Tap], split: str, limit: int | None) -> Iterator[tuple[Arrays, Arrays]]:
        """Inputs and, by the original's names, what the values tapped ought to be.

        Hints and attention maps come in half precision, for they are many and need not be met.
        """
        ours = {tap.teacher for tap in self.outputs}
        halved = {tap.teacher for tap in taps} - ours
        runs = [self._ctx.examples(self._ctx.original, teacher_names(taps), split=split, limit=limit)]
        runs += [self._ctx.examples(m, teacher_names(own), split=split, limit=limit) for m, own in self._others]
        for batch in zip(*runs, strict=True):
            feed, answers = batch[0]
            found = {name: _halved(array) if name in halved else array for name, array in answers.items()}
            if self._others:
                for place, tap in enumerate(self.outputs):
                    names = [tap.teacher, *(own[place].teacher for _, own in self._others)]
                    values = [answer[name] for (_, answer), name in zip(batch, names, strict=True)]
                    found[tap.teacher] = together(values, tap.kind)
            yield feed, found


def together(values: Sequence[np.ndarray], kind: Kind) -> np.ndarray:
    """The mean; of logits such that their softmax is the mean of the softmaxes, and one teacher's stay as they are."""
    stacked = np.stack(values)
    if kind is not Kind.LOGITS:
        return np.asarray(stacked.mean(0), dtype=values[0].dtype)
    heights = np.logaddexp.reduce(stacked, axis=-1, keepdims=True)
    mean = np.logaddexp.reduce(stacked - heights, axis=0) - np.log(len(values)) + heights.mean(0)
    return np.asarray(mean, dtype=values[0].dtype)


def _halved(array: np.ndarray) -> np.ndarray:
    """As float16, unless something in it is too large for that."""
    return array.astype(np.float16) if np.abs(array).max(initial=0.0) < np.finfo(np.float16).max else array
