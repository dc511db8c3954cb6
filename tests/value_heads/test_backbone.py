"""Value functions with a backbone of their own: cached scoring equals reading everything again, and training learns."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from value_heads import BundleMismatch, Example, LoraBackbone, LoraValues, fit_lora, load_bundle, save_bundle

VOCABULARY = 50


def write_model(directory, seed: int):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    LlamaModel(config).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"), seed=0)


def randomise(backbone: LoraBackbone, iteration: int) -> None:
    """Adapters start as the identity and heads at zero: give both weights that matter."""
    generator = torch.Generator().manual_seed(iteration)
    state = backbone.iteration_state(iteration)
    backbone.load_iteration(iteration, {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in state.items()})


@pytest.fixture(scope="module")
def values(model_dir):
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4)
    for _ in range(3):
        randomise(backbone, backbone.add_iteration())
    return LoraValues(backbone, [1.0, 2.0, 2.5])


def full(values: LoraValues, ids: list[int]) -> float:
    """Sum V/beta at the last of ``ids``, everything read at once."""

    @torch.no_grad()
    def read() -> float:
        tokens = torch.tensor([ids])
        return sum(float(values.backbone.values(t, tokens)[0, -1]) / beta for t, beta in enumerate(values.betas))

    return values.backbone.worker.submit(read).result()


async def search(values: LoraValues, seed: int, prompt: list[int]) -> None:
    """Scores of three rounds with dropped, repeated and stopped rows, each against full reading."""
    generator = torch.Generator().manual_seed(seed)
    state = values.start(prompt)
    texts = [prompt]
    for parents, lengths in [
        ([0], [4, 4, 1, 4]),
        ([3, 0, 0], [4, 3, 4, 4, 2, 4, 4, 4, 4, 4, 4, 1]),
        ([2, 8], [2, 1] * 4),
    ]:
        tokens = torch.randint(VOCABULARY, (len(lengths), max(lengths)), generator=generator)
        for row, length in zip(tokens, lengths, strict=True):
            row[length:] = -1
        got = await state.score(parents, 4, SimpleNamespace(tokens_RL=tokens, lengths_R=torch.tensor(lengths)))
        texts = [texts[parent] for parent in parents for _ in range(4)]
        texts = [text + row[:n].tolist() for text, row, n in zip(texts, tokens, lengths, strict=True)]
        torch.testing.assert_close(got, torch.tensor([full(values, text) for text in texts]), atol=1e-4, rtol=1e-4)
        assert got.std() > 1e-2


async def test_cached_scores_equal_full_recomputation(values):
    await search(values, 0, [5, 6, 7])


async def test_searches_side_by_side_do_not_mix(values):
    await asyncio.gather(*(search(values, seed, list(range(1, 3 + seed))) for seed in range(4)))


async def test_only_new_tokens_are_read_once_an_adapter(values):
    read = []
    hook = values.backbone.model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    state = values.start([1] * 20)
    for parents, rows in (([0], 4), ([1, 2], 8)):
        chunk = SimpleNamespace(tokens_RL=torch.ones(rows, 6, dtype=torch.long), lengths_R=torch.full((rows,), 6))
        await state.score(parents, 4, chunk)
    hook.remove()
    assert read == [(1, 20)] * 3 + [(4, 6)] * 3 + [(8, 6)] * 3


def examples(prompts: range) -> list[Example]:
    """The reward is whether token 3 outnumbers token 4; prompts say nothing."""
    generator = np.random.default_rng(prompts.start)
    made = []
    for prompt in prompts:
        for _ in range(4):
            completion = generator.choice([3, 4, 5], size=generator.integers(4, 9)).tolist()
            made.append(Example([1, 10 + prompt % 30], completion, completion.count(3) - completion.count(4), prompt))
    return made


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
    del backbone.__dict__["backbone_hash"]
    assert backbone.backbone_hash == frozen == LoraBackbone(model_dir, num_layers=2).backbone_hash


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
    kept = []
    for example in heldout:
        ids = torch.tensor([[*example.prompt_ids, *example.completion_ids]])
        with torch.no_grad():
            kept += (backbone.values(0, ids)[0, len(example.prompt_ids) :] - example.reward).square().tolist()
    assert sum(kept) / len(kept) == pytest.approx(min(scores.values()), rel=1e-3)


async def test_a_bundle_brings_adapters_back_to_their_backbone_only(values, model_dir, tmp_path):
    hashes = {"model_hash": "a", "template_hash": "b"}
    save_bundle(tmp_path, values, **hashes)
    loaded = load_bundle(tmp_path, **hashes, backbone_dir=model_dir)
    ids = [4, 8, 15, 16, 23, 42]
    assert full(loaded, ids) == full(values, ids)
    assert loaded.betas == values.betas and loaded.layers == ()
    with pytest.raises(ValueError, match="backbone_dir"):
        load_bundle(tmp_path, **hashes)
    other = write_model(tmp_path / "other", seed=1)
    with pytest.raises(BundleMismatch, match="value backbone"):
        load_bundle(tmp_path, **hashes, backbone_dir=other)


def test_betas_name_iterations_that_exist(values):
    assert values.with_betas([3, 3, 3]).betas == (3, 3, 3)
    for betas in ([], [1.0] * 4, [1.0, -1.0]):
        with pytest.raises(ValueError, match=r"beta|value function"):
            LoraValues(values.backbone, betas)
