"""Numbers of the output head's state as logits of reserved tokens: exact, and without a trace in other tokens."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.value_heads.test_tilt import VOCABULARY, WIDTH, head, random_tilt
from value_heads.reserved_tokens import ReservedTokens, with_reserved
from value_heads.tilt_export import HeadAdapter, head_adapter

RESERVED = ReservedTokens(VOCABULARY - 1, (VOCABULARY - 2, VOCABULARY - 3), 0.7)


def tensors(seed: int) -> tuple[torch.Tensor, torch.Tensor, HeadAdapter]:
    """States, unit rows, and the adapter of a tilt of rank 3."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(5, WIDTH, generator=generator)
    rows = torch.nn.functional.normalize(torch.randn(2, WIDTH, generator=generator), dim=1)
    return states, rows, head_adapter(random_tilt(seed, 3), head())


@given(st.integers(0, 999))
def test_log_probabilities_of_reserved_tokens_are_numbers_of_the_state(seed: int) -> None:
    states, rows, tilt = tensors(seed)
    adapter = with_reserved(tilt, RESERVED, rows, head())
    assert len(adapter.lora_A) == len(tilt.lora_A) + len(rows)
    logprobs = (states @ head().T + adapter.additions(states)).log_softmax(-1)
    numbers = [RESERVED.numbers(position[list(RESERVED.all)].tolist()) for position in logprobs]
    torch.testing.assert_close(torch.tensor(numbers), states @ rows.T, atol=1e-4, rtol=1e-4)


@given(st.integers(0, 999))
def test_other_tokens_are_as_likely_as_without_reserved_ones(seed: int) -> None:
    states, rows, tilt = tensors(seed)
    base = states @ head().T
    logits = base + with_reserved(tilt, RESERVED, rows, head()).additions(states)
    barred = (base + tilt.additions(states)).index_fill(1, torch.tensor(RESERVED.all), -torch.inf)
    for reported, expected in zip(logits.log_softmax(-1), barred.log_softmax(-1), strict=True):
        of_reserved = reported[list(RESERVED.all)].tolist()
        others = [RESERVED.without_reserved(float(reported[token]), of_reserved) for token in range(VOCABULARY - 3)]
        torch.testing.assert_close(torch.tensor(others), expected[: VOCABULARY - 3], atol=1e-4, rtol=1e-4)
