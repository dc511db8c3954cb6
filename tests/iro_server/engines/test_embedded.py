"""The embedded engine on the real model, held against transformers' own full forward pass."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Chunk, Sampling, Steering
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.packed_linear import operators_work
from iro_server.engines.prepare import prepare_model
from iro_server.engines.prompts import chat_prompt_ids, text_prompt_ids
from tests.iro_server.engines.tiny import save_tiny_model
from value_heads.tilt import zero_tilt

PROMPT = "This movie was one of the best that I"
OTHER = "The plot makes no sense at all, and by the end"


@pytest.fixture(scope="module")
def engine() -> Iterator[EmbeddedEngine]:
    with EmbeddedEngine(prepare_model()) as engine:
        yield engine


@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(prepare_model(), dtype=torch.float32)


@pytest.mark.slow(14)
def test_likeliest_successors_are_the_models_top_tokens(engine: EmbeddedEngine, reference: torch.nn.Module) -> None:
    """Each beam's, and after the first token the likeliest alone; a row drawn at random beside them stays random."""
    prompt = text_prompt_ids(engine.tokenizer, PROMPT)

    async def extend(sampling: Sampling) -> tuple[Chunk, Chunk]:
        session = await engine.open(prompt, sampling)
        return await session.extend([0], 3, 1), await session.extend([2, 0], 4, 2)

    async def at_once() -> list[tuple[Chunk, Chunk]]:
        return await asyncio.gather(extend(Sampling(likeliest=True)), extend(Sampling(seed=3)))

    (first, second), drawn = asyncio.run(at_once())
    with torch.no_grad():
        top = reference(torch.tensor([prompt])).logits[0, -1].topk(3).indices.tolist()
        assert first.tokens_RL[:, 0].tolist() == top
        for beam, rows in ((top[2], second.tokens_RL[:4]), (top[0], second.tokens_RL[4:])):
            logits = reference(torch.tensor([[*prompt, beam]])).logits[0, -1]
            assert rows[:, 0].tolist() == logits.topk(4).indices.tolist()
            after = reference(torch.tensor([[*prompt, beam, token] for token in rows[:, 0].tolist()])).logits[:, -1]
            assert rows[:, 1].tolist() == after.argmax(-1).tolist()
    alone = asyncio.run(extend(Sampling(seed=3)))
    assert [chunk.tokens_RL.tolist() for chunk in drawn] == [chunk.tokens_RL.tolist() for chunk in alone]


def test_a_tilt_leaves_no_team_of_threads_beside_the_engines(small_model: Path) -> None:
    """OpenMP's waiting threads sleep where they are more than the cores: the engine's steps took half as long again."""
    with EmbeddedEngine(small_model, threads=2) as engine, engine.lockstep(1):  # which takes both, beside other work
        before, after = asyncio.run(teams_before_and_after_a_tilt(engine))
    assert after <= before


async def teams_before_and_after_a_tilt(engine: EmbeddedEngine) -> tuple[int, int]:
    prompt = text_prompt_ids(engine.tokenizer, PROMPT)
    vocabulary, width = engine.frozen.head_weight.shape
    still = zero_tilt(vocabulary, width, (), engine.info.eos_ids)
    tilt = replace(still, state_factor=torch.zeros(64, width + 1), token_factor=torch.ones(64, width))

    async def extend(steering: Steering | None) -> None:
        session = await engine.open(prompt, Sampling(seed=1), steering=steering)
        await session.extend([0], 2, 2)
        session.close()

    await extend(None)
    before = openmp_threads()
    await extend(Steering(tilt))
    await asyncio.to_thread(torch.sort, torch.rand(1 << 18))  # such as a request's handler computes
    for _ in range(100):  # a team ends a moment after its thread
        if openmp_threads() <= before:
            break
        await asyncio.sleep(0.02)
    return before, openmp_threads()


