"""Losses between a student's value and the teacher's; rows are the last axis, everything before it is samples."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_TINY = 1e-12
_LOG_FLOOR = -100.0  #: of a probability; what a mask forbids is -inf


def knowledge(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) of softened distributions, times T^2, the mean over rows.

    Hinton, Vinyals and Dean, 2015 (arXiv:1503.02531).
    """
    soft = F.log_softmax(teacher / temperature, dim=-1)
    found = F.log_softmax(student / temperature, dim=-1)
    rows = max(1, student[..., 0].numel())
    return F.kl_div(found, soft, log_target=True, reduction="sum") * (temperature**2 / rows)


def direction(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean ``1 - cosine`` of rows."""
    return 1.0 - F.cosine_similarity(student, teacher, dim=-1, eps=_TINY).mean()


def error(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared error over the teacher's own energy: 1 is as wrong as answering zero."""
    return F.mse_loss(student, teacher, reduction="sum") / teacher.square().sum().clamp_min(_TINY)


def relations(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of the cosines between all pairs of samples [N, D], without the diagonal.

    Relational distillation: Park et al., 2019 (arXiv:1904.05068), with cosines for distances; widths may differ.
    """
    count = len(student)
    if count < 2:
        return student.new_zeros(())
    found, wanted = (F.normalize(x, dim=-1, eps=_TINY) for x in (student, teacher))
    return (found @ found.T - wanted @ wanted.T).square().sum() / (count * (count - 1))


def attention(scores: Tensor, maps: Tensor) -> Tensor:
    """KL(teacher || student) of where each position looks, the mean over rows [..., K] that look anywhere.

    ``scores`` are the student's before the softmax, ``maps`` the teacher's after it. TinyBERT (arXiv:1909.10351) takes
    the squared error of the scores; MiniLM (arXiv:2002.10957) this, which does not feel what the softmax takes away.
    """
    looks = maps.sum(-1).isfinite()
    maps, found = maps[looks], F.log_softmax(scores[looks], dim=-1).clamp_min(_LOG_FLOOR)
    return (torch.xlogy(maps, maps) - maps * found).sum() / max(1, len(maps))


def likest_heads(scores: Tensor, maps: Tensor) -> list[int]:
    """For each head of ``scores`` [N, h, Q, K] the head of ``maps`` [N, H, Q, K] with the least ``attention`` loss."""
    every = [[float(attention(scores[:, i], maps[:, j])) for j in range(maps.shape[1])] for i in range(scores.shape[1])]
    return [min(range(len(costs)), key=costs.__getitem__) for costs in every]


def pooled(value: Tensor, mask: Tensor | None) -> Tensor:
    """One vector a sample: the mean over everything between the first axis and the last, of the real positions.

    ``mask`` [N, L] marks them where ``value`` is [N, L, D].
    """
    if value.ndim == 2:
        return value
    if mask is not None and value.ndim == 3 and mask.shape == value.shape[:2]:
        weight = mask.to(value.dtype).unsqueeze(-1)
        return (value * weight).sum(1) / weight.sum(1).clamp_min(1.0)
    return value.flatten(1, -2).mean(1)


def masked_rows(value: Tensor, mask: Tensor | None) -> Tensor:
    """The rows of real positions only, [R, D]; all rows where there is no mask for them."""
    if mask is not None and value.ndim > 2 and mask.shape == value.shape[:2] and not mask.all():
        return value[mask.to(torch.bool)].flatten(0, -2)
    return value.flatten(0, -2) if value.ndim > 1 else value.unsqueeze(0)
