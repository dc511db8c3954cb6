"""Windows and soft caps against the plain formula, query by query."""

from __future__ import annotations

import itertools

import pytest
import torch

from iro_server.engines.attention import Segment, Softmax, attend_cache, attend_prompt, attend_segments

HEADS, KV_HEADS, SIZE, POSITIONS = 4, 2, 8, 11
SOFTMAXES = [
    Softmax(0.3, window, softcap) for window, softcap in itertools.product((None, 1, 3, 8, 11, 100), (None, 1.5))
]


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: int, softmax: Softmax) -> torch.Tensor:
    """The definition: q [heads, size] at ``position``, k and v [kv heads, P, size]. Returns [heads, size]."""
    start = 0 if softmax.window is None else max(0, position - softmax.window + 1)
    k, v = (x[:, start : position + 1].repeat_interleave(HEADS // KV_HEADS, dim=0) for x in (k, v))
    scores = (k @ q[..., None])[..., 0] * softmax.scaling
    if softmax.softcap is not None:
        scores = softmax.softcap * torch.tanh(scores / softmax.softcap)
    return (torch.softmax(scores, dim=-1)[:, None] @ v)[:, 0]


@pytest.mark.parametrize("softmax", SOFTMAXES, ids=str)
@pytest.mark.parametrize("count", [1, 4, POSITIONS])
def test_a_prompt_and_its_later_part(softmax: Softmax, count: int) -> None:
    torch.manual_seed(0)
    q = torch.randn(HEADS, POSITIONS, SIZE)
    k, v = torch.randn(2, KV_HEADS, POSITIONS, SIZE)
    expected = torch.stack([attention(q[:, p], k, v, p, softmax) for p in range(POSITIONS)])
    part = attend_prompt(q[:, POSITIONS - count :], k, v, softmax)
    torch.testing.assert_close(part, expected[POSITIONS - count :], atol=1e-5, rtol=0)


@pytest.mark.parametrize("softmax", SOFTMAXES, ids=str)
def test_rows_over_shared_segments_and_a_lone_row(softmax: Softmax) -> None:
    """Four rows of two beams: the prompt of one owner, the past of two, the chunk of four."""
    torch.manual_seed(1)
    layers, lengths, owners = 2, (5, 2, 4), (1, 2, 4)
    segments = [
        Segment(
            torch.randn(layers, owner, KV_HEADS, length + 3, SIZE),  # room for more, as caches have
            torch.randn(layers, owner, KV_HEADS, length + 3, SIZE),
            length,
        )
        for owner, length in zip(owners, lengths, strict=True)
    ]
    q = torch.randn(4, HEADS, SIZE)
    out = attend_segments(q, segments, 1, softmax)
    for row in range(4):
        k, v = (
            torch.cat([getattr(s, kind)[1, row * s.keys.shape[1] // 4, :, : s.length] for s in segments], dim=1)
            for kind in ("keys", "values")
        )
        expected = attention(q[row], k, v, POSITIONS - 1, softmax)
        torch.testing.assert_close(out[row], expected, atol=1e-5, rtol=0)
        alone = attend_cache(q[row][:, None], Segment(k[None, None], v[None, None], POSITIONS), 0, softmax)
        torch.testing.assert_close(alone[0], expected, atol=1e-5, rtol=0)
