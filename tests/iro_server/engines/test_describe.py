"""What is said of a model without loading it, also where text is a part of what it reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import CONFIG_MAPPING

from benchmarks.families import save_tokenizer
from benchmarks.family_configs import tiny_config
from iro_server.engines.describe import Description


@pytest.mark.parametrize(
    "family", ["gemma3", "gemma4", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "mistral3", "llama4", "llava", "llama"]
)
def test_a_models_text_part_is_described(family: str, tmp_path: Path) -> None:
    assert family in CONFIG_MAPPING
    config = tiny_config(family)
    config.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    info = Description.of_directory(tmp_path).info
    assert (info.num_layers, info.hidden_size, info.max_length) == (6, 64, 256)


def test_a_generation_config_without_end_token_leaves_the_models_own(tmp_path: Path) -> None:
    config = tiny_config("llama")
    config.eos_token_id = 7
    config.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "generation_config.json").write_text('{"temperature": 0.5}')
    assert Description.of_directory(tmp_path).info.eos_ids == (7,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": []}')
    assert Description.of_directory(tmp_path).info.eos_ids == (7,)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [3, 4]}')
    assert Description.of_directory(tmp_path).info.eos_ids == (3, 4)


def test_a_model_without_a_length_has_its_tokenizers(tmp_path: Path) -> None:
    tiny_config("mamba").save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert Description.of_directory(tmp_path).info.max_length > 10**6
