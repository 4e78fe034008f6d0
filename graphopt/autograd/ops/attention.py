"""Whole attentions as one operator: the standard's, ONNX Runtime's, and rotary positions."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.table import MICROSOFT, op
from graphopt.autograd.types import Context


def attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *, scale: float | None, softcap: float = 0.0
) -> Tensor:
    """``q [B, H, S, D]``, ``k [B, G, L, D]``, ``v [B, G, L, E]``, ``H`` a multiple of ``G`` -> ``[B, H, S, E]``.

    ``bias`` broadcasts to ``[B, H, S, L]``: added to the scores, or bool, where True may be attended to. A query that
    may attend to nothing gets zeros.
    """
    if softcap:
        return probabilities(scores(q, k, scale, softcap), bias)[0] @ _for_heads(v, q.shape[1])
    if bias is not None and bias.is_floating_point() and bias.dtype is not q.dtype and not torch.is_autocast_enabled():
        bias = bias.to(q.dtype)
    k, v = _for_heads(k, q.shape[1]), _for_heads(v, q.shape[1])
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def scores(q: Tensor, k: Tensor, scale: float | None, softcap: float = 0.0) -> Tensor:
    """``[B, H, S, L]``."""
    root = math.sqrt(scale if scale is not None else q.shape[-1] ** -0.5)
    made = (q * root) @ (_for_heads(k, q.shape[1]) * root).transpose(-1, -2)
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


def _for_heads(x: Tensor, heads: int) -> Tensor:
    """Key-value heads repeated, each for its group of query heads."""
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], dim=1)


def _split(x: Tensor, heads: int) -> Tensor:
    """``[B, S, H D]`` -> ``[B, H, S, D]``."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def _merge(x: Tensor) -> Tensor:
    """``[B, H, S, D]`` -> ``[B, S, H D]``."""
    return x.transpose(1, 2).flatten(2)


def _reach(queries: int, keys: int, before: Tensor | int, left: int, right: int, device: torch.device) -> Tensor:
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


# -- the standard's ----------------------------------------------------------------------------------------------------
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
        q, k, v = _split(q, q_num_heads), _split(k, kv_num_heads), _split(v, kv_num_heads)
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
        mask = combined(mask, _reach(queries, keys, before, left_window_size, right, q.device), q.dtype)
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
        made = weights @ _for_heads(v, q.shape[1])
    else:
        made = attend(q, k, v, mask, scale=scale)
    return _merge(made) if flat else made, k, v, shown


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
        return _merge(rotated(_split(x, num_heads), cosines, sines, interleaved, rotary_embedding_dim))
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


# -- ONNX Runtime's ----------------------------------------------------------------------------------------------------
@op("RotaryEmbedding", domain=MICROSOFT)
def rotary_embedding_by_position(
    x: Tensor,
    positions: Tensor,
    cosines: Tensor,
    sines: Tensor,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
    scale: float = 1.0,
    is_packed_batching: int = 0,
) -> Tensor:
    """One position is that of the first token."""
    if is_packed_batching:
        raise NotImplementedError("packed batches")
    length = x.shape[2] if x.ndim == 4 else x.shape[1]
    if positions.numel() == 1 and positions.ndim == 1:
        positions = (positions + torch.arange(length, device=x.device)).unsqueeze(0).expand(x.shape[0], -1)
    heads = num_heads if num_heads or x.ndim == 4 else x.shape[2] // (2 * cosines.shape[-1])
    made = rotary_embedding(
        x,
        cosines,
        sines,
        positions,
        interleaved=interleaved,
        num_heads=heads,
        rotary_embedding_dim=rotary_embedding_dim,
    )
    return made if scale == 1.0 else made * scale


def _padding(mask: Tensor | None, keys: int, batch: int, filling: float, dtype: torch.dtype) -> Tensor | None:
    """A key mask as what is added to the scores: raw ``[B, L]`` and its kin, or lengths ``[B]``, ends and starts."""
    if mask is None:
        return None
    if mask.ndim == 1:
        places = torch.arange(keys, device=mask.device)
        kept = places < mask[:batch, None]
        if mask.shape[0] == 2 * batch:
            kept = kept & (places >= mask[batch:, None])
        kept = kept[:, None, None, :]
    else:
        kept = mask != 0
        kept = kept[:, None, None, :] if mask.ndim == 2 else kept[:, None] if mask.ndim == 3 else kept
        kept = kept[..., :keys]
    return _filled(kept, filling, dtype)


