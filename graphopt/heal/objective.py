"""The loss that a student is trained with: a sum over taps, each by what its value is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from graphopt.heal import losses
from graphopt.heal.taps import Kind, Tap


@dataclass(frozen=True)
class Objective:
    """Weights of the parts. ``mask`` names an input [N, L] that is 1 at real positions."""

    taps: Sequence[Tap]
    temperature: float = 2.0
    alpha: float = 0.0  #: share of the plain squared error beside the softened one, on logits
    relational: float = 1.0
    mask: str | None = None

    @property
    def values(self) -> list[str]:
        """The student's values that are needed."""
        return list(dict.fromkeys(tap.student for tap in self.taps))

    def __call__(
        self, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """The loss of one batch, the mean over its samples."""
        mask = inputs.get(self.mask) if self.mask is not None else None
        parts = [self._loss(tap, found[tap.student].float(), wanted[tap.teacher].float(), mask) for tap in self.taps]
        return torch.stack(parts).sum()

    def _loss(self, tap: Tap, student: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
        rows, truth = (losses.masked_rows(value, mask) for value in (student, teacher))
        if tap.kind is Kind.LOGITS:
            loss = losses.knowledge(rows, truth, self.temperature)
            return loss if not self.alpha else (1 - self.alpha) * loss + self.alpha * losses.error(rows, truth)
        if tap.kind is Kind.NUMBERS:
            return losses.error(rows, truth)
        loss = losses.direction(rows, truth) + losses.error(rows, truth)
        if self.relational:
            loss = loss + self.relational * losses.relations(losses.pooled(student, mask), losses.pooled(teacher, mask))
        return loss
