"""A pruned model is the model without the neurons that score least, and a model of its own."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.families import save_tokenizer
from benchmarks.pruning import magnitudes
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.prepare import MANIFEST, ModelError, model_hash, prepare_model
from iro_server.engines.prune import cut, prune_model, writing

TEXTS = ["Paris is the capital of France.", "The film was long."]


def small(mlp_bias: bool = False) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, mlp_bias=mlp_bias, **sizes)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return model


def logits(model: LlamaForCausalLM) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(20)[None]).logits


@pytest.mark.parametrize("mlp_bias", [False, True])
def test_it_computes_what_the_model_does_with_the_other_neurons_at_zero(mlp_bias: bool, tmp_path: Path) -> None:
    pruned, silenced = small(mlp_bias), small(mlp_bias)
    scores = magnitudes(silenced)
    for layer, score in zip(silenced.model.layers, scores, strict=True):
        layer.mlp.down_proj.weight.data[:, score.argsort()[:10]] = 0
    cut(pruned, 0.75, scores)
    assert pruned.model.layers[0].mlp.gate_proj.weight.shape == (30, 32)
    torch.testing.assert_close(logits(pruned), logits(silenced))
    assert (logits(pruned) - logits(small(mlp_bias))).abs().max() > 1e-3
    pruned.save_pretrained(tmp_path)
    torch.testing.assert_close(logits(LlamaForCausalLM.from_pretrained(tmp_path)), logits(pruned))


def test_a_pruned_model_has_the_data_type_of_the_whole_one(tmp_path: Path) -> None:
    source = tmp_path / "source"
    small().to(torch.bfloat16).save_pretrained(source)
    save_tokenizer(source)
    out = prune_model(source, tmp_path / "pruned", 0.5, TEXTS)
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    assert (out / "model.safetensors").stat().st_size < (source / "model.safetensors").stat().st_size
    assert (out / "model.safetensors").stat().st_mode == (out / "config.json").stat().st_mode  # of another user too
    with pytest.raises(ModelError, match="holds org/smol, not org/large"):
        (out / MANIFEST).write_text(json.dumps(json.loads((out / MANIFEST).read_text()) | {"name": "org/smol"}))
        prepare_model("org/large", out)


def test_neurons_that_write_nothing_on_the_texts_go_first() -> None:
    model = small()
    for layer in model.model.layers:
        layer.mlp.up_proj.weight.data[::4] = 0
    whole = logits(model)
    scores = writing(model, lambda text: {"input_ids": [int(each) for each in text.split()]}, ["1 2 3", "", "4 5"])
    assert [int((score == 0).sum()) for score in scores] == [10, 10]
    cut(model, 0.75, scores)
    torch.testing.assert_close(logits(model), whole)


@pytest.mark.slow(10)
def test_an_engine_serves_it_under_a_hash_of_its_own(tmp_path: Path) -> None:
    source = prepare_model()
    out = prune_model(source, tmp_path / "pruned", 0.9, TEXTS)
    assert AutoModelForCausalLM.from_pretrained(out).config.intermediate_size == 1382  # of 1536
    with EmbeddedEngine(out) as engine:
        assert engine.info.model_hash == model_hash(out) != model_hash(source)
        prompt = engine.tokenizer("The capital of France is")["input_ids"]
        found = asyncio.run(guided_search(engine, prompt, SearchParams(), Sampling(temperature=0, seed=0), 1))
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(out)(torch.tensor([prompt])).logits[0, -1].argmax()
    assert found.finals[0].tokens == [int(expected)]
    with pytest.raises(ModelError, match="exists: choose another"):
        prune_model(source, out, 0.9, TEXTS)


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(keep: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is a share of the neurons"):
        prune_model(prepare_model(), tmp_path / "pruned", keep, TEXTS)
    assert not list(tmp_path.iterdir())


def test_texts_that_say_nothing_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no texts"):
        prune_model(prepare_model(), tmp_path / "pruned", 0.9, ["", " "])