OPEN_TWICE = """
import sys
from iro_server.engines.embedded import EmbeddedEngine
for _ in range(2):
    with EmbeddedEngine(sys.argv[1]) as engine:
        print(engine.max_threads)
"""


@pytest.mark.slow(12)
def test_an_engine_has_as_many_threads_as_the_one_before_it(tmp_path: Path) -> None:
    """As on a node of a cluster, whose engine makes room for a fit and is opened again."""
    command = [sys.executable, "-c", OPEN_TWICE, str(save_tiny_model(tmp_path))]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    counts = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert counts.split() == ["2", "2"]


def openmp_threads() -> int:
    """Threads of this process that are not Python's."""
    python = {str(thread.native_id) for thread in threading.enumerate()}
    return len(set(os.listdir("/proc/self/task")) - python)


async def two_rounds(engine: EmbeddedEngine, text: str, seed: int, lengths: tuple[int, int] = (5, 6)):
    session = await engine.open(text_prompt_ids(engine.tokenizer, text), Sampling(seed=seed), layers=(0, 10, 25))
    first = await session.extend([0], 6, lengths[0])
    second = await session.extend([2, 0, 2], 4, lengths[1])
    session.close()
    return first, second


def test_cached_rows_equal_a_full_forward_pass(engine: EmbeddedEngine, reference: torch.nn.Module) -> None:
    """Log-probabilities and hidden features after the cache was cut down to its parents, one of them twice."""
    assert_full_forward_pass(engine, reference, PROMPT, *asyncio.run(two_rounds(engine, PROMPT, seed=1)))


@pytest.mark.slow(15)
def test_a_long_prompt_equals_a_full_forward_pass(engine: EmbeddedEngine, reference: torch.nn.Module) -> None:
    """A prompt of some 600 tokens, which several steps read beside a short one's rows."""
    texts = [" ".join([PROMPT] * 60), OTHER]

    async def all_at_once():
        return await asyncio.gather(*[two_rounds(engine, text, seed) for seed, text in enumerate(texts)])

    for text, rounds in zip(texts, asyncio.run(all_at_once()), strict=True):
        assert_full_forward_pass(engine, reference, text, *rounds, checked=(0, 11))


