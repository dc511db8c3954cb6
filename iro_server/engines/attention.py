"""Attention of many sessions' rows in one flat batch, over caches that rows share.

A session's keys and values lie in segments. Rows that descend from the same beam read the same segment, which is
stored and read once: the prompt (shared by all rows), the past (one copy a beam), the chunk (one a row). All rows of
a session are of equal length, so there is neither padding nor a mask. A lone row of a short prompt has all of it in
one segment: many chats at once cost few calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F

NAME = "iro_segments"
# What some architectures pass to their attention beside queries, keys and values, and `attend_*` does not compute.
UNSUPPORTED = {
    "s_aux": "sinks",
    "sinks": "sinks",
    "position_bias": "a bias by position",
    "indices": "an index of the keys that each query sees",
    "block_indices": "an index of the blocks that each query sees",
}


@dataclass
class Segment:
    """keys, values [layers, B, kv heads, length, head size]; rows divide evenly among the B owners, in order."""

    keys: torch.Tensor
    values: torch.Tensor
    length: int


@dataclass(frozen=True)
class Softmax:
    """softmax(scaling q.k) of one layer; a softcap c makes each score c tanh(score / c).

    ``window``: a query at position p sees the keys at positions above p - window; None, all of them.
    """

    scaling: float
    window: int | None = None
    softcap: float | None = None

    def first(self, length: int) -> int:
        """Index of the first key that the last of ``length`` positions sees."""
        return max(0, length - self.window) if self.window else 0

    def cap(self, scores: torch.Tensor) -> torch.Tensor:
        return self.softcap * torch.tanh(scores / self.softcap) if self.softcap else scores


class Rows(Protocol):
    """A run of a flat batch: ``count`` tokens of one session, and how they attend."""

    count: int

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax: Softmax) -> torch.Tensor:
        """q [heads, count, head size], k and v [kv heads, count, head size] -> [count, heads, head size]."""
        ...


def attend_segments(q_RHd: torch.Tensor, segments: list[Segment], layer: int, softmax: Softmax) -> torch.Tensor:
    """One new token a row: softmax over all segments' keys together. Returns [R, heads, head size].

    Segments follow each other in position, the new token's own key last: a window leaves out the leading keys.
    """
    rows, heads, size = q_RHd.shape
    kv_heads = segments[0].keys.shape[2]
    group = heads // kv_heads
    q_RHd = q_RHd * softmax.scaling
    spans = visible_spans(segments, softmax)
    scores = q_RHd.new_empty(rows, kv_heads, group, sum(stop - start for _, start, stop in spans))
    offset = 0
    for s, start, stop in spans:
        owners, length = s.keys.shape[1], stop - start
        q = (
            q_RHd.view(owners, rows // owners, kv_heads, group, size)
            .transpose(1, 2)
            .reshape(owners * kv_heads, -1, size)
        )
        keys = s.keys[layer, :, :, start:stop].flatten(0, 1)
        part = torch.bmm(q, keys.transpose(1, 2)).view(owners, kv_heads, rows // owners, group, length)
        target = scores[..., offset : offset + length].view(owners, rows // owners, kv_heads, group, length)
        target.copy_(part.transpose(1, 2))
        offset += length
    weights = torch.softmax(softmax.cap(scores), dim=-1)
    out, offset = None, 0
    for s, start, stop in spans:
        owners, length = s.keys.shape[1], stop - start
        w = weights[..., offset : offset + length].view(owners, rows // owners, kv_heads, group, length)
        values = s.values[layer, :, :, start:stop].flatten(0, 1)
        part = torch.bmm(w.transpose(1, 2).reshape(owners * kv_heads, -1, length), values)
        part = part.view(owners, kv_heads, rows // owners, group, size).transpose(1, 2)
        out = part if out is None else out.reshape(part.shape) + part
        offset += length
    assert out is not None
    return out.reshape(rows, heads, size)


def visible_spans(segments: list[Segment], softmax: Softmax) -> list[tuple[Segment, int, int]]:
    """Of each segment with visible keys, which they are, from start to stop, for the last of all positions."""
    spans, hidden = [], softmax.first(sum(s.length for s in segments))
    for s in segments:
        start = min(hidden, s.length)
        hidden -= start
        if start < s.length:
            spans.append((s, start, s.length))
    return spans


def attend_cache(q: torch.Tensor, cache: Segment, layer: int, softmax: Softmax) -> torch.Tensor:
    """One row's new token, all of whose keys lie in one segment. q [heads, 1, size] -> [1, heads, size]."""
    if softmax.softcap:
        return attend_segments(q.transpose(0, 1), [cache], layer, softmax)
    span = slice(softmax.first(cache.length), cache.length)
    k, v = cache.keys[layer, :, :, span], cache.values[layer, :, :, span]
    return F.scaled_dot_product_attention(q[None], k, v, scale=softmax.scaling, enable_gqa=True)[0].transpose(0, 1)


def attend_prompt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax: Softmax) -> torch.Tensor:
    """A prompt's last C tokens, causal. q [heads, C, size], k and v of all P positions [kv heads, P, size] ->
    [C, heads, size].
    """
    count = q.shape[1]
    first = softmax.first(k.shape[1] - count + 1)  # of what the earliest query sees
    k, v = k[:, first:], v[:, first:]
    length = k.shape[1]
    windowed = softmax.window is not None and softmax.window < length
    if count == length and not (windowed or softmax.softcap):
        out = F.scaled_dot_product_attention(
            q[None], k[None], v[None], is_causal=True, scale=softmax.scaling, enable_gqa=True
        )
        return out[0].transpose(0, 1)
    mask = torch.ones(count, length, dtype=torch.bool, device=q.device).tril(length - count)
    if windowed:
        mask = mask.triu(length - count - (softmax.window or 0) + 1)
    if softmax.softcap:
        return _capped(q, k, v, softmax, mask).transpose(0, 1)
    out = F.scaled_dot_product_attention(
        q[None], k[None], v[None], attn_mask=mask, scale=softmax.scaling, enable_gqa=True
    )
    return out[0].transpose(0, 1)


def _capped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax: Softmax, mask: torch.Tensor) -> torch.Tensor:
    """Soft-capped attention, which torch has no function for; mask [C, P], True where a query sees a key."""
    heads, count, size = q.shape
    grouped = q.view(len(k), heads // len(k), count, size)
    scores = softmax.cap(grouped @ k[:, None].transpose(2, 3) * softmax.scaling)
    weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
    return (weights @ v[:, None]).reshape(heads, count, -1)


def flat_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    runs: list[Rows] | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls in every layer: query [1, heads, N, size]; each run of rows attends by itself.

    NotImplementedError for attention that is more than `Softmax` says.
    """
    if runs is None:
        raise NotImplementedError("its layers do not hand on what they are called with")
    special = {feature for name, feature in UNSUPPORTED.items() if options.get(name) is not None}
    if attention_mask is not None:
        special.add("a mask of its own")
    if key.shape[-1] != value.shape[-1]:
        special.add("keys and values of different sizes")
    if special:
        raise NotImplementedError(f"its attention has {', '.join(sorted(special))}")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layer, softmax = module.layer_idx, Softmax(scaling, sliding_window, softcap)
    q, k, v = query[0], key[0], value[0]
    out, offset = [], 0
    for run in runs:
        span = slice(offset, offset + run.count)
        out.append(run.attend(layer, q[:, span], k[:, span], v[:, span], softmax))
        offset += run.count
    return torch.cat(out)[None], None
