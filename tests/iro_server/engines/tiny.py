"""Random Llamas with the default model's tokenizer, for tests of equations that hold for any weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from iro_server.engines.prepare import prepare_model

VOCABULARY = 64
RANGE = {"initializer_range": 0.3}


def save_tiny_model(directory: Path, max_length: int = 2048) -> Path:
    """A model of two layers whose token ids are below ``VOCABULARY``; it reads two thousand tokens in milliseconds."""
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": max_length}
    return _save(directory, LlamaConfig(vocab_size=VOCABULARY, eos_token_id=None, **RANGE, **sizes, **heads))


def save_small_model(directory: Path) -> Path:
    """A model of four layers with all of the tokenizer's vocabulary."""
    default = AutoConfig.from_pretrained(prepare_model())
    sizes = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 2048}
    ids = {name: getattr(default, name) for name in ("bos_token_id", "eos_token_id", "vocab_size")}
    return _save(directory, LlamaConfig(tie_word_embeddings=True, **ids, **RANGE, **sizes, **heads))


def _save(directory: Path, config: LlamaConfig) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(directory)
    source = prepare_model()
    for path in (*source.glob("*token*"), *source.glob("chat_template*")):
        shutil.copy(path, directory)
    return directory


def random_prompt(length: int, seed: int = 0) -> list[int]:
    return torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
