"""The loss that a student is trained with: a sum over taps, each by what its value is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from graphopt.heal import losses
from graphopt.heal.taps import Kind, Parts, Tap


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
        self.taps, self.parts, self.mask = taps, parts, mask
        self.regressors = nn.ModuleDict()

    @property
    def outputs(self) -> list[Tap]:
        """The taps that decide how good a student is."""
        return [tap for tap in self.taps if tap.kind is not Kind.HINT]

    def fit(self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[Tap]:
        """Make regressors for the hints of other widths; returns the hints that had to go, for they differ in more."""
        axes: dict[Tap, list[int]] = {}
        for tap in self.taps:
            if tap.kind is Kind.HINT:
                mine, other = found[tap.student].shape, wanted[tap.teacher].shape
                every = range(max(len(mine), len(other)))
                axes[tap] = [axis for axis in every if mine[axis : axis + 1] != other[axis : axis + 1]]
        gone = [tap for tap, differing in axes.items() if len(differing) > 1]
        self.taps = [tap for tap in self.taps if tap not in gone]
        for number, tap in enumerate(self.taps):
            for axis in axes.get(tap, ()):
                width, wanted_width = found[tap.student].shape[axis], wanted[tap.teacher].shape[axis]
                self.regressors[str(number)] = Regressor(axis, width, wanted_width)
        return gone

    def forward(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """The loss of one batch, the mean over its samples, of what is in ``found``."""
        mask = inputs.get(self.mask) if self.mask is not None else None
        parts = [
            self._loss(number, tap, found[tap.student].float(), wanted[tap.teacher].float(), mask)
            for number, tap in enumerate(self.taps)
            if tap.student in found
        ]
        return torch.stack(parts).sum()

    def _hint(self, number: int, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        regressor = dict(self.regressors.items()).get(str(number))
        if isinstance(regressor, Regressor):
            student, teacher = regressor(student), teacher.movedim(regressor.axis, -1)
        loss = losses.error(losses.masked_rows(student, mask), losses.masked_rows(teacher, mask))
        return loss * (self.parts.hint / (len(self.taps) - len(self.outputs)))

    def _loss(self, number: int, tap: Tap, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        if tap.kind is Kind.HINT:
            return self._hint(number, student, teacher, mask)
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
