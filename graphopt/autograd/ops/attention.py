"""Whole attentions as one operator, and rotary positions, as the standard has them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.table import op
from graphopt.autograd.types import Context


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float | None, softcap: float = 0.0
) -> Tensor:
    """``q [B, H, S, D]``, ``k [B, G, L, D]``, ``v [B, G, L, E]``, ``H`` a multiple of ``G`` -> ``[B, H, S, E]``.

    ``bias`` broadcasts to ``[B, H, S, L]``: added to the scores, or bool, where True may be attended to. A query that
    may attend to nothing gets zeros.
    """
    if softcap:
        return probabilities(scores(q, k, scale, softcap), bias)[0] @ for_heads(v, q.shape[1])
    if bias is not None and bias.is_floating_point() and bias.dtype is not q.dtype and not torch.is_autocast_enabled():
        bias = bias.to(q.dtype)
    k, v = for_heads(k, q.shape[1]), for_heads(v, q.shape[1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def scores(q: Tensor, k: Tensor, scale: float | None, softcap: float = 0.0) -> Tensor:
    """``[B, H, S, L]``."""
    root = math.sqrt(scale if scale is not None else q.shape[-1] ** -0.5)
    made = (q * root) @ (for_heads(k, q.shape[1]) * root).transpose(-1, -2)
    return torch.tanh(made / softcap) * softcap if softcap else made


def probabilities(raw: Tensor, bias: Tensor | None, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Softmax of the biased scores, zero where nothing may be attended to; and those scores."""
    if bias is None:
        return torch.softmax(raw, -1, dtype=dtype).to(raw.dtype), raw
    added = additive(bias, raw.dtype)
    biased = raw + added
    empty = torch.isneginf(added).all(-1, keepdim=True)  # kept out of the softmax, where they would be no numbers
    made = torch.softmax(torch.where(empty, raw, biased), -1, dtype=dtype).to(raw.dtype)
    return torch.where(empty, torch.zeros((), dtype=made.dtype, device=made.device), made), biased


