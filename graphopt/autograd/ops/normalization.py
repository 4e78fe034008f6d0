"""Normalisations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.table import MICROSOFT, op


def _channelwise(parameter: Tensor, x: Tensor) -> Tensor:
    """``[C]`` so that it broadcasts to ``[N, C, ...]``."""
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


@op("BatchNormalization", ignored="spatial consumed_inputs")
def batch_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Tensor, ...]:
    """By the given statistics; in training form by the batch's own, and the new running ones come out too."""
    if not training_mode:
        kinds = {t.dtype for t in (x, scale, bias, mean, variance)}
        if len(kinds) == 1 and not (mean.requires_grad or variance.requires_grad):
            return (F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon),)
        root = torch.rsqrt(variance + epsilon)
        factor, shift = scale * root, bias - mean * scale * root
        return ((x * _channelwise(factor, x) + _channelwise(shift, x)).to(x.dtype),)
    axes = [axis for axis in range(x.ndim) if axis != 1]
    own_mean, own_variance = x.mean(axes), x.var(axes, unbiased=False)
    made = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    return (
        made,
        mean * momentum + own_mean * (1 - momentum),
        variance * momentum + own_variance * (1 - momentum),
    )


@op("InstanceNormalization", ignored="consumed_inputs")
def instance_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Each channel of each sample by itself."""
    return F.instance_norm(x, None, None, scale, bias, True, 0.0, epsilon)


@op("GroupNormalization", ignored="stash_type")
def group_normalization_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """One scale and bias for each group (opset 18 to 20)."""
    repeat = x.shape[1] // num_groups
    return F.group_norm(x, num_groups, scale.repeat_interleave(repeat), bias.repeat_interleave(repeat), epsilon)


@op("GroupNormalization", since=21, ignored="stash_type")
def group_normalization(x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5) -> Tensor:
    """One scale and bias for each channel."""
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@op("LayerNormalization")
def layer_normalization(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    wanted: tuple[bool, ...],
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor | tuple[Tensor, ...]:
    """Over the axes from ``axis`` on; mean and inverse deviation come out too where the node names them."""
    del stash_type  # torch keeps statistics in float32 or wider
    sizes = x.shape[axis:] if axis < 0 else x.shape[axis % x.ndim :]
    if scale.shape == sizes and (bias is None or bias.shape == sizes):
        made = F.layer_norm(x, sizes, scale, bias, epsilon)
    else:
        made = F.layer_norm(x, sizes, None, None, epsilon) * scale
        made = made if bias is None else made + bias
    if wanted[1:] and any(wanted[1:]):
        return made, *_statistics(x, len(sizes), epsilon)
    return made


def _statistics(x: Tensor, count: int, epsilon: float) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation over the last ``count`` axes, kept as axes of one."""
    axes = tuple(range(-count, 0))
    return x.mean(axes, True), torch.rsqrt(x.var(axes, unbiased=False, keepdim=True) + epsilon)


@op("RMSNormalization SimplifiedLayerNormalization")
@op("SimplifiedLayerNormalization", domain=MICROSOFT)
def rms_normalization(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Tensor, Tensor]:
    """By the root mean square over the axes from ``axis`` on, in float32 or wider as ``stash_type`` says."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    wide = x.float() if stash_type == 1 and x.dtype in (torch.float16, torch.bfloat16) else x
    inverse = torch.rsqrt(wide.pow(2).mean(axes, True) + epsilon)
    return (wide * inverse).to(x.dtype) * scale, inverse


@op("SkipLayerNormalization", domain=MICROSOFT)
def skip_layer_normalization(
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    wanted: tuple[bool, ...],
    epsilon: float = 1e-12,
) -> tuple[Tensor, ...]:
    """LayerNormalization of ``x + skip + bias``; the fourth output is that sum."""
    total = x + skip if bias is None else x + skip + bias
    made = F.layer_norm(total, total.shape[-1:], scale, beta, epsilon)
    if len(wanted) > 1 and any(wanted[1:3]):
        return made, *_statistics(total, 1, epsilon), total
    return made, total, total, total


@op("SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_rms_normalization(
    x: Tensor, skip: Tensor, scale: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-12
) -> tuple[Tensor, ...]:
    """RMSNormalization of ``x + skip + bias``; the fourth output is that sum."""
    total = x + skip if bias is None else x + skip + bias
    made, inverse = rms_normalization(total, scale, epsilon=epsilon)
    return made, inverse, inverse, total


@op("EmbedLayerNormalization", domain=MICROSOFT)
def embed_layer_normalization(
    ids: Tensor,
    segments: Tensor | None,
    words: Tensor,
    positions: Tensor,
    segment_table: Tensor | None,
    scale: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of word, position and segment embeddings, normalised; how many tokens each row has; and the sum."""
    total = F.embedding(ids.long(), words)
    if position_ids is None:
        total = total + positions[: ids.shape[1]]
    else:
        total = total + F.embedding(position_ids.long(), positions)
    if segments is not None and segment_table is not None:
        total = total + F.embedding(segments.long(), segment_table)
    lengths = mask.sum(1, dtype=torch.int32) if mask is not None and mask_index_type else None
    if lengths is None:
        lengths = torch.zeros(ids.shape[0], dtype=torch.int32, device=ids.device)
    return F.layer_norm(total, total.shape[-1:], scale, beta, epsilon), lengths, total


@op("LpNormalization")
def lp_normalization(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Zero vectors stay zero."""
    norm = torch.linalg.vector_norm(x, p, axis, True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@op("MeanVarianceNormalization")
def mean_variance_normalization(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Zero mean and unit variance over ``axes``."""
    centred = x - x.mean(tuple(axes), True)
    return centred / (centred.pow(2).mean(tuple(axes), True).sqrt() + 1e-9)


@op("LRN")
def local_response_normalization(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    """By the squares of ``size`` neighbouring channels."""
    before = (size - 1) // 2
    squares = F.pad(x.pow(2).transpose(1, -1), (before, size - 1 - before))
    total = squares.unfold(-1, size, 1).sum(-1).transpose(1, -1)
    return x / (bias + alpha / size * total).pow(beta)
