"""Long prompts: read in parts beside live rows, stored once for equal sessions, not copied by the chunks after them."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.families import reference_logprobs, save_model
from iro_server.alignment.definition import ServedDefaults
from iro_server.api.generation import Generation, generate
from iro_server.api.registry import ServedModel
from iro_server.api.text import Detokenizer
from iro_server.decoding.base import SearchParams
from iro_server.engines.base import Chunk, Sampling
from iro_server.engines.embedded import EmbeddedEngine
from tests.iro_server.engines.tiny import random_prompt, save_tiny_model

LAYERS = (0, 1, 2)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(model_dir: Path) -> Iterator[EmbeddedEngine]:
    with EmbeddedEngine(model_dir) as engine:
        yield engine


@pytest.fixture
def step_tokens(engine: EmbeddedEngine) -> list[int]:
    """Tokens that each forward pass reads, rows and prompts together."""
    counts: list[int] = []
    engine.frozen.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: counts.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return counts


async def two_chunks(engine: EmbeddedEngine, prompt: list[int], seed: int, salt: str | None = None) -> list[Chunk]:
    session = await engine.open(prompt, Sampling(seed=seed, salt=salt), LAYERS)
    chunks = [await session.extend([0], 3, 4), await session.extend([1, 2], 2, 5)]
    session.close()
    return chunks


def assert_equal_to_full_pass(model_dir: Path, prompt: list[int], chunks: list[Chunk]) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    first, second = chunks
    heads = [first.tokens_RL[parent].tolist() for parent in (1, 1, 2, 2)]
    rows = [prompt + head + tokens for head, tokens in zip(heads, second.tokens_RL.tolist(), strict=True)]
    with torch.no_grad():
        full = reference(torch.tensor(rows), output_hidden_states=True)
    logprobs = torch.log_softmax(full.logits[:, -6:-1], dim=-1).gather(2, second.tokens_RL[..., None])[..., 0]
    torch.testing.assert_close(second.logprobs_RL, logprobs, atol=1e-4, rtol=0)
    for layer in (0, 1):  # transformers' last hidden state has passed the norm, the engine's has not
        torch.testing.assert_close(second.hidden[layer], full.hidden_states[layer][:, -5:], atol=1e-4, rtol=1e-4)


def test_prompts_read_in_parts_beside_each_other_equal_a_full_forward_pass(
    engine: EmbeddedEngine, model_dir: Path, step_tokens: list[int]
) -> None:
    prompts = [random_prompt(length, seed=length) for length in (1500, 3, 700, 40, 513)]

    async def all_at_once() -> list[list[Chunk]]:
        return await asyncio.gather(*[two_chunks(engine, prompt, seed) for seed, prompt in enumerate(prompts)])

    for prompt, chunks in zip(prompts, asyncio.run(all_at_once()), strict=True):
        assert_equal_to_full_pass(model_dir, prompt, chunks)
    assert max(step_tokens) <= 256


@pytest.mark.parametrize("family", ["gemma2", "mistral"])
def test_windows_and_soft_caps_hold_in_prompts_read_in_parts(family: str, tmp_path: Path) -> None:
    save_model(family, tmp_path, max_position_embeddings=1024, sliding_window=40)
    prompts = [[3 + token for token in random_prompt(length)] for length in (600, 30)]

    async def all_at_once(engine: EmbeddedEngine) -> list[list[Chunk]]:
        return await asyncio.gather(*[two_chunks(engine, prompt, seed) for seed, prompt in enumerate(prompts)])

    with EmbeddedEngine(tmp_path) as engine:
        sampled = asyncio.run(all_at_once(engine))
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    for prompt, (first, second) in zip(prompts, sampled, strict=True):
        rows = [
            prompt + first.tokens_RL[parent].tolist() + tokens
            for parent, tokens in zip((1, 1, 2, 2), second.tokens_RL.tolist(), strict=True)
        ]
        with torch.no_grad():
            expected = reference_logprobs(model, torch.tensor(rows), 5)
        torch.testing.assert_close(second.logprobs_RL, expected, atol=1e-3, rtol=0)


async def stream(engine: EmbeddedEngine, prompt: list[int], chunks: int) -> torch.Tensor:
    session = await engine.open(prompt, Sampling(seed=3))
    tokens = torch.cat([(await session.extend([0], 1, 4)).tokens_RL for _ in range(chunks)], dim=1)
    session.close()
    return tokens


@pytest.mark.slow(10)
def test_a_long_prompt_adds_at_most_two_steps_to_each_step(engine: EmbeddedEngine, step_tokens: list[int]) -> None:
    """A live row beside a prompt of 1,500 tokens; a step's fixed part counts as 32 tokens."""

    async def go() -> None:
        streaming = asyncio.create_task(stream(engine, random_prompt(5), chunks=120))
        while not engine.health().live_rows:
            await asyncio.sleep(0)
        step_tokens.clear()
        session = await engine.open(random_prompt(1500), Sampling(seed=1))
        session.close()
        assert not streaming.done()
        await streaming

    asyncio.run(go())
    steps_with_prompt = [count for count in step_tokens if count > 1]
    assert len(steps_with_prompt) > 20 and max(steps_with_prompt) <= 1 + 2 * (32 + 1)


