"""Operators on shapes: what a tensor's sizes are, and the same elements in other places."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.table import op
from graphopt.autograd.types import Context


@op("Shape", measures=True, differentiable=False)
def shape(x: Tensor, *, start: int = 0, end: int | None = None) -> Tensor:
    """Sizes ``start`` to ``end``, in host memory."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


@op("Size", measures=True, differentiable=False)
def size(x: Tensor) -> Tensor:
    """Number of elements, in host memory."""
    return torch.tensor(x.numel(), dtype=torch.int64)


@op("Reshape", host="sizes")
def reshape(x: Tensor, sizes: list[int], *, allowzero: int = 0) -> Tensor:
    """0 keeps a size, -1 is what remains."""
    if not allowzero and 0 in sizes:
        sizes = [x.shape[i] if n == 0 else n for i, n in enumerate(sizes)]
    if -1 in sizes and x.numel() == 0:
        rest = math.prod(n for n in sizes if n != -1)
        sizes = [(x.numel() // rest if rest else 0) if n == -1 else n for n in sizes]
    return x.reshape(sizes)


@op("Transpose")
def transpose(x: Tensor, *, perm: Sequence[int] | None = None) -> Tensor:
    """Default: all axes reversed."""
    return x.permute(tuple(perm) if perm is not None else tuple(range(x.ndim))[::-1])


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    """To a matrix; a negative axis counts from the end."""
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Squeeze")
def squeeze_attribute(x: Tensor, *, axes: Sequence[int] | None = None) -> Tensor:
    """Axes as an attribute."""
    return squeeze(x, axes)


@op("Squeeze", since=13, host="axes")
def squeeze(x: Tensor, axes: Sequence[int] | None = None) -> Tensor:
    """Drop axes of size one: those named, or all."""
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@op("Unsqueeze")
def unsqueeze_attribute(x: Tensor, *, axes: Sequence[int]) -> Tensor:
    """Axes as an attribute."""
    return unsqueeze(x, axes)


@op("Unsqueeze", since=13, host="axes")
def unsqueeze(x: Tensor, axes: int | Sequence[int]) -> Tensor:
    """New axes of size one, counted in the result."""
    axes = [axes] if isinstance(axes, int) else axes
    if len(axes) == 1:
        return x.unsqueeze(axes[0])
    rank = x.ndim + len(axes)
    for axis in sorted(a + rank if a < 0 else a for a in axes):
        x = x.unsqueeze(axis)
    return x


@op("Concat")
def concat(*parts: Tensor, axis: int = 1) -> Tensor:
    """Along one axis."""
    return torch.cat(parts, axis)


@op("Split")
def split_attribute(
    x: Tensor, *, wanted: tuple[bool, ...], axis: int = 0, split: Sequence[int] | None = None
) -> tuple[Tensor, ...]:
    """Sizes as an attribute; equal parts without it."""
    return split_input(x, split, wanted=wanted, axis=axis)


@op("Split", since=13, host="sizes", ignored="num_outputs")
def split_input(
    x: Tensor, sizes: Sequence[int] | None = None, *, wanted: tuple[bool, ...], axis: int = 0
) -> tuple[Tensor, ...]:
    """As many parts as the node has outputs; without sizes the last one may be smaller."""
    if sizes is not None:
        return torch.split(x, list(sizes), axis)
    return torch.split(x, -(-x.shape[axis] // len(wanted)), axis)


@op("Slice")
def slice_attribute(
    x: Tensor, *, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None = None
) -> Tensor:
    """Bounds as attributes."""
    return slice_input(x, starts, ends, axes)


@op("Slice", since=10, host="starts ends axes steps")
def slice_input(
    x: Tensor,
    starts: Sequence[int],
    ends: Sequence[int],
    axes: Sequence[int] | None = None,
    steps: Sequence[int] | None = None,
) -> Tensor:
    """As numpy slices; a negative step walks backwards."""
    index: list[slice] = [slice(None)] * x.ndim
    backwards = []
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = axes[i] if axes is not None else i
        step = steps[i] if steps is not None else 1
        if step > 0:
            index[axis] = slice(*slice(start, end, step).indices(x.shape[axis]))
        else:
            backwards.append((axis, range(*slice(start, end, step).indices(x.shape[axis]))))
    x = x[tuple(index)]
    for axis, places in backwards:
        x = x.index_select(axis, torch.tensor(list(places), dtype=torch.int64, device=x.device))
    return x


@op("Expand", host="sizes")
def expand(x: Tensor, sizes: list[int]) -> Tensor:
    """Broadcast both ways: sizes of one give way to the tensor's."""
    rank = max(len(sizes), x.ndim)
    own = (1,) * (rank - x.ndim) + tuple(x.shape)
    return x.expand([o if n == 1 else n for o, n in zip(own, [1] * (rank - len(sizes)) + sizes, strict=True)])


@op("Tile", host="repeats")
def tile(x: Tensor, repeats: list[int]) -> Tensor:
    """Whole copies along each axis."""
    return x.repeat(repeats)


@op("Pad")
def pad_attribute(x: Tensor, *, pads: Sequence[int], mode: str = "constant", value: float = 0.0) -> Tensor:
    """Widths as an attribute."""
    return pad(x, list(pads), value, mode=mode)


@op("Pad", since=11, host="pads value axes")
def pad(
    x: Tensor,
    pads: list[int],
    value: float | list[float] | None = None,
    axes: list[int] | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    """Begins of all axes, then ends; negative widths cut."""
    axes = [a % x.ndim for a in axes] if axes is not None else list(range(x.ndim))
    widths = {axis: (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    for axis, (begin, end) in widths.items():
        if begin < 0 or end < 0:
            x = x.narrow(axis, max(-begin, 0), x.shape[axis] + min(begin, 0) + min(end, 0))
    widths = {axis: (max(b, 0), max(e, 0)) for axis, (b, e) in widths.items() if b > 0 or e > 0}
    if not widths:
        return x
    if mode == "constant":
        value = value[0] if isinstance(value, list) else value
        flat = [n for axis in reversed(range(x.ndim)) for n in widths.get(axis, (0, 0))]
        filling = value if value is not None else 0
        if x.dtype is torch.bool:
            return F.pad(x.to(torch.uint8), flat, value=float(filling)).to(torch.bool)
        return F.pad(x, flat, value=filling)
    for axis, (begin, end) in widths.items():
        places = torch.arange(-begin, x.shape[axis] + end, device=x.device)
        x = x.index_select(axis, _inside(places, x.shape[axis], mode))
    return x


def _inside(places: Tensor, size: int, mode: str) -> Tensor:
    """Which element stands at a place outside of ``0 .. size - 1``."""
    if mode == "edge":
        return places.clamp(0, size - 1)
    if mode == "wrap":
        return places.remainder(size)
    period = max(2 * (size - 1), 1)  # reflect
    places = places.remainder(period)
    return torch.where(places >= size, period - places, places)


@op("ConstantOfShape", host="sizes")
def constant_of_shape(ctx: Context, sizes: list[int], *, value: Tensor | None = None) -> Tensor:
    """Default: float32 zeros."""
    if value is None:
        return torch.zeros(sizes, dtype=ctx.precision or torch.float32, device=ctx.device)
    dtype = ctx.precision if ctx.precision is not None and value.is_floating_point() else value.dtype
    return torch.full(sizes, value.item(), dtype=dtype, device=ctx.device)


@op("Range")
def value_range(start: Tensor, limit: Tensor, delta: Tensor) -> Tensor:
    """Up to ``limit``, which is left out."""
    return torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype, device=start.device)


@op("EyeLike")
def eye_like(ctx: Context, x: Tensor, *, k: int = 0, dtype: int | None = None) -> Tensor:
    """Ones on the ``k``-th diagonal."""
    kind = ctx.dtype(dtype) if dtype is not None else x.dtype
    rows, columns = (torch.arange(n, device=x.device) for n in x.shape)
    return (columns[None, :] - rows[:, None] == k).to(kind)


@op("Trilu", host="k")
def trilu(x: Tensor, k: int | list[int] | None = None, *, upper: int = 1) -> Tensor:
    """The upper or lower triangle of the last two axes."""
    diagonal = k[0] if isinstance(k, list) else k or 0
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """``[N, C, H, W]`` -> ``[N, C / b^2, H b, W b]``."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_shuffle(x, b)
    return x.reshape(n, b, b, c // b**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """``[N, C, H, W]`` -> ``[N, C b^2, H / b, W / b]``."""
    n, c, h, w = x.shape
    b = blocksize
    if mode == "CRD":
        return F.pixel_unshuffle(x, b)
    return x.reshape(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).reshape(n, c * b**2, h // b, w // b)


@op("ReverseSequence")
def reverse_sequence(x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0) -> Tensor:
    """The first ``lengths[i]`` steps of sequence i, backwards."""
    return reversed_steps(x, lengths, batch_axis, time_axis)


def reversed_steps(x: Tensor, lengths: Tensor, batch_axis: int, time_axis: int) -> Tensor:
    """Padding after a sequence's end stays where it is."""
    steps = torch.arange(x.shape[time_axis], device=x.device)
    lengths = lengths.to(x.device, torch.int64)[:, None]
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)  # [batch, time]
    if time_axis < batch_axis:
        places = places.T
    dims = [1] * x.ndim
    dims[batch_axis], dims[time_axis] = x.shape[batch_axis], x.shape[time_axis]
    return torch.gather(x, time_axis, places.reshape(dims).expand(x.shape))


@op("CenterCropPad", host="sizes")
def center_crop_pad(x: Tensor, sizes: list[int], *, axes: Sequence[int] | None = None) -> Tensor:
    """Each axis is cut or padded with zeros to its size, around its middle."""
    for axis, target in zip(axes if axes is not None else range(x.ndim), sizes, strict=True):
        spare = target - x.shape[axis]
        if spare < 0:
            x = x.narrow(axis, -spare // 2, target)
        elif spare > 0:
            x = pad(x, [spare // 2, spare - spare // 2], axes=[axis])
    return x
