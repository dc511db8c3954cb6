"""Keys and values of tokens: how large they are, and how a segment of them grows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iro_server.engines.attention import Segment

MIN_GROWTH = 32  # tokens
CONTIGUOUS_PROMPT = 512  # tokens: a lone row copies a shorter prompt once and attends in one call instead of several


@dataclass(frozen=True)
class CacheSpec:
    """Shape of one token's keys, and of its values: [layers, kv heads, head size]."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.dtype.itemsize

    def allocate(self, owners: int, capacity: int) -> Segment:
        """An empty segment with room for ``capacity`` tokens an owner."""
        shape = (self.num_layers, owners, self.num_kv_heads, capacity, self.head_size)
        keys, values = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        return Segment(keys, values, 0)


def cached_tokens(prompt: int, sessions: int, rows: int, new_tokens: int) -> int:
    """The most tokens whose keys and values ``sessions`` of one prompt hold at once, ``rows`` in all: the prompt once,
    a copy where it is short and the session a lone row, and the new tokens of each row."""
    return prompt + sessions * (prompt if prompt <= CONTIGUOUS_PROMPT else 0) + rows * new_tokens


def with_growth(length: int) -> int:
    """The capacity to allocate for ``length`` tokens that will become more: each token is copied less than three times
    on average."""
    return length + max(length // 2, MIN_GROWTH)


def append(segment: Segment, source: Segment, owners: Sequence[int], start: int = 0) -> None:
    """Append to each owner the source's tokens from ``start``: to owner i, those of source owner ``owners[i]``."""
    added = slice(segment.length, segment.length + source.length - start)
    taken = slice(start, source.length)
    pairs = (segment.keys, source.keys), (segment.values, source.values)
    for to, from_ in pairs:
        if list(owners) == list(range(from_.shape[1])):
            to[:, :, :, added] = from_[:, :, :, taken]
            continue
        for owner, source_owner in enumerate(owners):
            to[:, owner, :, added] = from_[:, source_owner, :, taken]
    segment.length = added.stop


def select_owners(spec: CacheSpec, segment: Segment, owners: Sequence[int], capacity: int, start: int = 0) -> Segment:
    """A segment whose owner i holds what ``owners[i]`` held from token ``start`` on, with room for ``capacity`` tokens.

    In place where the number of owners stays and the room suffices: then only the owners that change are copied.
    """
    _, num_owners, _, room, _ = segment.keys.shape
    if len(owners) != num_owners or room < capacity or start:
        selected = spec.allocate(len(owners), with_growth(capacity))
        append(selected, segment, owners, start)
        return selected
    changed = [i for i, owner in enumerate(owners) if i != owner]
    if changed:
        sources = [owners[i] for i in changed]
        for tensor in (segment.keys, segment.values):
            tensor[:, changed, :, : segment.length] = tensor[:, sources, :, : segment.length]
    return segment
