"""A random Llama of two layers that reads two thousand tokens in milliseconds."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iro_server.engines.prepare import prepare_model

VOCABULARY = 64


def save_tiny_model(directory: Path, max_length: int = 2048) -> Path:
    """A model directory with the default model's tokenizer; token ids are below ``VOCABULARY``."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": max_length}
    config = LlamaConfig(vocab_size=VOCABULARY, initializer_range=0.3, eos_token_id=None, **sizes, **heads)
    LlamaForCausalLM(config).save_pretrained(directory)
    for path in prepare_model().glob("*token*"):
        shutil.copy(path, directory)
    return directory


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
