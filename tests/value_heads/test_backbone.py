"""Value functions with a backbone of their own: cached scoring equals reading everything again, and training learns."""

import asyncio
import gc
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from value_heads import BundleMismatch, Example, LoraBackbone, LoraValues, fit_lora, load_bundle, save_bundle, shared
from value_heads.scoring import CACHES
from value_heads.shared import free_memory, shared_models, weights_hash

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


@pytest.fixture(scope="module")
def exact(model_dir):
    """In float64, where what is computed alike differs by nothing that can be seen."""
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4, dtype=torch.float64)
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


def random_chunk(generator: torch.Generator, rows: int, length: int, ragged: bool) -> SimpleNamespace:
    tokens = torch.randint(VOCABULARY, (rows, length), generator=generator)
    lengths = torch.randint(1, length + 1, (rows,), generator=generator) if ragged else torch.full((rows,), length)
    return SimpleNamespace(tokens_RL=tokens, lengths_R=lengths)


async def scores(values: LoraValues, prompts: list[list[int]], ragged: bool = False) -> list[torch.Tensor]:
    """Three rounds of searches that all ask at the same moment; their rows may differ in length from the start."""
    states = [values.start(prompt) for prompt in prompts]
    generators = [torch.Generator().manual_seed(len(prompt)) for prompt in prompts]
    totals = []
    for parents in ([0], [1, 0], [5, 5]):
        chunks = [random_chunk(g, 4 * len(parents), 2 + i, ragged) for i, g in enumerate(generators)]
        requests = (state.score(parents, 4, chunk) for state, chunk in zip(states, chunks, strict=True))
        totals += await asyncio.gather(*requests)
    return totals


PROMPTS = [[1, 2, 3], [4] * 9, [7, 8] * 10]


@pytest.mark.parametrize("ragged", [False, True], ids=["of equal length", "of all lengths"])
async def test_scores_are_the_same_whatever_shares_their_forward_pass(exact, ragged):
    forwards = []
    hook = exact.backbone.model.register_forward_hook(lambda *_: forwards.append(1))
    exact.backbone.score_singly = True
    score_singly = await scores(exact, PROMPTS, ragged)
    alone_forwards = len(forwards)
    exact.backbone.score_singly = False
    held = threading.Event()
    concurrent = asyncio.create_task(scores(exact, PROMPTS, ragged))
    exact.backbone.worker.submit(held.wait)  # so that the first round's requests are all there
    await asyncio.sleep(0.05)
    held.set()
    for separate, batched in zip(score_singly, await concurrent, strict=True):
        torch.testing.assert_close(separate, batched, atol=1e-9, rtol=1e-9)
    hook.remove()
    assert alone_forwards == 3 * 3 * 4  # a prompt and three chunks of three searches, by three adapters
    assert len(forwards) - alone_forwards < alone_forwards * 0.7


async def test_rows_of_unequal_length_score_as_read_at_once(values):
    state = values.start([9, 8, 7])
    generator = torch.Generator().manual_seed(3)
    texts = [[9, 8, 7]]
    for parents in ([0], [2, 1], [0, 7]):
        chunk = random_chunk(generator, 4 * len(parents), 5, ragged=True)
        got = await state.score(parents, 4, chunk)
        texts = [texts[parent] for parent in parents for _ in range(4)]
        rows = zip(texts, chunk.tokens_RL.tolist(), chunk.lengths_R.tolist(), strict=True)
        texts = [text + row[:n] for text, row, n in rows]
        torch.testing.assert_close(got, torch.tensor([full(values, text) for text in texts]), atol=1e-4, rtol=1e-4)


async def test_a_search_whose_cache_was_given_up_reads_its_prefix_again(exact, monkeypatch):
    expected = await scores(exact, PROMPTS)
    monkeypatch.setattr(CACHES, "limit", 0)
    given_up = await scores(exact, PROMPTS)
    assert CACHES.bytes == 0
    for cached, recomputed in zip(expected, given_up, strict=True):
        torch.testing.assert_close(cached, recomputed, atol=1e-9, rtol=1e-9)


async def test_the_caches_that_are_given_up_are_the_least_recently_used(values, monkeypatch):
    states = [values.start(prompt) for prompt in PROMPTS]
    chunk = random_chunk(torch.Generator().manual_seed(0), 4, 3, ragged=False)
    for state in states:
        await state.score([0], 4, chunk)
    held = CACHES.bytes
    assert held > 0
    monkeypatch.setattr(CACHES, "limit", held)
    await states[0].score([1], 4, chunk)
    assert CACHES.take(states[1].search) is None
    assert CACHES.take(states[0].search) is not None and CACHES.take(states[2].search) is not None