def test_a_short_prompt_does_not_wait_for_a_long_one(engine: EmbeddedEngine, step_tokens: list[int]) -> None:
    async def go() -> None:
        opening = asyncio.create_task(engine.open(random_prompt(2000), Sampling(seed=1)))
        while not step_tokens:
            await asyncio.sleep(0)
        session = await engine.open(random_prompt(20), Sampling(seed=1))
        await session.extend([0], 1, 1)
        assert sum(step_tokens) < 2000 and not opening.done()
        session.close()
        (await opening).close()

    asyncio.run(go())


def test_sessions_with_equal_prompts_read_them_once(engine: EmbeddedEngine, step_tokens: list[int]) -> None:
    """Also a session that joins while the prompt is read, or is live; another salt's prompt is another prompt."""
    prompt = random_prompt(700)

    async def go() -> None:
        first = await engine.open(prompt, Sampling(seed=0, salt="a"))
        assert sum(step_tokens) == 700
        others = await asyncio.gather(*[engine.open(prompt, Sampling(seed=seed, salt="a")) for seed in (1, 2)])
        assert sum(step_tokens) == 700
        apart = [engine.open(prompt, Sampling(seed=seed, salt="b")) for seed in range(3)]
        sessions = [first, *others, *await asyncio.gather(*apart)]
        assert sum(step_tokens) == 1400
        for session in sessions:
            session.close()
        (await engine.open(prompt, Sampling(salt="a"))).close()
        assert sum(step_tokens) == 2100  # its last session has closed: nothing of it is stored

    asyncio.run(go())


@pytest.mark.parametrize("length", [60, 700])
def test_sharing_a_prompt_changes_no_bit(engine: EmbeddedEngine, length: int) -> None:
    prompt = random_prompt(length)

    async def run(salts: list[str]) -> list[list[Chunk]]:
        return await asyncio.gather(*[two_chunks(engine, prompt, seed, salt) for seed, salt in enumerate(salts)])

    async def run_in_turn() -> list[list[Chunk]]:
        return [await two_chunks(engine, prompt, seed) for seed in range(3)]

    with engine.lockstep(3):
        shared = asyncio.run(run(["a", "a", "a"]))
    with engine.lockstep(3):
        apart = asyncio.run(run(["a", "b", "c"]))
    for a, b in zip(shared, apart, strict=True):
        for first, second in zip(a, b, strict=True):
            assert torch.equal(first.tokens_RL, second.tokens_RL)
            torch.testing.assert_close(first.logprobs_RL, second.logprobs_RL, atol=1e-5, rtol=0)
    for a, b in zip(shared, asyncio.run(run_in_turn()), strict=True):
        assert all(torch.equal(first.tokens_RL, second.tokens_RL) for first, second in zip(a, b, strict=True))


def test_choices_of_one_request_read_its_prompt_once(engine: EmbeddedEngine, step_tokens: list[int]) -> None:
    """``n`` plain samples as the API makes them, each a session of its own."""
    model = ServedModel("tiny", engine, ServedDefaults())
    detokenizer = Detokenizer(engine.tokenizer, ())
    params, sampling = SearchParams(), Sampling(seed=1, salt="project")
    request = Generation(model, random_prompt(300), params, None, None, sampling, 1, 5, detokenizer, {})
    assert len(asyncio.run(generate(request)).choices) == 5
    assert sum(step_tokens) == 300 + 5
    assert request.cache_tokens == 300 + 5 * (300 + 1)