def _causal(queries: int, keys: int, filling: float, q: Tensor) -> Tensor:
    allowed = _reach(queries, keys, keys - queries, -1, 0, q.device)
    return _filled(allowed, filling, q.dtype)


def _filled(kept: Tensor, filling: float, dtype: torch.dtype) -> Tensor:
    return torch.zeros(kept.shape, dtype=dtype, device=kept.device).masked_fill(~kept, filling)


@op("Attention", domain=MICROSOFT)
def packed_attention(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    *,
    num_heads: int,
    unidirectional: int = 0,
    qkv_hidden_sizes: list[int] | None = None,
    scale: float | None = None,
    mask_filter_value: float = -10000.0,
    do_rotary: int = 0,
    rotary_embedding_dim: int = 0,
    past_present_share_buffer: int = 0,
) -> tuple[Tensor, Tensor]:
    """``x [B, S, D]`` and weights ``[D, q + k + v]`` -> ``[B, S, v]``; present ``[2, B, H, L, d]``."""
    if do_rotary or past_present_share_buffer:
        raise NotImplementedError("rotary positions or a shared buffer inside Attention")
    packed = F.linear(x, weight.T, bias)
    sizes = list(qkv_hidden_sizes) if qkv_hidden_sizes else [packed.shape[-1] // 3] * 3
    q, k, v = (_split(part, num_heads) for part in torch.split(packed, sizes, -1))
    if past is not None:
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
    queries, keys = q.shape[2], k.shape[2]
    added = _padding(mask, keys, x.shape[0], mask_filter_value, q.dtype)
    if unidirectional:
        added = combined(added, _causal(queries, keys, torch.finfo(q.dtype).min, q), q.dtype)
    made = attend(q, k, v, combined(added, attention_bias, q.dtype), scale=scale or None)
    return _merge(made), torch.stack((k, v)) if k.shape == v.shape else k


@op("MultiHeadAttention", domain=MICROSOFT)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    *,
    wanted: tuple[bool, ...],
    num_heads: int,
    unidirectional: int = 0,
    scale: float | None = None,
    mask_filter_value: float = -10000.0,
) -> tuple[Tensor | None, ...]:
    """Keys and values apart, packed ``[B, L, H, 2, D]``, all packed ``[B, S, H, 3, D]``, or split already."""
    if query.ndim == 5:
        q, k, v = (part.transpose(1, 2) for part in query.unbind(3))
    elif key is not None and key.ndim == 5:
        q = _split(query, num_heads)
        k, v = (part.transpose(1, 2) for part in key.unbind(3))
    else:
        assert key is not None and value is not None
        q = _split(query, num_heads)
        k = key if key.ndim == 4 else _split(key, num_heads)
        v = value if value.ndim == 4 else _split(value, num_heads)
    if bias is not None:
        width, rest = q.shape[1] * q.shape[3], v.shape[1] * v.shape[3]
        of_q, of_k, of_v = (part.reshape(1, num_heads, 1, -1) for part in torch.split(bias, [width, width, rest]))
        q = q + of_q
        k = k if key is not None and key.ndim == 4 else k + of_k
        v = v if value is not None and value.ndim == 4 else v + of_v
    if past_key is not None and past_value is not None:
        k, v = torch.cat((past_key, k), 2), torch.cat((past_value, v), 2)
    queries, keys = q.shape[2], k.shape[2]
    added = _padding(mask, keys, q.shape[0], mask_filter_value, q.dtype)
    if unidirectional:
        added = combined(added, _causal(queries, keys, torch.finfo(q.dtype).min, q), q.dtype)
    added = combined(added, attention_bias, q.dtype)
    if len(wanted) > 3 and wanted[3]:
        weights, _ = probabilities(scores(q, k, scale or None), added)
        return _merge(weights @ v), k, v, weights
    return _merge(attend(q, k, v, added, scale=scale or None)), k, v, None


