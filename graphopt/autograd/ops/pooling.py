"""Pools: what a window sees, and the way back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.ops.convolution import margins, padded
from graphopt.autograd.table import op

_AVERAGE: dict[int, Callable[..., Tensor]] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LARGEST: dict[int, Callable[..., Tensor]] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _windows(
    x: Tensor, kernel: Sequence[int], steps: Sequence[int], holes: Sequence[int], counts: Sequence[int]
) -> Tensor:
    """A view ``[N, C, *counts, *kernel]`` of a padded tensor."""
    strides = x.stride()
    return x.as_strided(
        (*x.shape[:2], *counts, *kernel),
        (
            *strides[:2],
            *(strides[2 + i] * steps[i] for i in range(len(kernel))),
            *(strides[2 + i] * holes[i] for i in range(len(kernel))),
        ),
        x.storage_offset(),
    )


def _counts(
    sizes: Sequence[int],
    kernel: Sequence[int],
    steps: Sequence[int],
    holes: Sequence[int],
    edges: tuple[list[int], list[int]],
    ceil_mode: int,
) -> list[int]:
    """Number of windows along each axis; one that would begin in the padding behind the data is none."""
    counts = []
    for i, size in enumerate(sizes):
        room = size + edges[0][i] + edges[1][i] - holes[i] * (kernel[i] - 1) - 1
        count = (-(-room // steps[i]) if ceil_mode else room // steps[i]) + 1
        if ceil_mode and (count - 1) * steps[i] >= size + edges[0][i]:
            count -= 1
        counts.append(count)
    return counts


class _Pool:
    """The windows of one node on one input: padding, sizes and positions worked out once."""

    def __init__(
        self,
        x: Tensor,
        kernel: Sequence[int],
        strides: Sequence[int] | None,
        dilations: Sequence[int] | None,
        pads: Sequence[int] | None,
        auto_pad: str,
        ceil_mode: int,
    ) -> None:
        rank = len(kernel)
        self.kernel = tuple(kernel)
        self.steps, self.holes = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
        self.sizes = tuple(x.shape[2:])
        self.edges = margins(self.sizes, self.kernel, self.steps, self.holes, pads, auto_pad)
        self.counts = _counts(self.sizes, self.kernel, self.steps, self.holes, self.edges, ceil_mode)
        self.axes = tuple(range(-rank, 0))

    @property
    def plain(self) -> bool:
        """Whether torch's own pools take these windows: even margins of at most half the kernel, none beyond them."""
        before, after = self.edges
        fits = all(
            (self.counts[i] - 1) * self.steps[i] + self.holes[i] * (self.kernel[i] - 1) < size + before[i] + after[i]
            for i, size in enumerate(self.sizes)
        )
        return before == after and fits and all(2 * b <= k for b, k in zip(before, self.kernel, strict=True))

    def windows(self, x: Tensor, filling: float) -> Tensor:
        """``[N, C, *counts, *kernel]`` with ``filling`` outside."""
        before, after = self.edges[0], list(self.edges[1])
        for i, size in enumerate(self.sizes):
            reach = (self.counts[i] - 1) * self.steps[i] + self.holes[i] * (self.kernel[i] - 1) + 1
            after[i] = max(after[i], reach - size - before[i])
        return _windows(
            padded(x, before, after, filling).contiguous(), self.kernel, self.steps, self.holes, self.counts
        )


