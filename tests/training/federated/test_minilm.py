"""MiniLM cut in two, and LoRA adapters of its last layers that clients train."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from training.federated import minilm
from training.federated.clients import LocalSGD
from training.federated.stack import exchanged_tensors
from training.workers import one_thread
from value_heads.shared import load_frozen_model

TEXTS = ["a masterpiece .", "dull , and far too long", "the film has its moments ; most of them are of other films"]
TOKENS = 12  # cuts the last


@pytest.fixture(autouse=True)
def single_thread() -> Iterator[None]:
    with one_thread():
        yield


def perturbed(model: nn.Module) -> nn.Module:
    """With adapters that are not at their start."""
    torch.manual_seed(0)
    for parameter in exchanged_tensors(model).values():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


def means_of_whole_model() -> Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm.directory())
    rows = []
    for text in TEXTS:  # one by one, without padding
        encoded = tokenizer(text, truncation=True, max_length=TOKENS, return_tensors="pt")
        with torch.no_grad():
            rows.append(load_frozen_model(minilm.directory(), None)(**encoded).last_hidden_state[0].mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize("layers", [1, 2, minilm.LAYERS])
@torch.no_grad()
def test_lower_and_last_layers_with_lora_at_its_start_are_minilm(layers: int) -> None:
    model, means = minilm.classifier(layers, rank=4), means_of_whole_model()
    exact = minilm.lower_outputs(TEXTS, layers, TOKENS, torch.float32)
    torch.testing.assert_close(model[0](exact), means, rtol=1e-4, atol=1e-4)
    cached = minilm.lower_outputs(TEXTS, layers, TOKENS)
    assert cached.dtype == torch.float16 and cached.shape == (3, TOKENS, 384)
    torch.testing.assert_close(model[0](cached), means, rtol=0, atol=5e-3)
    assert (perturbed(model)[0](exact) - means).abs().max() > 0.01


def test_clients_exchange_the_adapters_and_the_head() -> None:
    exchanged = exchanged_tensors(minilm.classifier(2, rank=4))
    adapted = {name.split(".lora_")[0] for name in exchanged if "lora_" in name}
    assert adapted == {f"0.layers.{i}.attention.self.{part}" for i in range(2) for part in ("query", "value")}
    assert set(exchanged) - {name for name in exchanged if "lora_" in name} == {"1.weight", "1.bias"}
    assert sum(tensor.numel() for tensor in exchanged.values()) == 2 * 2 * (4 * 384 * 2) + 2 * 384 + 2


def test_clients_trained_in_one_batch_learn_what_each_learns_alone() -> None:
    inputs, labels = minilm.lower_outputs(TEXTS, 1, TOKENS), torch.tensor([1, 0, 0])
    model = perturbed(minilm.classifier(1, rank=4))
    parts = [np.array([0, 1]), np.array([2]), np.array([1, 2])]
    clients = LocalSGD(model, inputs, labels, parts, steps=3, batch=2, lr=0.1)
    together = clients(clients.start, [0, 1, 2], [5, 6, 7])
    alone = clients.one_by_one(clients.start, [0, 1, 2], [5, 6, 7], minilm.classifier(1, rank=4))
    for (ours, _), (plain, _) in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
        assert plain[: -(2 * 384 + 2)].abs().max() > 1e-4  # the adapters train, not the head alone
