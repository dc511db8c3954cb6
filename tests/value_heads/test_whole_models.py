"""A model with weights that nobody wrote is refused, whoever loads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
)

from benchmarks.families import save_tokenizer
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.prune import prune_model
from value_heads.whole_models import load_whole_model

SIZES = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}


def written(kind: type[PreTrainedModel], folder: Path, tied: bool = False) -> Path:
    kind(LlamaConfig(vocab_size=64, num_labels=1, tie_word_embeddings=tied, **SIZES)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [False, True])
def test_a_language_model_is_whole_also_where_its_head_is_its_embedding(tied: bool, tmp_path: Path) -> None:
    directory = written(LlamaForCausalLM, tmp_path, tied)
    model = load_whole_model(AutoModelForCausalLM, directory)
    assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    FrozenModel(directory, "cpu")


def test_a_classifier_is_no_frozen_model(tmp_path: Path) -> None:
    directory = written(LlamaForSequenceClassification, tmp_path / "classifier")
    save_tokenizer(directory)
    lacking = r"classifier lacks weights of a LlamaForCausalLM: lm_head\.weight$"
    with pytest.raises(ValueError, match=lacking):
        FrozenModel(directory, "cpu")
    with pytest.raises(ValueError, match=lacking):
        prune_model(directory, tmp_path / "pruned", 0.5, ["Paris"])
    assert not (tmp_path / "pruned").exists()


def test_weights_that_nobody_computes_with_may_be_missing(tmp_path: Path) -> None:
    directory = written(LlamaForCausalLM, tmp_path)
    with pytest.raises(ValueError, match=r"score\.weight"):
        load_whole_model(AutoModelForSequenceClassification, directory)
    load_whole_model(AutoModelForSequenceClassification, directory, ["score."])
