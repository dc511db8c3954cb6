"""Value functions by LoRA on a tiny Llama or Mistral, and what their scores have to be."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from transformers import AutoModel, LlamaConfig, MistralConfig

from value_heads import Example, LoraBackbone, LoraValues

VOCABULARY = 50


def write_model(directory, seed: int, sliding_window: int | None = None):
    torch.manual_seed(seed)
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = MistralConfig(**shape, sliding_window=sliding_window) if sliding_window else LlamaConfig(**shape)
    AutoModel.from_config(config).save_pretrained(directory)
    return directory


def randomise(backbone: LoraBackbone, iteration: int) -> None:
    """Adapters start as the identity and heads at zero: give both weights that matter."""
    generator = torch.Generator().manual_seed(iteration)
    state = backbone.iteration_state(iteration)
    backbone.load_iteration(iteration, {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in state.items()})


def full(values: LoraValues, ids: list[int]) -> float:
    """Sum V/beta at the last of ``ids``, everything read at once."""

    @torch.no_grad()
    def read() -> float:
        tokens = torch.tensor([ids])
        return sum(float(values.backbone.values(t, tokens)[0, -1]) / beta for t, beta in enumerate(values.betas))

    return values.backbone.worker.submit(read).result()


def random_chunk(generator: torch.Generator, rows: int, length: int, ragged: bool) -> SimpleNamespace:
    tokens = torch.randint(VOCABULARY, (rows, length), generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator) if ragged else torch.full((rows,), length)
    return SimpleNamespace(tokens_RL=tokens, lengths_R=lengths)


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


def examples(prompts: range) -> list[Example]:
    """The reward is whether token 3 outnumbers token 4; prompts say nothing."""
    generator = np.random.default_rng(prompts.start)
    rollouts = []
    for prompt in prompts:
        for _ in range(4):
            completion = generator.choice([3, 4, 5], size=generator.integers(4, 9)).tolist()
            rollouts.append(
                Example([1, 10 + prompt % 30], completion, completion.count(3) - completion.count(4), prompt)
            )
    return rollouts


def bundle(model_dir, number: int, **options) -> LoraValues:
    """Value functions of one iteration, each number's its own."""
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4, **options)
    backbone.add_iteration()
    generator = torch.Generator().manual_seed(100 + number)
    state = backbone.iteration_state(0)
    backbone.load_iteration(0, {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in state.items()})
    return LoraValues(backbone, [1.0])


def shapes_read(backbone: LoraBackbone, read: list[tuple[int, ...]]):
    """Notes the shape [rows, tokens] of each forward pass; remove it in the end."""
    return backbone.model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
