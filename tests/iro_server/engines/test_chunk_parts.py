"""Chunks sampled in parts."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from iro_server.engines.base import Chunk
from iro_server.engines.chunk_parts import ChunkParts


def random_part(rows: int, length: int, generator: torch.Generator) -> Chunk:
    stopped_R = torch.rand(rows, generator=generator) < 0.4
    lengths_R = torch.where(stopped_R, torch.randint(1, length + 1, (rows,), generator=generator), length)
    numbers = [torch.rand(rows, length, generator=generator) for _ in range(3)]
    tokens_RL = torch.randint(9, (rows, length), generator=generator)
    alternatives = [[[(token, 0.0)] for token in row] for row in tokens_RL.tolist()]
    hidden = {3: torch.rand(rows, length, 2, generator=generator)}
    return Chunk(tokens_RL, numbers[0], lengths_R, stopped_R, hidden, *numbers[1:], alternatives, discarded_tokens=1)


@given(st.integers(1, 6), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 999))
def test_a_joined_chunk_has_each_rows_tokens_of_all_parts(rows: int, lengths: list[int], seed: int) -> None:
    generator, parts = torch.Generator().manual_seed(seed), ChunkParts()
    tokens: list[list[int]] = [[] for _ in range(rows)]
    states: list[list[list[float]]] = [[] for _ in range(rows)]
    live = list(range(rows))
    for length in lengths:
        part = random_part(len(live), length, generator)
        parts.add(part)
        for place, row in enumerate(live):
            count = int(part.lengths_R[place])
            tokens[row] += part.tokens_RL[place, :count].tolist()
            states[row] += part.hidden[3][place, :count].tolist()
        assert parts.places == {row: place for place, row in enumerate(live)}
        live = [live[place] for place in parts.live]
        if not live:
            break
    chunk = parts.chunk()
    assert chunk.lengths_R.tolist() == [len(row) for row in tokens]
    assert chunk.discarded_tokens == len(parts.parts)
    assert (~chunk.stopped_R).nonzero().flatten().tolist() == live
    terms = (chunk.logprobs_RL, chunk.log_ratios_RL, chunk.kl_RL)
    assert all(term is not None and term.shape == (rows, parts.length) for term in terms)
    assert chunk.alternatives is not None
    for row, count in enumerate(chunk.lengths_R.tolist()):
        assert chunk.tokens_RL[row, :count].tolist() == tokens[row]
        assert chunk.hidden[3][row, :count].tolist() == states[row]
        assert chunk.alternatives[row][:count] == [[(token, 0.0)] for token in tokens[row]]


def test_parts_are_copied_once_when_they_are_joined() -> None:
    generator, parts = torch.Generator().manual_seed(0), ChunkParts()
    added = [random_part(2, 4, generator) for _ in range(3)]
    for part in added:
        part.stopped_R[:] = False
        parts.add(part)
    assert all(mine is part for mine, part in zip(parts.parts, added, strict=True))


def test_a_single_part_is_the_chunk() -> None:
    part, parts = random_part(3, 2, torch.Generator().manual_seed(1)), ChunkParts()
    parts.add(part)
    assert parts.chunk() is part
