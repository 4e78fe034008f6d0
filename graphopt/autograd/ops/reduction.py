"""Operators that gather several elements into one, and those along one axis: softmax, running sums, ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from graphopt.autograd.table import op

_Reduction = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keep)
    made = x.sum(axes, keep)
    return torch.div(made, x.numel() // max(made.numel(), 1), rounding_mode="trunc").to(x.dtype)


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keep)
    return x


def _extreme(of: _Reduction, empty: Callable[[torch.dtype], Any]) -> _Reduction:
    def reduce(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if x.numel() == 0 and any(x.shape[a] == 0 for a in axes):
            return torch.full_like(x.sum(axes, keep), empty(x.dtype), dtype=x.dtype)
        return of(x, axes, keep)

    return reduce


def _lowest(dtype: torch.dtype) -> Any:
    if dtype is torch.bool:
        return False
    return float("-inf") if dtype.is_floating_point else torch.iinfo(dtype).min


def _highest(dtype: torch.dtype) -> Any:
    if dtype is torch.bool:
        return True
    return float("inf") if dtype.is_floating_point else torch.iinfo(dtype).max


def _norm(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    made: Tensor = torch.linalg.vector_norm(x if x.is_floating_point() else x.double(), 2, axes, keep)
    return made if x.is_floating_point() else made.to(x.dtype)


def _log_of(x: Tensor, made: Tensor) -> Tensor:
    return torch.log(made) if x.is_floating_point() else torch.log(made.double()).to(x.dtype)


def _log_sum_exp(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if not x.is_floating_point():
        return torch.logsumexp(x.double(), axes, keep).to(x.dtype)
    return torch.logsumexp(x, axes, keep)


_REDUCTIONS: dict[str, _Reduction] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": _norm,
    "ReduceLogSum": lambda x, axes, keep: _log_of(x, x.sum(axes, keep)),
    "ReduceLogSumExp": _log_sum_exp,
    "ReduceMax": _extreme(torch.amax, _lowest),
    "ReduceMean": _mean,
    "ReduceMin": _extreme(torch.amin, _highest),
    "ReduceProd": _product,
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep, dtype=x.dtype),
    "ReduceSumSquare": lambda x, axes, keep: (x * x).sum(axes, keep, dtype=x.dtype),
}


def _enter(name: str, reduction: _Reduction) -> None:
    """Axes are an attribute first, an input later; none means all, or with ``noop_with_empty_axes`` none."""

    @op(name)
    def with_attribute(x: Tensor, *, axes: Sequence[int] | None = None, keepdims: int = 1) -> Tensor:
        return reduction(x, tuple(axes or range(x.ndim)), bool(keepdims)) if x.ndim else _single(x)

    @op(name, since=13 if name == "ReduceSum" else 18, host="axes")
    def with_input(
        x: Tensor, axes: list[int] | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0
    ) -> Tensor:
        if not axes and noop_with_empty_axes:
            return _single(x)
        return reduction(x, tuple(axes or range(x.ndim)), bool(keepdims)) if x.ndim else _single(x)

    def _single(x: Tensor) -> Tensor:
        """Each element by itself: what remains of the reduction is its function of one element."""
        return reduction(x.unsqueeze(-1), (-1,), False)


for _name, _reduction in _REDUCTIONS.items():
    _enter(_name, _reduction)


def _extreme_place(x: Tensor, largest: bool, axis: int, keepdims: int, select_last_index: int) -> Tensor:
    """torch leaves open which of equal elements it names: count where the first or last of them stands."""
    axis %= max(x.ndim, 1)
    best = x.amax(axis, True) if largest else x.amin(axis, True)
    places = torch.arange(x.shape[axis], device=x.device).reshape([-1] + [1] * (x.ndim - axis - 1))
    if select_last_index:
        return torch.where(x == best, places, -1).amax(axis, bool(keepdims))
    return torch.where(x == best, places, x.shape[axis]).amin(axis, bool(keepdims))


@op("ArgMax", differentiable=False)
def arg_max(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The first of the largest elements, or the last."""
    return _extreme_place(x, True, axis, keepdims, select_last_index)


@op("ArgMin", differentiable=False)
def arg_min(x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Tensor:
    """The first of the smallest elements, or the last."""
    return _extreme_place(x, False, axis, keepdims, select_last_index)


@op("CumSum", host="axis")
def running_sum(x: Tensor, axis: int | list[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """``exclusive`` leaves each element out of its own sum; ``reverse`` starts at the end."""
    return _running(torch.cumsum, 0, x, axis, exclusive, reverse)


@op("CumProd", host="axis")
def running_product(x: Tensor, axis: int | list[int], *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    """As ``running_sum``."""
    return _running(torch.cumprod, 1, x, axis, exclusive, reverse)


def _running(
    of: Callable[..., Tensor], neutral: int, x: Tensor, axis: int | list[int], exclusive: int, reverse: int
) -> Tensor:
    axis = axis[0] if isinstance(axis, list) else axis
    made = x.flip(axis) if reverse else x
    if exclusive:
        first = torch.full_like(made.narrow(axis, 0, 1), neutral)
        made = torch.cat((first, made.narrow(axis, 0, made.shape[axis] - 1)), axis)
    made = of(made, axis, dtype=x.dtype)
    return made.flip(axis) if reverse else made


# -- softmax -----------------------------------------------------------------------------------------------------------
def _as_matrix(function: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    """What the standard said before version 13: the axes from ``axis`` on are one."""

    def apply(x: Tensor, *, axis: int = 1) -> Tensor:
        return function(x.flatten(axis % max(x.ndim, 1)), -1).reshape(x.shape)

    return apply


def _hard(x: Tensor, axis: int) -> Tensor:
    return torch.zeros_like(x).scatter(axis, _extreme_place(x, True, axis, 1, 0), 1)


def _along_axis(function: Callable[[Tensor, int], Tensor]) -> Callable[..., Tensor]:
    def apply(x: Tensor, *, axis: int = -1) -> Tensor:
        return function(x, axis)

    return apply


_SOFT: dict[str, Callable[[Tensor, int], Tensor]] = {
    "Hardmax": _hard,
    "LogSoftmax": torch.log_softmax,
    "Softmax": torch.softmax,
}
for _name, _function in _SOFT.items():
    op(_name)(_as_matrix(_function))
    op(_name, since=13)(_along_axis(_function))


# -- losses ------------------------------------------------------------------------------------------------------------
@op("NegativeLogLikelihoodLoss")
def negative_log_likelihood(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """``scores [N, C, ...]`` are log-probabilities, ``target [N, ...]`` classes."""
    target = target.long()
    counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    target = torch.where(counted, target, 0)
    shares = counted.to(scores.dtype) if weight is None else weight[target] * counted
    loss = -scores.gather(1, target.unsqueeze(1)).squeeze(1) * shares
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / shares.sum()


@op("SoftmaxCrossEntropyLoss")
def softmax_cross_entropy(
    scores: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The loss, and the log-probabilities."""
    logs = torch.log_softmax(scores, 1)
    return negative_log_likelihood(logs, target, weight, ignore_index=ignore_index, reduction=reduction), logs