@op("MaxPool")
def max_pool(
    x: Tensor,
    *,
    wanted: tuple[bool, ...],
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The largest of each window; where it stands in the whole tensor, too, where the node names that output."""
    pool = _Pool(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    tapped = len(wanted) > 1 and wanted[1]
    if pool.plain and not tapped and len(kernel_shape) <= 3 and x.is_floating_point():
        return _LARGEST[len(kernel_shape)](x, pool.kernel, pool.steps, tuple(pool.edges[0]), pool.holes)
    lowest = -math.inf if x.is_floating_point() else torch.iinfo(x.dtype).min
    flat = pool.windows(x, lowest).flatten(2 + len(pool.kernel))
    best = flat.max(-1)
    if not tapped:
        return best.values
    places = torch.arange(x.numel(), device=x.device).reshape(x.shape)
    if storage_order:
        n, c = x.shape[:2]
        columns = (
            torch.arange(math.prod(pool.sizes), device=x.device)
            .reshape(pool.sizes[::-1])
            .permute(*reversed(range(len(pool.sizes))))
        )
        firsts = torch.arange(n * c, device=x.device).reshape(n, c, *[1] * len(pool.sizes)) * math.prod(pool.sizes)
        places = firsts + columns
    found = pool.windows(places, -1).flatten(2 + len(pool.kernel))
    return best.values, found.gather(-1, best.indices.unsqueeze(-1)).squeeze(-1)


@op("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Padding counts as zeros, or not at all; what a window covers beyond the padding never counts."""
    pool = _Pool(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    if pool.plain and len(kernel_shape) <= 3 and set(pool.holes) == {1}:
        plain = _AVERAGE[len(kernel_shape)]
        return plain(x, pool.kernel, pool.steps, tuple(pool.edges[0]), False, bool(count_include_pad))
    total = pool.windows(x, 0.0).sum(pool.axes)
    ones = torch.ones(1, 1, *pool.sizes, dtype=x.dtype, device=x.device)
    if count_include_pad:
        ones = padded(ones, *pool.edges, 1.0)
        inner = _Pool(ones, kernel_shape, strides, dilations, None, "NOTSET", ceil_mode)
        inner.counts = pool.counts
        return total / inner.windows(ones, 0.0).sum(pool.axes)
    return total / pool.windows(ones, 0.0).sum(pool.axes)


@op("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    p: int = 2,
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """The p-norm of each window."""
    pool = _Pool(x, kernel_shape, strides, dilations, pads, auto_pad, ceil_mode)
    made: Tensor = torch.linalg.vector_norm(pool.windows(x, 0.0).flatten(2 + len(pool.kernel)), p, -1)
    return made


def _everywhere(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    """``[N, C, 1, ...]``."""
    return x.mean(_everywhere(x), True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    """``[N, C, 1, ...]``."""
    return x.amax(_everywhere(x), True)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: int = 2) -> Tensor:
    """``[N, C, 1, ...]``."""
    made: Tensor = torch.linalg.vector_norm(x, p, _everywhere(x), True)
    return made


@op("MaxUnpool", host="sizes")
def max_unpool(
    x: Tensor,
    places: Tensor,
    sizes: list[int] | None = None,
    *,
    kernel_shape: Sequence[int],
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Tensor:
    """Zeros, and each element back where MaxPool found it (in a tensor of the inferred size)."""
    rank = len(kernel_shape)
    steps, edges = strides or (1,) * rank, pads or (0,) * (2 * rank)
    inferred = [(x.shape[2 + i] - 1) * steps[i] - edges[i] - edges[rank + i] + kernel_shape[i] for i in range(rank)]
    target = list(x.shape[:2]) + inferred
    if sizes is not None and list(sizes) != target:
        coordinates = torch.unravel_index(places.reshape(-1), target)
        whole = torch.zeros(sizes, dtype=x.dtype, device=x.device)
        return whole.index_put(coordinates, x.reshape(-1))
    flat = torch.zeros(math.prod(target), dtype=x.dtype, device=x.device)
    return flat.index_put((places.reshape(-1),), x.reshape(-1)).reshape(target)


@op("RoiAlign")
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    """``x [N, C, H, W]``, ``rois [R, 4]`` -> ``[R, C, h, w]``: bilinear samples of each bin, their mean or maximum."""
    half = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    made = []
    for box, index in zip(rois, batch.tolist(), strict=True):
        left, top, right, bottom = (box * spatial_scale - half).unbind()
        width, height = right - left, bottom - top
        if not half:
            width, height = width.clamp(min=1.0), height.clamp(min=1.0)
        counts = [
            sampling_ratio or math.ceil(float(size) / bins)
            for size, bins in ((height, output_height), (width, output_width))
        ]
        rows = top + _samples(output_height, counts[0], x) * height / output_height
        columns = left + _samples(output_width, counts[1], x) * width / output_width
        made.append(_pooled(x[index], rows, columns, (output_height, output_width), counts, mode))
    return torch.stack(made) if made else x.new_zeros(0, x.shape[1], output_height, output_width)


def _samples(bins: int, count: int, x: Tensor) -> Tensor:
    """Places of the samples in units of one bin."""
    return (torch.arange(bins * count, dtype=x.dtype, device=x.device) + 0.5) / count


def _pooled(
    x: Tensor, rows: Tensor, columns: Tensor, bins: tuple[int, int], counts: Sequence[int], mode: str
) -> Tensor:
    """``x [C, H, W]`` at the grid of samples, one value for each bin."""
    (low_y, high_y, share_y), (low_x, high_x, share_x) = _between(rows, x.shape[1]), _between(columns, x.shape[2])
    corners = [
        x[:, y][:, :, z] * (a[:, None] * b[None, :])
        for y, a in ((low_y, 1 - share_y), (high_y, share_y))
        for z, b in ((low_x, 1 - share_x), (high_x, share_x))
    ]
    outside = ((rows < -1) | (rows > x.shape[1]))[:, None] | ((columns < -1) | (columns > x.shape[2]))[None, :]
    shape = (x.shape[0], bins[0], counts[0], bins[1], counts[1])
    if mode == "avg":
        samples = torch.where(outside, 0.0, sum(corners[1:], corners[0]))
        return samples.reshape(shape).mean((2, 4))
    largest = torch.stack(corners).amax(0)
    return torch.where(outside, 0.0, largest).reshape(shape).amax((2, 4))


def _between(places: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """The elements before and after each place, and how far it is from the first."""
    places = places.clamp(0, size - 1)
    low = places.floor().long()
    return low, (low + 1).clamp(max=size - 1), places - low
