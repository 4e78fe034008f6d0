"""The loss that a student is trained with: a sum over taps, each by what its value is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from graphopt.heal import losses
from graphopt.heal.taps import Kind, Parts, Tap

Values = Mapping[str, Tensor]


def as_tensors(arrays: Mapping[str, np.ndarray], device: str = "cpu") -> dict[str, Tensor]:
    """Arrays as torch has them, by the same names."""
    return {name: torch.from_numpy(np.ascontiguousarray(array)).to(device) for name, array in arrays.items()}


class Regressor(nn.Module):
    """A learned matrix from the student's width to the teacher's, on the axis in which they differ; it ends last."""

    def __init__(self, axis: int, student: int, teacher: int) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(torch.eye(teacher, student))

    def forward(self, value: Tensor) -> Tensor:
        return value.movedim(self.axis, -1) @ self.weight.T


class Objective(nn.Module):
    """``mask`` names an input [N, L] that is 1 at real positions; its parameters are those of the regressors."""

    def __init__(self, taps: Sequence[Tap], parts: Parts, mask: str | None = None) -> None:
        super().__init__()
        self.taps, self.parts, self.mask = list(taps), parts, mask
        self.regressors = nn.ModuleList()
        self._regressor: dict[Tap, int] = {}
        self.heads: dict[Tap, list[int]] = {}  #: the teacher's head that each of the student's learns from

    @property
    def outputs(self) -> list[Tap]:
        """The taps that decide how good a student is."""
        return [tap for tap in self.taps if not tap.kind.on_the_way]

    @property
    def on_the_way(self) -> list[Tap]:
        """The others, which only steer."""
        return [tap for tap in self.taps if tap.kind.on_the_way]

    def fit(self, found: Values, wanted: Values) -> list[Tap]:
        """Bring what differs in size together, by the values of one batch; returns the taps that had to go.

        Hints of other widths get a regressor. Where heads were removed, each head that is left learns from the
        teacher's that it is most like now, before training.
        """
        gone = []
        for tap in self.on_the_way:
            mine, other = found[tap.student], wanted[tap.teacher]
            every = range(max(mine.ndim, other.ndim))
            differing = [axis for axis in every if mine.shape[axis : axis + 1] != other.shape[axis : axis + 1]]
            if len(differing) > 1 or (tap.kind is Kind.ATTENTION and differing not in ([], [1])):
                gone.append(tap)
            elif differing and tap.kind is Kind.ATTENTION:
                self.heads[tap] = losses.likest_heads(mine.float(), other.float())
            elif differing:
                axis = differing[0]
                self._regressor[tap] = len(self.regressors)
                self.regressors.append(Regressor(axis, mine.shape[axis], other.shape[axis]))
        self.taps = [tap for tap in self.taps if tap not in gone]
        return gone

    def forward(self, found: Values, wanted: Values, inputs: Values, taps: Sequence[Tap] | None = None) -> Tensor:
        """The loss of one batch, the mean over its samples, of ``taps`` (default: all)."""
        mask = inputs.get(self.mask) if self.mask is not None else None
        parts = [
            self._loss(tap, found[tap.student].float(), wanted[tap.teacher].float(), mask)
            for tap in (self.taps if taps is None else taps)
        ]
        return torch.stack(parts).sum()

    def by_sample(self, found: Values, wanted: Values, inputs: Values, rows: int) -> list[float]:
        """The loss of the outputs alone for each of ``rows`` samples, which lie on the first axis of every value."""
        if rows == 1:
            return [float(self(found, wanted, inputs, self.outputs))]
        mask = {self.mask: inputs[self.mask]} if self.mask is not None and self.mask in inputs else {}
        whole = (
            {tap.student: found[tap.student] for tap in self.outputs},
            {tap.teacher: wanted[tap.teacher] for tap in self.outputs},
            mask,
        )
        samples = ([{name: value[i : i + 1] for name, value in v.items()} for v in whole] for i in range(rows))
        return [float(self(*sample, self.outputs)) for sample in samples]

    def _loss(self, tap: Tap, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        if tap.kind is Kind.HINT:
            return self._hint(tap, student, teacher, mask)
        if tap.kind is Kind.ATTENTION:
            return self._attention(tap, student, teacher, mask)
        rows, truth = (losses.masked_rows(value, mask) for value in (student, teacher))
        if tap.kind is Kind.LOGITS:
            loss = losses.knowledge(rows, truth, self.parts.temperature)
            alpha = self.parts.alpha
            return loss if not alpha else (1 - alpha) * loss + alpha * losses.error(rows, truth)
        if tap.kind is Kind.NUMBERS:
            return losses.error(rows, truth)
        loss = losses.direction(rows, truth) + losses.error(rows, truth)
        mine, other = losses.pooled(student, mask), losses.pooled(teacher, mask)
        if student.ndim > 2:  # what is searched by is the mean over positions, whose errors are other than theirs
            loss = loss + losses.direction(mine, other) + losses.error(mine, other)
        if self.parts.relational:
            loss = loss + self.parts.relational * losses.relations(mine, other)
        return loss

    def _hint(self, tap: Tap, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        if tap in self._regressor:
            regressor = self.regressors[self._regressor[tap]]
            assert isinstance(regressor, Regressor)
            student, teacher = regressor(student), teacher.movedim(regressor.axis, -1)
        loss = losses.error(losses.masked_rows(student, mask), losses.masked_rows(teacher, mask))
        return loss * (self.parts.hint / self._count(Kind.HINT))

    def _attention(self, tap: Tap, scores: Tensor, maps: Tensor, mask: Tensor | None) -> Tensor:
        if tap in self.heads:
            maps = maps[:, self.heads[tap]]
        if maps.ndim == 4:  # positions first, so that padding can be told
            scores, maps = scores.transpose(1, 2), maps.transpose(1, 2)
        loss = losses.attention(losses.masked_rows(scores, mask), losses.masked_rows(maps, mask))
        return loss * (self.parts.attention / self._count(Kind.ATTENTION))

    def _count(self, kind: Kind) -> int:
        return sum(tap.kind is kind for tap in self.taps)
