"""A step that fails, out of memory say, fails the request that cannot be computed alone, and no other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from iro_server.engines.adjusted import AdjustedRows
from iro_server.engines.base import Chunk, Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.memory import EngineOutOfMemory
from tests.iro_server.api.serving import wait_for
from tests.iro_server.engines.tiny import random_prompt, save_tiny_model

PROMPT = random_prompt(30)
OUT_OF_MEMORY = torch.OutOfMemoryError("out of memory")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EmbeddedEngine]:
    with EmbeddedEngine(save_tiny_model(tmp_path)) as engine:
        yield engine


async def sample(engine: EmbeddedEngine, rows: int, salt: str | None = None, prompt: list[int] = PROMPT) -> Chunk:
    session = await engine.open(prompt, Sampling(seed=rows, salt=salt))
    try:
        return await session.extend([0], rows, 12)
    finally:
        session.close()


def sample_all(engine: EmbeddedEngine, *rows: int) -> list[Any]:
    async def go() -> list[Any]:
        return await asyncio.gather(*[sample(engine, count) for count in rows], return_exceptions=True)

    return asyncio.run(go())


def fail_above(engine: EmbeddedEngine, tokens: int) -> None:
    """Let a forward pass over more tokens run out of memory."""

    def check(module: torch.nn.Module, args: Any) -> None:
        if args[0].shape[1] > tokens:
            raise OUT_OF_MEMORY

    engine.frozen.decoder.layers[1].mlp.register_forward_pre_hook(check)


def test_the_request_that_memory_does_not_hold_fails_alone(engine: EmbeddedEngine) -> None:
    expected = sample_all(engine, 2, 3, 5)
    fail_above(engine, 40)
    *chunks, failure = sample_all(engine, 2, 3, 5, 60)
    assert isinstance(failure, EngineOutOfMemory)
    for chunk, other in zip(chunks, expected, strict=True):
        assert torch.equal(chunk.tokens_RL, other.tokens_RL)
        torch.testing.assert_close(chunk.logprobs_RL, other.logprobs_RL, atol=1e-5, rtol=0)
    wait_for(lambda: engine.health().live_rows == 0)  # the engine's thread reads that the sessions have closed


def test_a_draw_that_memory_does_not_hold_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    isin, take = torch.isin, AdjustedRows.take
    failures = iter([OUT_OF_MEMORY])

    def fail_once(*args: Any) -> torch.Tensor:
        if failure := next(failures, None):
            raise failure
        return isin(*args)

    def counting_take(rows: AdjustedRows, tokens: Sequence[Sequence[int]]) -> None:
        take(rows, tokens)
        counts.append(sum(rows._counts[0].values()))

    monkeypatch.setattr(AdjustedRows, "take", counting_take)

    async def go(engine: EmbeddedEngine) -> None:
        session = await engine.open(PROMPT, Sampling(seed=1, frequency_penalty=1.0))
        await session.extend([0], 1, 3)
        session.close()

    with EmbeddedEngine(save_tiny_model(tmp_path)) as engine:
        monkeypatch.setattr(torch, "isin", fail_once)
        with pytest.raises(EngineOutOfMemory):
            asyncio.run(go(engine))
        assert counts == []
        asyncio.run(go(engine))
    assert counts == [1, 2, 3]


def test_requests_that_memory_holds_one_at_a_time_all_succeed(engine: EmbeddedEngine) -> None:
    expected = sample_all(engine, 31, 32, 33)
    fail_above(engine, 40)
    for chunk, other in zip(sample_all(engine, 31, 32, 33), expected, strict=True):
        assert torch.equal(chunk.tokens_RL, other.tokens_RL)


def test_a_prompt_that_memory_does_not_hold_fails_the_sessions_that_wait_for_it(engine: EmbeddedEngine) -> None:
    fail_above(engine, 100)

    async def go() -> list[Any]:
        longer = random_prompt(300)
        works = [sample(engine, 2), sample(engine, 3, "a", longer), sample(engine, 4, "a", longer), sample(engine, 5)]
        return await asyncio.gather(*works, return_exceptions=True)

    with engine.lockstep(4):  # so that the first step reads most of the long prompt
        first, *failures, last = asyncio.run(go())
    assert [type(failure) for failure in failures] == [EngineOutOfMemory] * 2
    assert first.tokens_RL.shape == (2, 12) and last.tokens_RL.shape == (5, 12)


def test_a_draw_that_fails_fails_its_request_alone(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    from iro_server.engines import model_runner

    expected = sample_all(engine, 2, 3, 5)
    next_tokens = model_runner.next_tokens

    def failing(logits: torch.Tensor, sampling: Sampling, uniforms: torch.Tensor) -> Any:
        if uniforms.shape[1] == 7:
            raise OUT_OF_MEMORY
        return next_tokens(logits, sampling, uniforms)

    monkeypatch.setattr(model_runner, "next_tokens", failing)
    first, second, failure, third = sample_all(engine, 2, 3, 7, 5)
    assert isinstance(failure, EngineOutOfMemory)
    for chunk, other in zip((first, second, third), expected, strict=True):
        assert torch.equal(chunk.tokens_RL, other.tokens_RL)


def test_a_cache_that_memory_does_not_hold_fails_its_request_alone(engine: EmbeddedEngine) -> None:
    """torch's own allocator refuses 10^8 rows as the chunk begins."""

    async def go() -> list[Any]:
        modest, greedy = [await engine.open(PROMPT, Sampling(seed=1)) for _ in range(2)]
        works = modest.extend([0], 2, 12), greedy.extend([0], 10**8, 32)
        return await asyncio.gather(*works, return_exceptions=True)

    chunk, failure = asyncio.run(go())
    assert isinstance(failure, EngineOutOfMemory) and isinstance(failure.__cause__, RuntimeError)
    assert chunk.tokens_RL.shape == (2, 12)


def test_work_that_is_posted_as_the_engine_closes_is_cancelled(tmp_path: Path) -> None:
    engine = EmbeddedEngine(save_tiny_model(tmp_path))

    async def go() -> None:
        opening = asyncio.create_task(engine.open(random_prompt(2000), Sampling()))
        await asyncio.sleep(0)
        await asyncio.to_thread(engine.close)
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(opening, 10)

    asyncio.run(go())