def assert_full_forward_pass(
    engine: EmbeddedEngine,
    reference: torch.nn.Module,
    text: str,
    first: Chunk,
    second: Chunk,
    checked: Sequence[int] = range(12),
) -> None:
    prompt = text_prompt_ids(engine.tokenizer, text)
    parents = [p for p in (2, 0, 2) for _ in range(4)]
    tokens_RL = second.tokens_RL[list(checked)]
    rows = [
        prompt + first.tokens_RL[parents[row]].tolist() + tokens
        for row, tokens in zip(checked, tokens_RL.tolist(), strict=True)
    ]
    with torch.no_grad():
        full = reference(torch.tensor(rows), output_hidden_states=True)
    logprobs = torch.log_softmax(full.logits[:, -7:-1], dim=-1).gather(2, tokens_RL[..., None])[..., 0]
    torch.testing.assert_close(second.logprobs_RL[list(checked)], logprobs, atol=1e-4, rtol=0)
    for layer, hidden in second.hidden.items():
        expected = full.hidden_states[layer][:, -6:]
        assert (hidden[list(checked)] - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.skipif(not operators_work(torch.bfloat16), reason="this CPU has no products in bfloat16")
def test_products_in_bfloat16_are_the_models_but_for_rounding(reference: torch.nn.Module) -> None:
    prompt_ids = text_prompt_ids(AutoTokenizer.from_pretrained(prepare_model()), PROMPT)

    async def sample(engine: EmbeddedEngine) -> Chunk:
        return await (await engine.open(prompt_ids, Sampling(seed=0))).extend([0], 8, 12)

    with EmbeddedEngine(prepare_model(), precision="bfloat16") as engine:
        tokens_RL, logprobs_RL = (chunk := asyncio.run(sample(engine))).tokens_RL, chunk.logprobs_RL
    with torch.no_grad():
        logits = reference(torch.cat([torch.tensor([prompt_ids] * 8), tokens_RL], 1)).logits[:, -13:-1]
    expected_RL = logits.log_softmax(-1).gather(2, tokens_RL[..., None])[..., 0]
    assert 1e-3 < (logprobs_RL - expected_RL).abs().mean() < 0.06


def test_other_requests_in_the_batch_change_nothing(engine: EmbeddedEngine) -> None:
    async def crowded():
        texts = [(PROMPT, 5), (OTHER, 6), (OTHER, 7), (PROMPT, 8)]
        return (await asyncio.gather(*[two_rounds(engine, text, seed) for text, seed in texts]))[0]

    alone = asyncio.run(two_rounds(engine, PROMPT, seed=5))
    among = asyncio.run(crowded())
    for a, b in zip(alone, among, strict=True):
        assert torch.equal(a.tokens_RL, b.tokens_RL)
        torch.testing.assert_close(a.logprobs_RL, b.logprobs_RL, atol=1e-4, rtol=0)


@pytest.mark.slow(12)
def test_samples_follow_the_models_distribution(engine: EmbeddedEngine, reference: torch.nn.Module) -> None:
    """1,024 first tokens against the model's probabilities: total variation within what sampling noise explains."""
    prompt = text_prompt_ids(engine.tokenizer, "The capital of France is")
    with torch.no_grad():
        probs = torch.softmax(reference(torch.tensor([prompt])).logits[0, -1].double(), dim=-1)

    async def draw():
        session = await engine.open(prompt, Sampling(seed=0))
        return await session.extend([0], 1024, 1)

    counts = torch.bincount(asyncio.run(draw()).tokens_RL[:, 0], minlength=len(probs))
    common = probs > 8e-3
    observed = torch.cat([counts[common].double(), counts[~common].sum()[None].double()])
    expected = 1024 * torch.cat([probs[common], probs[~common].sum()[None]])
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < len(expected) + 4 * (2 * len(expected)) ** 0.5


@pytest.mark.slow(29)
def test_long_chunks_drop_stopped_rows_and_keep_their_place(engine: EmbeddedEngine, reference: torch.nn.Module) -> None:
    """Rows stop at different tokens of a chunk longer than the compaction step; survivors stay exact parents."""
    prompt = text_prompt_ids(engine.tokenizer, PROMPT)
    stops = tuple(engine.tokenizer(".", add_special_tokens=False)["input_ids"])

    async def go():
        session = await engine.open(prompt, Sampling(seed=2, stop_ids=stops))
        first = await session.extend([0], 12, 40)
        alive = (~first.stopped_R).nonzero().flatten().tolist()
        return first, alive, await session.extend(alive[-1:], 2, 3)

    first, alive, second = asyncio.run(go())
    assert 0 < len(alive) < 12
    for row, length in enumerate(first.lengths_R.tolist()):
        tokens = first.tokens_RL[row, :length].tolist()
        assert all(t not in stops for t in tokens[:-1])
        assert (tokens[-1] in stops) == bool(first.stopped_R[row])
    rows = [prompt + first.tokens_RL[alive[-1]].tolist() + tokens for tokens in second.tokens_RL.tolist()]
    with torch.no_grad():
        logits = reference(torch.tensor(rows)).logits[:, -4:-1]
    logprobs = torch.log_softmax(logits, dim=-1).gather(2, second.tokens_RL[..., None])[..., 0]
    torch.testing.assert_close(second.logprobs_RL, logprobs, atol=1e-4, rtol=0)


@pytest.mark.slow(22)
def test_one_beam_is_plain_sampling_and_one_chunk_is_best_of_n(engine: EmbeddedEngine) -> None:
    prompt = text_prompt_ids(engine.tokenizer, PROMPT)

    def tokens(params: SearchParams, seed: int) -> list[list[int]]:
        result = asyncio.run(guided_search(engine, prompt, params, Sampling(seed=seed), 12))
        return sorted(f.tokens for f in result.finals)

    assert tokens(SearchParams(chunk_length=4), 3) == tokens(SearchParams(), 3)
    best_of = tokens(SearchParams(num_successors=5), 4)
    assert len(best_of) == 5 and best_of == tokens(SearchParams(num_successors=5, chunk_length=12), 4)


def test_greedy_decoding_equals_transformers(engine: EmbeddedEngine, reference: torch.nn.Module) -> None:
    prompt = chat_prompt_ids(engine.tokenizer, [{"role": "user", "content": "Name three colours."}])
    expected = reference.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]

    async def go():
        session = await engine.open(prompt, Sampling(temperature=0.0))
        return await session.extend([0], 1, 12)

    assert asyncio.run(go()).tokens_RL[0].tolist() == expected.tolist()


