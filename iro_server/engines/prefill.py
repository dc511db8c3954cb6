"""Prompts: read in parts, stored once, shared by the sessions that open equal ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from iro_server.engines.attention import Softmax, attend_prompt
from iro_server.engines.cache import CacheSpec

PromptKey = tuple[str | None, tuple[int, ...]]  # salt, token ids


class Prompt:
    """``segment.length`` of its ``count`` tokens are read. ``states`` [1, D], once all are: the final hidden state at
    the last one. ``num_users``: sessions that share it."""

    def __init__(self, key: PromptKey, spec: CacheSpec) -> None:
        self.key, self.count = key, len(key[1])
        self.token_ids = torch.tensor(key[1], device=spec.device)
        self.segment = spec.allocate(1, self.count)
        self.states: torch.Tensor | None = None
        self.num_users = 0

    @property
    def remaining(self) -> int:
        """Tokens that are still to be read."""
        return self.count - self.segment.length


class PromptPart:
    """The next ``count`` tokens of a prompt, read in one step."""

    def __init__(self, prompt: Prompt, count: int) -> None:
        self.prompt, self.count = prompt, count
        self.start = prompt.segment.length
        self.stop = self.start + count
        self.layers: tuple[int, ...] = ()

    @property
    def token_ids(self) -> torch.Tensor:
        return self.prompt.token_ids[self.start : self.stop]

    @property
    def positions(self) -> torch.Tensor:
        return torch.arange(self.start, self.stop, device=self.prompt.token_ids.device)

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, softmax: Softmax) -> torch.Tensor:
        keys, values = self.prompt.segment.keys[layer, 0], self.prompt.segment.values[layer, 0]
        keys[:, self.start : self.stop], values[:, self.start : self.stop] = k, v
        if self.start == 0:
            return attend_prompt(q, k, v, softmax)
        return attend_prompt(q, keys[:, : self.stop], values[:, : self.stop], softmax)

    def finish(self, states: torch.Tensor, hidden: dict[int, torch.Tensor]) -> None:
        """The model has read this part: ``states`` [count, D] final; no layer is asked for, so ``hidden`` is empty."""
        self.prompt.segment.length = self.stop
        if not self.prompt.remaining:
            self.prompt.states = states[-1:].clone()


def prompt_key(prompt_ids: Sequence[int], salt: str | None) -> PromptKey:
    """Equal for prompts that sessions may share."""
    return salt, tuple(prompt_ids)
