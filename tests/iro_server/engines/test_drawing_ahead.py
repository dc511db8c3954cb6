"""A single row whose caller says how many tokens it will ask for next: the engine draws them without being asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from iro_server.engines.base import Sampling
from iro_server.engines.embedded import AHEAD, COMPACT, EmbeddedEngine, EmbeddedSession
from iro_server.engines.memory import EngineOutOfMemory
from iro_server.engines.sequences import SequenceGroup
from tests.iro_server.engines.tiny import VOCABULARY, random_prompt, save_tiny_model

PROMPT = random_prompt(30)


@pytest.fixture(scope="module")
def shared_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedEngine]:
    with EmbeddedEngine(save_tiny_model(tmp_path_factory.mktemp("tiny"))) as engine:
        yield engine


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[EmbeddedEngine]:
    with EmbeddedEngine(save_tiny_model(tmp_path)) as engine:
        yield engine


async def draw(engine: EmbeddedEngine, sampling: Sampling, length: int, part: int) -> tuple[list[int], list[float]]:
    """A row's tokens and log-probabilities, ``part`` at a time until it stops."""
    session = await engine.open(PROMPT, sampling)
    tokens: list[int] = []
    logprobs: list[float] = []
    try:
        while remaining := length - len(tokens):
            asked = min(part, remaining)
            chunk = await session.extend([0], 1, asked, remaining - asked)
            drawn = int(chunk.lengths_R)
            tokens += chunk.tokens_RL[0, :drawn].tolist()
            logprobs += chunk.logprobs_RL[0, :drawn].tolist()
            if chunk.stopped_R.all():
                break
    finally:
        session.close()
    return tokens, logprobs


@given(
    length=st.integers(1, 3 * COMPACT),
    part=st.integers(1, 2 * COMPACT),
    stops=st.sets(st.integers(0, VOCABULARY - 1), max_size=2),
)
@settings(max_examples=25, deadline=None)
def test_a_row_drawn_in_parts_is_the_row_drawn_at_once(
    shared_engine: EmbeddedEngine, length: int, part: int, stops: set[int]
) -> None:
    sampling = Sampling(seed=length, stop_ids=tuple(stops))
    tokens, logprobs = asyncio.run(draw(shared_engine, sampling, length, part))
    whole, expected = asyncio.run(draw(shared_engine, sampling, length, length))
    assert tokens == whole
    torch.testing.assert_close(torch.tensor(logprobs), torch.tensor(expected), atol=1e-5, rtol=0)


class Steps:
    """How many sessions share each of the engine's steps, which take ``seconds`` more."""

    def __init__(self, engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.rows: list[int] = []
        draw = engine.runner.draw

        def counting_draw(groups: list[SequenceGroup]) -> None:
            if groups:
                self.rows.append(len(groups))
                time.sleep(seconds)
            draw(groups)

        monkeypatch.setattr(engine.runner, "draw", counting_draw)


def test_a_row_in_parts_of_one_token_misses_no_step_of_another(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(engine, monkeypatch, seconds=0.005)

    async def go() -> None:
        both = [await engine.open(PROMPT, Sampling(seed=seed)) for seed in range(2)]
        chunk = asyncio.create_task(both[0].extend([0], 1, 200))
        drawn = 0
        while drawn < 200:
            drawn += int((await both[1].extend([0], 1, 1, 199 - drawn)).lengths_R)
        await chunk
        for session in both:
            session.close()

    asyncio.run(go())
    assert sum(steps.rows) == 400
    assert steps.rows.count(2) > 170  # a row that is asked for part by part shares fewer than 150


def test_a_row_that_stops_is_drawn_no_further(engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, _ = asyncio.run(draw(engine, Sampling(seed=0), 9, 9))
    steps = Steps(engine, monkeypatch)
    drawn, _ = asyncio.run(draw(engine, Sampling(seed=0, stop_ids=(tokens[5],)), 200, 1))
    assert drawn == tokens[: tokens.index(tokens[5]) + 1] and len(steps.rows) == len(drawn)


def test_parts_that_are_drawn_by_now_come_together(shared_engine: EmbeddedEngine) -> None:
    async def all_drawn(session: EmbeddedSession) -> None:
        while not all(work.done.done() for work in session._asked):
            await asyncio.sleep(0.01)

    async def go() -> tuple[list[int], list[int], list[int]]:
        session = await shared_engine.open(PROMPT, Sampling(seed=1))
        tokens: list[int] = []
        waiting, lengths = [], []
        while (remaining := 30 - len(tokens)) > 0:
            waiting.append(sum(work.length for work in session._asked))
            chunk = await session.extend([0], 1, min(2, remaining), max(0, remaining - 2))
            lengths.append(int(chunk.lengths_R))
            tokens += chunk.tokens_RL[0].tolist()
            await asyncio.wait_for(all_drawn(session), 30)
        session.close()
        return tokens, waiting, lengths

    tokens, waiting, lengths = asyncio.run(go())
    assert tokens == asyncio.run(draw(shared_engine, Sampling(seed=1), 30, 30))[0]
    assert lengths[0] + waiting[1] == 2 * (AHEAD + 1)
    assert all(before <= length for before, length in zip(waiting, lengths, strict=True))
    assert 2 < max(lengths) <= 2 * (AHEAD + 1)


def test_no_more_than_a_few_parts_are_drawn_before_they_are_awaited(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = Steps(engine, monkeypatch)

    async def go() -> None:
        session = await engine.open(PROMPT, Sampling(seed=1))
        await session.extend([0], 1, 2, 500)
        await asyncio.sleep(0.5)
        session.close()

    asyncio.run(go())
    assert len(steps.rows) <= 2 * (AHEAD + 1)


def test_a_failure_ahead_reaches_the_caller_and_closes_the_session(engine: EmbeddedEngine) -> None:
    steps = iter(range(6))

    def check(module: torch.nn.Module, args: object) -> None:
        if next(steps, None) is None:
            raise torch.OutOfMemoryError("out of memory")

    engine.frozen.decoder.layers[1].mlp.register_forward_pre_hook(check)

    async def go() -> None:
        session = await engine.open(PROMPT, Sampling(seed=1))
        with pytest.raises(EngineOutOfMemory):
            for more in reversed(range(20)):
                await session.extend([0], 1, 1, more)
        with pytest.raises(RuntimeError, match="closed"):
            await asyncio.wait_for(session.extend([0], 1, 1), 10)

    asyncio.run(go())


def test_a_session_that_closes_is_drawn_no_further(engine: EmbeddedEngine) -> None:
    async def go() -> None:
        session = await engine.open(PROMPT, Sampling(seed=1))
        await session.extend([0], 1, 8, 400)
        session.close()
        (await engine.open(PROMPT, Sampling(seed=2))).close()  # once the engine has read what came before
        assert engine.health().live_rows == 0

    asyncio.run(go())