async def test_a_search_that_is_gone_takes_its_cache_along(values):
    gc.collect()
    before = CACHES.bytes
    await search(values, 0, [5, 6, 7])
    gc.collect()
    assert CACHES.bytes == before


async def test_a_failing_request_fails_alone(values):
    broken = SimpleNamespace(tokens_RL=torch.full((4, 2), VOCABULARY + 5), lengths_R=torch.full((4,), 2))
    with pytest.raises(IndexError):
        await values.start([1]).score([0], 4, broken)
    await search(values, 0, [5, 6, 7])


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
    rollouts = []
    for prompt in prompts:
        for _ in range(4):
            completion = generator.choice([3, 4, 5], size=generator.integers(4, 9)).tolist()
            rollouts.append(
                Example([1, 10 + prompt % 30], completion, completion.count(3) - completion.count(4), prompt)
            )
    return rollouts


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


async def test_a_bundle_brings_adapters_back_to_their_backbone_only(values, model_dir, tmp_path):
    hashes = {"model_hash": "a", "template_hash": "b"}
    save_bundle(tmp_path, values, **hashes)
    loaded = load_bundle(tmp_path, **hashes, backbone_dir=model_dir)
    ids = [4, 8, 15, 16, 23, 42]
    assert full(loaded, ids) == full(values, ids)
    assert loaded.betas == values.betas and loaded.layers == ()
    with pytest.raises(ValueError, match="backbone_dir"):
        load_bundle(tmp_path, **hashes)
    other_model = write_model(tmp_path / "other", seed=1)
    with pytest.raises(BundleMismatch, match="value backbone"):
        load_bundle(tmp_path, **hashes, backbone_dir=other_model)


def bundle(model_dir, number: int, **options) -> LoraValues:
    """Value functions of one iteration, each number's its own."""
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4, **options)
    backbone.add_iteration()
    generator = torch.Generator().manual_seed(100 + number)
    state = backbone.iteration_state(0)
    backbone.load_iteration(0, {k: 0.3 * torch.randn(v.shape, generator=generator) for k, v in state.items()})
    return LoraValues(backbone, [1.0])


def models_alive() -> int:
    gc.collect()
    return sum(type(each) is LlamaModel for each in gc.get_objects())


def test_bundles_of_one_base_share_one_backbone(values, model_dir, tmp_path):
    hashes = {"model_hash": "a", "template_hash": "b"}
    for number in range(3):
        save_bundle(tmp_path / str(number), bundle(model_dir, number), **hashes)
    before = models_alive()
    loaded = [load_bundle(tmp_path / str(number), **hashes, backbone_dir=model_dir) for number in range(3)]
    assert models_alive() == before
    assert {id(each.backbone.model) for each in loaded} == {id(values.backbone.model)}
    ids = [4, 8, 15, 16, 23, 42]
    assert [full(each, ids) for each in loaded] == [full(bundle(model_dir, number), ids) for number in range(3)]
    assert len({full(each, ids) for each in loaded}) == 3


def test_the_backbone_goes_with_its_last_user(tmp_path):
    first, second = (bundle(write_model(tmp_path, seed=3), number) for number in range(2))
    model = weakref.ref(first.backbone.shared)
    del first
    gc.collect()
    assert model() in shared_models()
    free_memory()
    assert model().adapters == 1
    del second
    gc.collect()
    assert model() is None


async def test_the_adapters_that_are_set_aside_are_the_least_recently_used(tmp_path, monkeypatch):
    bundles = [bundle(write_model(tmp_path, seed=3), number) for number in range(4)]
    ids = [4, 8, 15, 16, 23, 42]
    expected = [full(each, ids) for each in bundles]
    monkeypatch.setattr(shared, "MOST_ADAPTERS", 2)
    for number in (0, 2, 1, 2):
        assert full(bundles[number], ids) == expected[number]
    assert bundles[0].backbone.shared.adapters == 2
    assert [each.backbone.adapters[0].state is None for each in bundles] == [False, True, True, False]
    for number, each in enumerate(bundles):  # cached keys and values of an adapter outlive its place on the model
        await search(each, number, [5, 6, 7])
    assert [full(each, ids) for each in bundles] == expected