def additive(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as zeros and negative infinities."""
    if bias.dtype is not torch.bool:
        return bias.to(dtype)
    zeros = torch.zeros((), dtype=dtype, device=bias.device)
    return torch.where(bias, zeros, torch.full((), -math.inf, dtype=dtype, device=bias.device))


def combined(a: Tensor | None, b: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Two masks as one."""
    if a is None or b is None:
        return b if a is None else a
    if a.dtype is torch.bool and b.dtype is torch.bool:
        return a & b
    return additive(a, dtype) + additive(b, dtype)


def for_heads(x: Tensor, heads: int) -> Tensor:
    """Key-value heads repeated, each for its group of query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """``[B, S, H D]`` -> ``[B, H, S, D]``."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """``[B, H, S, D]`` -> ``[B, S, H D]``."""
    return x.transpose(1, 2).flatten(2)


def reach(queries: int, keys: int, before: Tensor | int, left: int, right: int, device: torch.device) -> Tensor:
    """Bool ``[..., S, L]``: which keys lie within reach of each query, ``before`` keys standing before the first."""
    start = before.reshape(-1, 1, 1, 1) if isinstance(before, Tensor) else before
    places = torch.arange(queries, device=device)[:, None] + start
    others = torch.arange(keys, device=device)
    allowed = torch.ones((), dtype=torch.bool, device=device)
    if left >= 0:
        allowed = allowed & (places - others <= left)
    if right >= 0:
        allowed = allowed & (others - places <= right)
    return allowed


# -- operators --------------------------------------------------------------------------------------------------------
@op("Attention", since=23)
def attention(
    ctx: Context,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    key_lengths: Tensor | None = None,
    *,
    wanted: tuple[bool, ...],
    is_causal: int = 0,
    kv_num_heads: int = 0,
    q_num_heads: int = 0,
    qk_matmul_output_mode: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
    left_window_size: int = -1,
    right_window_size: int = -1,
) -> tuple[Tensor | None, ...]:
    """Inputs ``[B, S, H D]`` or ``[B, H, S, D]``; the past stands before the keys; causal counts from its end."""
    flat = q.ndim == 3
    if flat:
        q, k, v = split_heads(q, q_num_heads), split_heads(k, kv_num_heads), split_heads(v, kv_num_heads)
    before: Tensor | int = 0
    if past_key is not None and past_value is not None:
        before = past_key.shape[2]
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    elif key_lengths is not None:
        before = key_lengths.reshape(-1) - q.shape[2]
    queries, keys = q.shape[2], k.shape[2]
    if mask is not None and mask.shape[-1] < keys:
        mask = F.pad(mask, (0, keys - mask.shape[-1]), value=0.0 if mask.dtype is torch.bool else -math.inf)
    right = (
        min(right_window_size, 0) if right_window_size >= 0 and is_causal else (0 if is_causal else right_window_size)
    )
    if left_window_size >= 0 or right >= 0:
        mask = combined(mask, reach(queries, keys, before, left_window_size, right, q.device), q.dtype)
    if key_lengths is not None:
        valid = torch.arange(keys, device=q.device) < key_lengths.reshape(-1, 1, 1, 1)
        mask = combined(mask, valid, q.dtype)
    precision = ctx.dtype(softmax_precision) if softmax_precision else None
    tapped = len(wanted) > 3 and wanted[3]
    shown = None
    if tapped or softcap or (precision is not None and precision is not q.dtype):
        raw = scores(q, k, scale)
        capped = torch.tanh(raw / softcap) * softcap if softcap else raw
        weights, biased = probabilities(capped, mask, precision)
        shown = (raw if not softcap else capped, capped, biased, weights)[qk_matmul_output_mode]
        made = weights @ for_heads(v, q.shape[1])
    else:
        made = attend(q, k, v, mask, scale=scale)
    return merge_heads(made) if flat else made, k, v, shown


@op("RotaryEmbedding", since=23)
def rotary_embedding(
    x: Tensor,
    cosines: Tensor,
    sines: Tensor,
    positions: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """``x [B, H, S, D]`` or ``[B, S, H D]``; tables ``[B, S, R / 2]``, or ``[P, R / 2]`` looked up by position."""
    if positions is not None:
        cosines, sines = cosines[positions], sines[positions]
    if x.ndim == 3:
        return merge_heads(rotated(split_heads(x, num_heads), cosines, sines, interleaved, rotary_embedding_dim))
    return rotated(x, cosines, sines, interleaved, rotary_embedding_dim)


def rotated(x: Tensor, cosines: Tensor, sines: Tensor, interleaved: int, width: int) -> Tensor:
    """``x [B, H, S, D]``, tables ``[B, S, R / 2]``: pairs of the first ``R`` members are turned."""
    width = width or x.shape[-1]
    turned, kept = x[..., :width], x[..., width:]
    cosines, sines = cosines.unsqueeze(1)[..., : width // 2], sines.unsqueeze(1)[..., : width // 2]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    real, imaginary = a * cosines - b * sines, a * sines + b * cosines
    made = torch.stack((real, imaginary), -1).flatten(-2) if interleaved else torch.cat((real, imaginary), -1)
    return made if kept.shape[-1] == 0 else torch.cat((made, kept), -1)


@op("LinearAttention", ignored="chunk_size")
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    q_num_heads: int,
    kv_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """One state ``[B, G, K, V]`` that every token reads and writes, token by token."""
    kind = query.dtype
    wide = torch.promote_types(kind, torch.float32)
    q, k, v = (
        split_heads(part.to(wide), heads)
        for part, heads in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads))
    )
    factor = scale or q.shape[-1] ** -0.5
    if past is None:
        state = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=wide, device=q.device)
    else:
        state = past.to(wide)
    fades = None if decay is None else torch.exp(split_heads(decay.to(wide), kv_num_heads)).unsqueeze(-1)
    rates = None if beta is None else beta.to(wide).transpose(1, 2)[..., None]
    made = []
    for step in range(q.shape[2]):
        if fades is not None and update_rule in ("gated", "gated_delta"):
            state = state * fades[:, :, step]
        new = v[:, :, step]
        if rates is not None and update_rule in ("delta", "gated_delta"):
            new = rates[:, :, step] * (new - (state.transpose(-1, -2) @ k[:, :, step, :, None]).squeeze(-1))
        state = state + k[:, :, step, :, None] * new[..., None, :]
        read = q[:, :, step, None, :] @ for_heads(state, q.shape[1])
        made.append(read.squeeze(-2) * factor)
    return merge_heads(torch.stack(made, 2)).to(kind), state.to(kind)