@op("GroupQueryAttention", domain=MICROSOFT, host="total")
def group_query_attention(
    query: Tensor,
    key: Tensor | None,
    value: Tensor | None,
    past_key: Tensor | None,
    past_value: Tensor | None,
    last: Tensor,
    total: int | list[int],
    cosines: Tensor | None = None,
    sines: Tensor | None = None,
    positions: Tensor | None = None,
    attention_bias: Tensor | None = None,
    sink: Tensor | None = None,
    *,
    num_heads: int,
    kv_num_heads: int,
    scale: float | None = None,
    softcap: float = 0.0,
    local_window_size: int = -1,
    do_rotary: int = 0,
    rotary_interleaved: int = 0,
    smooth_softmax: int = 0,
    causal: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries ``[B, S, H D]``, keys and values ``[B, S, G D]``; ``last [B]`` is each row's length less one.

    A row's new keys go behind its own past: ``present [B, G, max(P, total), D]``.
    """
    if key is None or value is None:
        width = query.shape[-1] // (num_heads + 2 * kv_num_heads)
        query, key, value = torch.split(query, [num_heads * width, kv_num_heads * width, kv_num_heads * width], -1)
    q, k, v = _split(query, num_heads), _split(key, kv_num_heads), _split(value, kv_num_heads)
    count = q.shape[2]
    whole = int(total[0] if isinstance(total, list) else total)
    lengths = last.reshape(-1).long() + 1
    before = (lengths - count).clamp(min=0)
    if do_rotary:
        assert cosines is not None and sines is not None
        if positions is None:
            positions = before[:, None] + torch.arange(count, device=q.device)
        tables = cosines[positions], sines[positions]
        q, k = (rotated(part, *tables, rotary_interleaved, 2 * cosines.shape[-1]) for part in (q, k))
    room = max(whole, past_key.shape[2] if past_key is not None else 0)
    k, v = (_appended(past, new, before, room) for past, new in ((past_key, k), (past_value, v)))
    left = local_window_size - 1 if local_window_size > 0 else -1
    allowed = _reach(count, room, before, left, 0 if causal else -1, q.device)
    allowed = allowed & (torch.arange(room, device=q.device) < lengths.reshape(-1, 1, 1, 1))
    if attention_bias is not None and attention_bias.shape[-1] < room:
        attention_bias = F.pad(attention_bias, (0, room - attention_bias.shape[-1]))
    bias = combined(allowed, attention_bias, q.dtype)
    if sink is not None or smooth_softmax:
        return _merge(_with_sink(q, k, v, bias, sink, scale, softcap)), k, v
    return _merge(attend(q, k, v, bias, scale=scale or None, softcap=softcap)), k, v


def _appended(past: Tensor | None, new: Tensor, before: Tensor, room: int) -> Tensor:
    """``[B, G, room, D]``: the past, and from each row's own end on what is new."""
    batch, groups, count, width = new.shape
    held = 0 if past is None else past.shape[2]
    empty = torch.zeros(batch, groups, room + count - held, width, dtype=new.dtype, device=new.device)
    buffer = empty if past is None else torch.cat((past, empty), 2)
    places = before[:, None] + torch.arange(count, device=new.device)
    return buffer.scatter(2, places[:, None, :, None].expand_as(new), new)[:, :, :room]


def _with_sink(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, sink: Tensor | None, scale: float | None, softcap: float
) -> Tensor:
    """Attention whose softmax has one more term in its sum: ``exp(sink)`` of each head, or one."""
    raw = scores(q, k, scale or None, softcap)
    raw = raw if bias is None else raw + additive(bias, raw.dtype)
    extra = torch.zeros(raw.shape[1], dtype=raw.dtype, device=raw.device) if sink is None else sink.to(raw.dtype)
    extra = extra.reshape(1, -1, 1, 1).expand(*raw.shape[:3], 1)
    weights = torch.softmax(torch.cat((raw, extra), -1), -1)[..., :-1]
    return weights @ _for_heads(v, q.shape[1])


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
        _split(part.to(wide), heads)
        for part, heads in ((query, q_num_heads), (key, kv_num_heads), (value, kv_num_heads))
    )
    factor = scale or q.shape[-1] ** -0.5
    if past is None:
        state = torch.zeros(*k.shape[:2], k.shape[-1], v.shape[-1], dtype=wide, device=q.device)
    else:
        state = past.to(wide)
    fades = None if decay is None else torch.exp(_split(decay.to(wide), kv_num_heads)).unsqueeze(-1)
    rates = None if beta is None else beta.to(wide).transpose(1, 2)[..., None]
    made = []
    for step in range(q.shape[2]):
        if fades is not None and update_rule in ("gated", "gated_delta"):
            state = state * fades[:, :, step]
        new = v[:, :, step]
        if rates is not None and update_rule in ("delta", "gated_delta"):
            new = rates[:, :, step] * (new - (state.transpose(-1, -2) @ k[:, :, step, :, None]).squeeze(-1))
        state = state + k[:, :, step, :, None] * new[..., None, :]
        read = q[:, :, step, None, :] @ _for_heads(state, q.shape[1])
        made.append(read.squeeze(-2) * factor)
    return _merge(torch.stack(made, 2)).to(kind), state.to(kind)
