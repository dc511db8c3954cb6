"""The one hidden state that is known without running the model: layer 0, each token's embedding."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from value_heads.shared import frozen


class Embedding:
    """The table of ``model_dir``, read the first time that somebody asks."""

    def __init__(self, model_dir: Path) -> None:
        self.model_dir = model_dir
        self._lock = threading.Lock()

    def __call__(self, tokens_RL: Tensor) -> Tensor:
        """[R, L, D] float32: what an engine with hidden states reports as layer 0. Ids past the table have none: 0."""
        with self._lock:
            module = self._module
        known_RL = tokens_RL < module.num_embeddings
        return module(tokens_RL.where(known_RL, 0)) * known_RL[..., None]

    @cached_property
    def _module(self) -> torch.nn.Embedding:
        module = frozen(self.model_dir, 0).get_input_embeddings()
        assert isinstance(module, torch.nn.Embedding)
        return module