def test_a_session_that_closes_in_mid_chunk_frees_its_rows(engine: EmbeddedEngine) -> None:
    async def go() -> None:
        session = await engine.open(text_prompt_ids(engine.tokenizer, PROMPT), Sampling(seed=1))
        task = asyncio.create_task(session.extend([0], 4, 400))
        while engine.health().live_rows == 0:
            await asyncio.sleep(0.01)
        task.cancel()
        session.close()
        for _ in range(500):
            if engine.health().live_rows == 0:
                return
            await asyncio.sleep(0.01)
        pytest.fail("rows of a closed session are still stepping")

    asyncio.run(go())


@pytest.mark.parametrize("prompt", [[], [1] * 9000])
def test_prompts_that_do_not_fit_are_refused(engine: EmbeddedEngine, prompt: list[int]) -> None:
    with pytest.raises(ValueError, match="tokens"):
        asyncio.run(engine.open(prompt, Sampling()))


def test_a_request_too_large_for_memory_fails_alone(engine: EmbeddedEngine) -> None:
    async def go() -> tuple[object, object]:
        prompt = text_prompt_ids(engine.tokenizer, PROMPT)
        modest, greedy = [await engine.open(prompt, Sampling(seed=1)) for _ in range(2)]
        return await asyncio.gather(modest.extend([0], 2, 4), greedy.extend([0], 10**8, 32), return_exceptions=True)

    chunk, failure = asyncio.run(go())
    assert isinstance(failure, RuntimeError) and "memory" in str(failure)
    assert chunk.tokens_RL.shape == (2, 4)


class Dawdler:
    """A scorer that takes its time, another time every time."""

    layers = ()

    def start(self, prompt_ids: object) -> Dawdler:
        return self

    async def score(self, parents: object, num_successors: int, chunk: Chunk) -> torch.Tensor:
        await asyncio.sleep(random.SystemRandom().uniform(0, 0.03))
        return -chunk.logprobs_RL.sum(1)


@pytest.mark.slow(37)
def test_sessions_in_lockstep_are_the_same_to_the_bit_however_long_their_callers_take(engine: EmbeddedEngine) -> None:
    texts = ["The film", "I", "What a", "It begins", PROMPT, " ".join([PROMPT] * 50)]  # too long to join with the rest
    params = SearchParams(beam_width=1, num_successors=4, chunk_length=3)

    async def search_all():
        tasks = []
        for seed, text in enumerate(texts):
            prompt, sampling = text_prompt_ids(engine.tokenizer, text), Sampling(seed=seed)
            tasks.append(guided_search(engine, prompt, params, sampling, 9, Dawdler(), keep_hidden=(25,)))
        return [final.hidden[25] for result in await asyncio.gather(*tasks) for final in result.finals]

    def in_lockstep() -> list[torch.Tensor]:
        with engine.lockstep(len(texts)):
            return asyncio.run(search_all())

    assert all(torch.equal(a, b) for a, b in zip(in_lockstep(), in_lockstep(), strict=True))
    asyncio.run(two_rounds(engine, PROMPT, seed=1))  # afterwards nobody is waited for
