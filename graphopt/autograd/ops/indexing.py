"""Operators that pick elements by index, put them there, or rank them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.table import op
from graphopt.autograd.types import Context


def _from_start(indices: Tensor, size: int) -> Tensor:
    """Indices that count from the end, counted from the start."""
    indices = indices if indices.dtype is torch.int64 else indices.long()
    return torch.where(indices < 0, indices + size, indices)


@op("Gather")
def gather(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """The indices' axes take the place of ``axis``."""
    indices = _from_start(indices, x.shape[axis])
    if indices.ndim == 0:
        return x.index_select(axis, indices.reshape(1)).squeeze(axis)
    if x.ndim == 2 and axis == 0 and x.is_floating_point():
        return F.embedding(indices, x)
    axis %= x.ndim
    made = x.index_select(axis, indices.reshape(-1))
    return made if indices.ndim == 1 else made.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


@op("GatherElements")
def gather_elements(x: Tensor, indices: Tensor, *, axis: int = 0) -> Tensor:
    """One element for each index, which replaces its place along ``axis``."""
    return torch.gather(x, axis, _from_start(indices, x.shape[axis]))


@op("GatherND")
def gather_nd(x: Tensor, indices: Tensor, *, batch_dims: int = 0) -> Tensor:
    """The last axis of ``indices`` holds the places along the first axes after the batch's."""
    depth = indices.shape[-1]
    places = [indices[..., i].long() for i in range(depth)]
    if not batch_dims:
        return x[tuple(places)]
    batch = [
        torch.arange(n, device=x.device).reshape([-1 if j == i else 1 for j in range(places[0].ndim)])
        for i, n in enumerate(x.shape[:batch_dims])
    ]
    return x[tuple(batch) + tuple(places)]


@op("Scatter ScatterElements")
def scatter_elements(x: Tensor, indices: Tensor, updates: Tensor, *, axis: int = 0, reduction: str = "none") -> Tensor:
    """A copy of ``x`` with ``updates`` at their indices along ``axis``, or combined with what is there."""
    places, updates = _from_start(indices, x.shape[axis]), updates.to(x.dtype)
    if reduction == "none":
        return x.scatter(axis, places, updates)
    return x.scatter_reduce(axis, places, updates, _TORCH_REDUCTIONS[reduction])


_TORCH_REDUCTIONS = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


@op("ScatterND")
def scatter_nd(x: Tensor, indices: Tensor, updates: Tensor, *, reduction: str = "none") -> Tensor:
    """A copy of ``x`` with whole slices replaced, or combined."""
    depth = indices.shape[-1]
    sizes, updates = x.shape[:depth], updates.to(x.dtype)
    flat = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=x.device)
    for i, size in enumerate(sizes):
        flat = flat * size + _from_start(indices[..., i], size)
    rest = x.shape[depth:]
    rows = x.reshape(math.prod(sizes), *rest)
    flat, updates = flat.reshape(-1), updates.reshape(-1, *rest)
    if reduction == "none":
        made = rows.index_put((flat,), updates)
    else:
        places = flat.reshape(-1, *[1] * len(rest)).expand(updates.shape)
        made = rows.scatter_reduce(0, places, updates, _TORCH_REDUCTIONS[reduction])
    return made.reshape(x.shape)


@op("TensorScatter")
def tensor_scatter(
    past: Tensor, update: Tensor, write: Tensor | None = None, *, axis: int = -2, mode: str = "linear"
) -> Tensor:
    """A copy of ``past [B, ...]`` whose positions from ``write[b]`` on are ``update``'s; ``circular`` wraps around."""
    axis %= past.ndim
    steps = torch.arange(update.shape[axis], device=past.device)
    places = steps[None, :] + (write[:, None] if write is not None else 0)
    if mode == "circular":
        places = places % past.shape[axis]
    dims = [1] * past.ndim
    dims[0], dims[axis] = places.shape
    return past.scatter(axis, places.reshape(dims).expand(update.shape), update)


