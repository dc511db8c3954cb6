"""Training adapters learns, and reads a prompt once."""

from __future__ import annotations

import pytest
import torch

from tests.value_heads.lora import bundle, examples, full, shapes_read, write_model
from value_heads import LoraBackbone, fit_lora, shared
from value_heads.shared import weights_hash


def test_training_learns_within_prompts_and_leaves_earlier_iterations_alone(model_dir):
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4)
    settings = {"learning_rate": 1e-2, "batch_size": 16, "epochs": 6}
    scores = fit_lora(backbone, examples(range(32)), examples(range(100, 116)), **settings)
    assert max(scores.values()) > 0.6
    first = backbone.iteration_state(0)
    frozen = backbone.backbone_hash
    fit_lora(backbone, examples(range(32)), examples(range(100, 116)), **settings | {"epochs": 1}, loss="mse", seed=1)
    assert backbone.iterations == 2
    assert all(torch.equal(weight, first[name]) for name, weight in backbone.iteration_state(0).items())
    assert any(not torch.equal(weight, first[name]) for name, weight in backbone.iteration_state(1).items())
    assert weights_hash(backbone.model) == frozen


def test_a_lora_fit_can_be_stopped_at_a_batch(model_dir):
    batches = iter(range(3))
    with pytest.raises(StopIteration):
        backbone = LoraBackbone(model_dir, num_layers=1, rank=2)
        fit_lora(backbone, examples(range(32)), examples(range(4)), on_batch=lambda: next(batches))
    assert not list(batches)


def test_the_best_epoch_is_kept(model_dir):
    backbone = LoraBackbone(model_dir, num_layers=1, rank=2)
    train, heldout = examples(range(8)), examples(range(100, 108))
    scores = fit_lora(backbone, train, heldout, learning_rate=3e-2, epochs=8, patience=2, select="loss")
    squared_errors = []
    for example in heldout:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        with torch.no_grad():
            squared_errors += (backbone.values(0, ids)[0, len(example.prompt_ids) :] - example.reward).square().tolist()
    assert sum(squared_errors) / len(squared_errors) == pytest.approx(min(scores.values()), rel=1e-3)


def test_a_fit_reads_a_prompt_once_for_its_rollouts(tmp_path):
    backbone = LoraBackbone(write_model(tmp_path, seed=3), num_layers=1, rank=2)
    train, heldout = (
        [each._replace(prompt_ids=[1] * 30 + [2 + each.group % 30]) for each in examples(prompts)]
        for prompts in (range(8), range(100, 102))
    )
    read: list[tuple[int, ...]] = []
    hook = shapes_read(backbone, read)
    fit_lora(backbone, train, heldout, epochs=1, batch_size=16)
    hook.remove()
    assert [rows for rows, length in read if length == 31] == [4, 4, 2]  # of 16, 16 and, held out, 8 rollouts
    assert [rows for rows, length in read if length < 9] == [16, 16, 8]


def test_a_fit_is_the_same_beside_searches_of_other_bundles(tmp_path, monkeypatch):
    monkeypatch.setattr(shared, "MOST_ADAPTERS", 1)
    model_dir = write_model(tmp_path, seed=3)
    others = [bundle(model_dir, number) for number in range(2)]

    def fitted(on_batch=lambda: None) -> dict[str, torch.Tensor]:
        backbone = LoraBackbone(model_dir, num_layers=2, rank=4)
        fit_lora(backbone, examples(range(8)), examples(range(100, 104)), epochs=2, on_batch=on_batch)
        return backbone.iteration_state(0)

    score_singly, beside = fitted(), fitted(lambda: [full(other, [1, 2, 3]) for other in others])
    assert all(torch.equal(weight, beside[name]) for name, weight in score_singly.items())
