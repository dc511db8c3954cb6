"""The states that tokens of rollouts were drawn from, by one pass of the frozen model, where no engine told them.

Axes in tensor names: R completions of a prompt, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from iro_server.engines.frozen_model import FrozenModel, find_decoder

ROWS = 16  # completions that are read at once


@torch.no_grad()
def head_states(frozen: FrozenModel, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each completion, [T, D] float32 on the CPU: what the output head reads before each of its tokens."""
    states = []
    with frozen.reference_forward() as model:
        decoder = find_decoder(model)
        for start in range(0, len(completions), ROWS):
            part = completions[start : start + ROWS]
            rows = [torch.tensor([*prompt_ids, *tokens[:-1]]) for tokens in part]
            ids_RT = pad_sequence(rows, batch_first=True).to(frozen.head_weight.device)
            mask_RT = pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True).to(ids_RT.device)
            states_RTD = decoder(input_ids=ids_RT, attention_mask=mask_RT).last_hidden_state.float().cpu()
            first = len(prompt_ids) - 1
            states += [states_RTD[row, first : first + len(tokens)] for row, tokens in enumerate(part)]
    return states