@op("OneHot", host="depth")
def one_hot(indices: Tensor, depth: int | list[int], values: Tensor, *, axis: int = -1) -> Tensor:
    """``values`` holds what stands elsewhere and at the index."""
    count = int(depth[0] if isinstance(depth, list) else depth)
    indices = indices.long()
    axis = axis + indices.ndim + 1 if axis < 0 else axis
    places = torch.arange(count, device=indices.device).reshape([-1] + [1] * (indices.ndim - axis))
    return torch.where(_from_start(indices, count).unsqueeze(axis) == places, values[1], values[0])


@op("TopK", since=1)
def top_attribute(x: Tensor, *, k: int, axis: int = -1) -> tuple[Tensor, Tensor]:
    """The number as an attribute."""
    return top(x, k, axis=axis)


@op("TopK", since=10, host="k")
def top(x: Tensor, k: int | list[int], *, axis: int = -1, largest: int = 1, sorted: int = 1) -> tuple[Tensor, Tensor]:
    """Values and places; of equal elements the first comes first."""
    count = int(k[0] if isinstance(k, list) else k)
    del sorted  # any order will do where none is asked for
    places = torch.sort(x, dim=axis, descending=bool(largest), stable=True).indices.narrow(axis, 0, count)
    return torch.gather(x, axis, places), places


@op("Compress")
def compress(x: Tensor, condition: Tensor, *, axis: int | None = None) -> Tensor:
    """The slices whose condition holds; those beyond its length go."""
    x = x.reshape(-1) if axis is None else x
    kept = condition.nonzero().reshape(-1)
    return x.index_select(axis or 0, kept)


@op("NonZero", differentiable=False)
def non_zero(x: Tensor) -> Tensor:
    """``[rank, count]``."""
    return x.nonzero().T if x.ndim else x.reshape(1).nonzero().T[:0]


@op("Unique", differentiable=False)
def unique(x: Tensor, *, axis: int | None = None, sorted: int = 1) -> tuple[Tensor, ...]:
    """Values, where each is first, which of them each element is, and how often it comes."""
    found, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    inverse = inverse.reshape(-1)
    places = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, places, "amin")
    if not sorted:
        order = torch.argsort(first)
        back = torch.empty_like(order).scatter(0, order, torch.arange(order.numel(), device=x.device))
        found = found.index_select(0 if axis is None else axis, order)
        first, counts, inverse = first[order], counts[order], back[inverse]
    return found, first, inverse, counts


@op("Col2Im", host="image block")
def columns_to_image(
    x: Tensor,
    image: list[int],
    block: list[int],
    *,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """``[N, C prod(block), L]`` -> ``[N, C, *image]``: overlapping blocks are added up, for any number of axes."""
    rank = len(image)
    steps, holes = strides or (1,) * rank, dilations or (1,) * rank
    margins = pads or (0,) * (2 * rank)
    padded = [n + margins[i] + margins[i + rank] for i, n in enumerate(image)]
    places = torch.zeros((1,) * (2 * rank), dtype=torch.int64, device=x.device)
    for i in range(rank):
        count = (padded[i] - holes[i] * (block[i] - 1) - 1) // steps[i] + 1
        inner = torch.arange(block[i], device=x.device) * holes[i]
        outer = torch.arange(count, device=x.device) * steps[i]
        along = (inner[:, None] + outer[None, :]).reshape(
            [block[i] if j == i else count if j == rank + i else 1 for j in range(2 * rank)]
        )
        places = places * padded[i] + along
    n, channels = x.shape[0], x.shape[1] // math.prod(block)
    flat = x.reshape(n, channels, -1)
    made = torch.zeros(n, channels, math.prod(padded), dtype=x.dtype, device=x.device)
    made = made.index_add(2, places.reshape(-1), flat).reshape(n, channels, *padded)
    for i in range(rank):
        made = made.narrow(2 + i, margins[i], image[i])
    return made


@op("Multinomial", ignored="seed", foldable=False, differentiable=False)
def multinomial(ctx: Context, x: Tensor, *, sample_size: int = 1, dtype: int = 6) -> Tensor:
    """Classes drawn from unnormalised log-probabilities ``[B, C]``."""
    return torch.multinomial(x.exp(), sample_size, replacement=True).to(ctx.dtype(dtype))