async def test_searches_of_two_bundles_do_not_mix(values, model_dir):
    second_bundle = bundle(model_dir, 0)
    await asyncio.gather(*(search(each, 1, [1, 2, 3]) for each in (values, second_bundle, values, second_bundle)))


def test_loading_a_bundle_draws_no_random_numbers(model_dir):
    state = bundle(model_dir, 0).backbone.iteration_state(0)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    backbone = LoraBackbone(model_dir, num_layers=2, rank=4)
    backbone.add_iteration(state)
    full(LoraValues(backbone, [1.0]), [1, 2])
    assert torch.equal(torch.rand(3), expected)


def test_a_16_bit_backbone_keeps_adapters_in_32(values, model_dir):
    """As on a GPU; a bundle fitted on a CPU belongs to it as well."""
    half = bundle(model_dir, 0, dtype=torch.bfloat16)
    weights = {name: weight.dtype for name, weight in half.backbone.model.named_parameters()}
    assert {dtype for name, dtype in weights.items() if "lora_" in name} == {torch.float32}
    assert {dtype for name, dtype in weights.items() if "lora_" not in name} == {torch.bfloat16}
    assert half.backbone.backbone_hash == values.backbone.backbone_hash
    ids = [4, 8, 15, 16, 23, 42]
    full_precision = bundle(model_dir, 0)
    assert full(half, ids) == pytest.approx(full(full_precision, ids), rel=0.05)
    assert full(half, ids) != full(full_precision, ids)


ANSWERS = [([1, 2, 3], [4, 5]), ([9] * 7, [6, 7, 8, 9]), ([1, 2, 3], [7]), ([9] * 7, [1, 2])]


def whole_rows(backbone: LoraBackbone) -> list[torch.Tensor]:
    """Values of the responses, each read with its prompt in a row of its own."""
    return [backbone.values(1, torch.tensor([[*prompt, *answer]]))[0, len(prompt) :] for prompt, answer in ANSWERS]


def grouped_rows(backbone: LoraBackbone) -> list[torch.Tensor]:
    values_RT = backbone.response_values(1, [prompt for prompt, _ in ANSWERS], [answer for _, answer in ANSWERS])
    return [values_T[: len(answer)] for values_T, (_, answer) in zip(values_RT, ANSWERS, strict=True)]


def shapes_read(backbone: LoraBackbone, read: list[tuple[int, ...]]):
    """Notes the shape [rows, tokens] of each forward pass; remove it in the end."""
    return backbone.model.register_forward_hook(
        lambda module, args, kwargs, output: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )


def test_a_prompt_read_once_gives_the_values_of_whole_rows(values, exact):
    read: list[tuple[int, ...]] = []
    hook = shapes_read(values.backbone, read)
    grouped = grouped_rows(values.backbone)
    hook.remove()
    assert read == [(2, 7), (4, 4)]
    for grouped_values, expected in zip(grouped, whole_rows(values.backbone), strict=True):
        torch.testing.assert_close(grouped_values, expected, atol=1e-5, rtol=1e-5)
    for grouped_values, expected in zip(grouped_rows(exact.backbone), whole_rows(exact.backbone), strict=True):
        torch.testing.assert_close(grouped_values, expected, atol=1e-9, rtol=1e-9)


def test_a_prompt_read_once_gives_the_gradients_of_whole_rows(exact):
    gradients = []
    for rows in (grouped_rows, whole_rows):
        with exact.backbone.training(1) as parameters:
            torch.cat(rows(exact.backbone)).square().sum().backward()
            gradients.append([parameter.grad.clone() for parameter in parameters])
            for parameter in parameters:
                parameter.grad = None
    assert any(gradient.abs().max() > 1e-3 for gradient in gradients[0])
    for grouped, separate in zip(*gradients, strict=True):
        torch.testing.assert_close(grouped, separate, atol=1e-5, rtol=1e-5)


def test_a_fit_reads_a_prompt_once_for_its_rollouts(tmp_path):
    backbone = LoraBackbone(write_model(tmp_path, seed=3), num_layers=1, rank=2)
    train, heldout = (
        [each._replace(prompt_ids=[1] * 30 + [2 + each.prompt_index % 30]) for each in examples(prompts)]
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


def test_betas_name_iterations_that_exist(values):
    assert values.with_betas([3, 3, 3]).betas == (3, 3, 3)
    for betas in ([], [1.0] * 4, [1.0, -1.0]):
        with pytest.raises(ValueError, match=r"beta|value function"):
            LoraValues(values.backbone, betas)