def test_sessions_in_lockstep_that_share_prompts_are_the_same_to_the_bit(engine: EmbeddedEngine) -> None:
    """Their callers take another time every time; two prompts are read in parts."""
    prompts = [random_prompt(length, seed=length) for length in (600, 20, 600, 20, 350, 5)]
    system = random.SystemRandom()

    async def search(seed: int, prompt: list[int]) -> list[torch.Tensor]:
        session = await engine.open(prompt, Sampling(seed=seed), LAYERS)
        states = []
        for parents in ([0], [1, 3], [0, 0]):
            await asyncio.sleep(system.uniform(0, 0.02))
            states.append((await session.extend(parents, 4, 3)).hidden[2])
        session.close()
        return states

    async def search_all() -> list[torch.Tensor]:
        opened = await asyncio.gather(*[search(seed, prompt) for seed, prompt in enumerate(prompts)])
        return [states for session in opened for states in session]

    def in_lockstep() -> list[torch.Tensor]:
        with engine.lockstep(len(prompts)):
            return asyncio.run(search_all())

    first = in_lockstep()
    for states in (in_lockstep(), in_lockstep()):
        assert all(torch.equal(a, b) for a, b in zip(first, states, strict=True))


def allocated_tokens(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens, over all owners, of each cache that is allocated from now on."""
    counts: list[int] = []
    allocate = type(engine.runner.cache_spec).allocate

    def counting(spec: Any, owners: int, capacity: int) -> Any:
        counts.append(owners * capacity)
        return allocate(spec, owners, capacity)

    monkeypatch.setattr(type(engine.runner.cache_spec), "allocate", counting)
    return counts


@pytest.mark.parametrize("length", [400, 1500])
def test_streaming_a_row_copies_its_prompt_once_at_most(
    engine: EmbeddedEngine, model_dir: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    prompt = random_prompt(length)
    allocated = allocated_tokens(engine, monkeypatch)
    tokens = asyncio.run(stream(engine, prompt, chunks=40))[0].tolist()
    assert sum(allocated) <= length + (1.5 * length if length < 512 else 0) + 4 * 160 + 64
    reference = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        logits = reference(torch.tensor([prompt + tokens])).logits[0, length - 1 : -1]

    async def greedy() -> torch.Tensor:
        session = await engine.open(prompt, Sampling(seed=3))
        chunks = [await session.extend([0], 1, 4) for _ in range(40)]
        session.close()
        return torch.cat([chunk.logprobs_RL for chunk in chunks], dim=1)[0]

    expected = torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(tokens)[:, None])[:, 0]
    torch.testing.assert_close(asyncio.run(greedy()), expected, atol=1e-4, rtol=0)


def test_beams_that_stay_are_not_copied(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def go() -> int:
        session = await engine.open(random_prompt(30), Sampling(seed=3))
        await session.extend([0], 4, 8)
        allocated = allocated_tokens(engine, monkeypatch)
        for _ in range(30):
            await session.extend([0, 1, 2, 3], 1, 8)
        session.close()
        return sum(allocated)

    assert asyncio.run(go()) < 4 * 3 * 1.5 * 8 * 31


def test_prompts_leave_memory_with_their_last_session(engine: EmbeddedEngine) -> None:
    async def go() -> None:
        first, second = [await engine.open(random_prompt(30), Sampling(seed=seed)) for seed in range(2)]
        opening = asyncio.create_task(engine.open(random_prompt(1900), Sampling()))
        await asyncio.sleep(0)
        opening.cancel()
        first.close()
        assert (await second.extend([0], 2, 3)).tokens_RL.shape == (2, 3)
        second.close()
        with pytest.raises(RuntimeError, match="closed"):
            await second.extend([0], 1, 1)
        for _ in range(500):
            if not (scheduler._prompts or scheduler._openings or scheduler._sessions):
                return
            await asyncio.sleep(0.01)
        pytest.fail("a closed session's prompt is still in memory")

    scheduler = engine._scheduler
    asyncio.run(go())
