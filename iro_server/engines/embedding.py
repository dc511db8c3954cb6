"""The one hidden state that is known without running the model: layer 0, each token's embedding."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from iro_server.engines.weights import read_tensor


class Embedding:
    """The table of ``model_dir``, read the first time that somebody asks, from the one shard that it is in."""

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
    def _module(self) -> nn.Embedding:
        return read_embedding(self.model_dir)


def read_embedding(model_dir: Path) -> nn.Embedding:
    """The model's own embedding layer, its scale included (Gemma's), in float32. ValueError where it has none."""
    with torch.device("meta"):
        model: Any = AutoModel.from_config(AutoConfig.from_pretrained(model_dir), dtype=torch.float32)
    module = model.get_input_embeddings()
    name = next(name for name, candidate in model.named_modules() if candidate is module)
    weight = read_tensor(model_dir, f"{name.rpartition('.')[2]}.weight").float()
    # What the layer holds besides its weight was made without values, above: the model's own initialisation gives them.
    module.weight, module.padding_idx = nn.Parameter(torch.empty(1, module.embedding_dim)), None
    module.to_empty(device="cpu")
    model._init_weights(module)
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module
