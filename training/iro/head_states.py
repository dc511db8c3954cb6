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


def head_states(frozen: FrozenModel, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Tensor]:
    """Of each completion, [T, D] float32 on the CPU: what the output head reads before each of its tokens."""
    return [drawn_from_TD for drawn_from_TD, _ in states_along(frozen, prompt_ids, completions)]


@torch.no_grad()
def states_along(
    frozen: FrozenModel, prompt_ids: Sequence[int], completions: Sequence[Sequence[int]], layer: int | None = None
) -> list[tuple[Tensor, Tensor | None]]:
    """Of each completion its ``head_states``, and the states [T, D] of ``layer`` at its tokens."""
    device, read = frozen.head_weight.device, 1 if layer is None else 0  # the last token's state draws none
    with frozen.reference_forward() as model:
        decoder = find_decoder(model)
        prompt = decoder(input_ids=torch.tensor([list(prompt_ids)], device=device), use_cache=True)
        first_1D = prompt.last_hidden_state[0, -1:].float().cpu()
        rows = [torch.tensor(tokens[: len(tokens) - read], dtype=torch.int64) for tokens in completions]
        parts = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        later = [each for part in parts for each in _later_states(decoder, prompt.past_key_values, part, device, layer)]
    return [
        (torch.cat([first_1D, states_TD])[: len(tokens)], layer_TD)
        for tokens, (states_TD, layer_TD) in zip(completions, later, strict=True)
    ]


def _later_states(
    decoder: Any, cache: Any, rows: Sequence[Tensor], device: torch.device, layer: int | None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Of each row of tokens, the final states at them and those of ``layer``. ``cache``: of the prompt before them."""
    ids_RT = pad_sequence(list(rows), batch_first=True).to(device)
    if not ids_RT.shape[1]:
        empty_RTD = ids_RT.new_zeros(len(rows), 0, decoder.config.hidden_size, dtype=torch.float32)
        yield from ((empty_TD, None) for empty_TD in empty_RTD)
        return
    cache = copy.deepcopy(cache)
    read = cache.get_seq_length()
    cache.batch_repeat_interleave(len(rows))
    mask_RT = pad_sequence([torch.ones(read + len(row), dtype=torch.int64) for row in rows], batch_first=True)
    output = decoder(
        input_ids=ids_RT,
        attention_mask=mask_RT.to(device),
        past_key_values=cache,
        output_hidden_states=layer is not None,
    )
    of_layer = None if layer is None else output.hidden_states[layer].float().cpu()
    for number, row in enumerate(rows):
        states_TD = output.last_hidden_state[number, : len(row)].float().cpu()
        yield states_TD, None if of_layer is None else of_layer[number, : len(row)]
