"""Attention of many sessions' rows in one flat batch, over caches that rows share.

A session's keys and values lie in segments. Rows that descend from the same beam read the same segment, which is
stored and read once: the prompt (shared by all rows), the past (one copy a beam), the chunk (one a row). All rows of
a session are of equal length, so there is neither padding nor a mask. A lone row has all of it in one segment: many
chats at once cost few calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface

NAME = "iro_segments"


@dataclass
class Segment:
    """keys, values [layers, B, kv heads, length, head size]; rows divide evenly among the B owners, in order."""

    keys: torch.Tensor
    values: torch.Tensor
    length: int


class Rows(Protocol):
    """A run of a flat batch: ``count`` tokens of one session, and how they attend."""

    count: int

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
        """q [heads, count, head size], k and v [kv heads, count, head size] -> [count, heads, head size]."""
        ...


def attend_segments(q_RHd: torch.Tensor, segments: list[Segment], layer: int, scaling: float) -> torch.Tensor:
    """One new token a row: softmax over all segments' keys together. Returns [R, heads, head size]."""
    rows, heads, size = q_RHd.shape
    kv_heads = segments[0].keys.shape[2]
    group = heads // kv_heads
    q_RHd = q_RHd * scaling
    scores = q_RHd.new_empty(rows, kv_heads, group, sum(s.length for s in segments))
    at = 0
    for s in segments:
        owners = s.keys.shape[1]
        q = (
            q_RHd.view(owners, rows // owners, kv_heads, group, size)
            .transpose(1, 2)
            .reshape(owners * kv_heads, -1, size)
        )
        keys = s.keys[layer, :, :, : s.length].flatten(0, 1)
        part = torch.bmm(q, keys.transpose(1, 2)).view(owners, kv_heads, rows // owners, group, s.length)
        target = scores[..., at : at + s.length].view(owners, rows // owners, kv_heads, group, s.length)
        target.copy_(part.transpose(1, 2))
        at += s.length
    weights = torch.softmax(scores, dim=-1)
    out, at = None, 0
    for s in segments:
        owners = s.keys.shape[1]
        w = weights[..., at : at + s.length].view(owners, rows // owners, kv_heads, group, s.length)
        values = s.values[layer, :, :, : s.length].flatten(0, 1)
        part = torch.bmm(w.transpose(1, 2).reshape(owners * kv_heads, -1, s.length), values)
        part = part.view(owners, kv_heads, rows // owners, group, size).transpose(1, 2)
        out = part if out is None else out.reshape(part.shape) + part
        at += s.length
    assert out is not None
    return out.reshape(rows, heads, size)


def attend_cache(q: torch.Tensor, cache: Segment, layer: int, scaling: float) -> torch.Tensor:
    """One row's new token, all of whose keys lie in one segment. q [heads, 1, size] -> [1, heads, size]."""
    k, v = (kept[layer, :, :, : cache.length] for kept in (cache.keys, cache.values))
    return F.scaled_dot_product_attention(q[None], k, v, scale=scaling, enable_gqa=True)[0].transpose(0, 1)


def attend_prompt(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scaling: float) -> torch.Tensor:
    """A whole prompt, causal. q [heads, P, size], k and v [kv heads, P, size] -> [P, heads, size]."""
    out = F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scaling, enable_gqa=True)
    return out[0].transpose(0, 1)


def flat_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    runs: list[Rows],
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls in every layer: query [1, heads, N, size]; each run of rows attends by itself."""
    layer = module.layer_idx
    q, k, v = query[0], key[0], value[0]
    out, at = [], 0
    for run in runs:
        span = slice(at, at + run.count)
        out.append(run.attend(layer, q[:, span], k[:, span], v[:, span], scaling))
        at += run.count
    return torch.cat(out)[None], None


AttentionInterface.register(NAME, flat_attention)
