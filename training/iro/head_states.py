"""The states that tokens of rollouts were drawn from, by one pass of the frozen model, where no engine told them.

Axes in tensor names: R completions of a prompt, T tokens, D width.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iro_server.engines.frozen_model import FrozenModel, find_decoder

ROWS = 16  # completions that are read at once


@torch.no_grad()
def head_states(frozen: FrozenModel, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each completion, [T, D] float32 on the CPU: what the output head reads before each of its tokens."""
    device = frozen.head_weight.device
    with frozen.reference_forward() as model:
        decoder = find_decoder(model)
        prompt = decoder(input_ids=torch.tensor([list(prompt_ids)], device=device), use_cache=True)
        first_1D = prompt.last_hidden_state[0, -1:].float().cpu()
        parts = [completions[start : start + ROWS] for start in range(0, len(completions), ROWS)]
        later = [states for part in parts for states in _later_states(decoder, prompt.past_key_values, part, device)]
    return [
        torch.cat([first_1D, states_TD])[: len(tokens)] for tokens, states_TD in zip(completions, later, strict=True)
    ]


def _later_states(
    decoder: Any, cache: Any, completions: Sequence[Sequence[int]], device: torch.device
) -> Iterator[Tensor]:
    """Of each completion, the states at its tokens but the last, [T - 1, D]. ``cache``: of the prompt that precedes."""
    rows = [torch.tensor(tokens[:-1], dtype=torch.int64) for tokens in completions]
    ids_RT = pad_sequence(rows, batch_first=True).to(device)
    if not ids_RT.shape[1]:
        yield from ids_RT.new_zeros(len(rows), 0, decoder.config.hidden_size, dtype=torch.float32)
        return
    cache = copy.deepcopy(cache)
    read = cache.get_seq_length()
    cache.batch_repeat_interleave(len(rows))
    mask_RT = pad_sequence([torch.ones(read + len(row), dtype=torch.int64) for row in rows], batch_first=True)
    states_RTD = decoder(input_ids=ids_RT, attention_mask=mask_RT.to(device), past_key_values=cache).last_hidden_state
    for row, states_TD in zip(rows, states_RTD.float().cpu(), strict=True):
        yield states_TD[: len(row)]
