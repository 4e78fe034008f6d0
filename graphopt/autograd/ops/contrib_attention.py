"""ONNX Runtime's own attentions, and its rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from graphopt.autograd.ops.attention import (
    additive,
    attend,
    combined,
    for_heads,
    merge_heads,
    probabilities,
    reach,
    rotary_embedding,
    rotated,
    scores,
    split_heads,
)
from graphopt.autograd.table import MICROSOFT, op


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
    allowed = reach(queries, keys, keys - queries, -1, 0, q.device)
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
    q, k, v = (split_heads(part, num_heads) for part in torch.split(packed, sizes, -1))
    if past is not None:
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
    queries, keys = q.shape[2], k.shape[2]
    added = _padding(mask, keys, x.shape[0], mask_filter_value, q.dtype)
    if unidirectional:
        added = combined(added, _causal(queries, keys, torch.finfo(q.dtype).min, q), q.dtype)
    made = attend(q, k, v, combined(added, attention_bias, q.dtype), scale=scale or None)
    return merge_heads(made), torch.stack((k, v)) if k.shape == v.shape else k


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
        q = split_heads(query, num_heads)
        k, v = (part.transpose(1, 2) for part in key.unbind(3))
    else:
        assert key is not None and value is not None
        q = split_heads(query, num_heads)
        k = key if key.ndim == 4 else split_heads(key, num_heads)
        v = value if value.ndim == 4 else split_heads(value, num_heads)
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
        return merge_heads(weights @ v), k, v, weights
    return merge_heads(attend(q, k, v, added, scale=scale or None)), k, v, None


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
    q, k, v = split_heads(query, num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
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
    allowed = reach(count, room, before, left, 0 if causal else -1, q.device)
    allowed = allowed & (torch.arange(room, device=q.device) < lengths.reshape(-1, 1, 1, 1))
    if attention_bias is not None and attention_bias.shape[-1] < room:
        attention_bias = F.pad(attention_bias, (0, room - attention_bias.shape[-1]))
    bias = combined(allowed, attention_bias, q.dtype)
    if sink is not None or smooth_softmax:
        return merge_heads(_with_sink(q, k, v, bias, sink, scale, softcap)), k, v
    return merge_heads(attend(q, k, v, bias, scale=scale or None, softcap=softcap)), k, v


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
    return weights @ for_heads(v, q.shape[1])
