"""A single row on vLLM that is drawn in parts: one streamed request, and what becomes of one that fails.
(tests/e2e/test_vllm.py has a real server.)"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from iro_server.engines.base import Sampling, Session, Steering
from iro_server.engines.remote import Row, derive
from iro_server.engines.vllm_steering import WORDS_CHUNK
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint, tokens_of
from tests.iro_server.engines.quick_engine import PROMPT
from value_heads.prompt_features import FEATURES
from value_heads.tilt import zero_tilt

LENGTH = 21
LONG = 60  # tokens of a row that no test reads to its end
SEED = next(seed for seed in range(10**6) if END not in tokens_of(PROMPT, derive(seed, 0, 0), LONG))
SAMPLING = Sampling(seed=SEED, stop_ids=(END,))


def words_tilt() -> Steering:
    """Towards the prompt's words."""
    gates = torch.zeros(len(FEATURES), 17)
    gates[FEATURES.index("prompt"), -1] = 3.0
    return Steering(replace(zero_tilt(257, 16, (), (END,)), gates=gates))


async def draw(session: Session, length: int, part: int) -> list[int]:
    """A row's tokens, ``part`` at a time until it stops."""
    tokens: list[int] = []
    while remaining := length - len(tokens):
        asked = min(part, remaining)
        chunk = await session.extend([0], 1, asked, remaining - asked)
        tokens += chunk.tokens_RL[0, : int(chunk.lengths_R)].tolist()
        if chunk.stopped_R.all():
            break
    session.close()
    return tokens


@given(
    tokens=st.lists(st.integers(0, 9), max_size=6),
    counts=st.lists(st.integers(0, 4), max_size=3),
    stopped=st.booleans(),
    rich=st.booleans(),
)
def test_the_parts_of_a_row_join_to_it(tokens: list[int], counts: Sequence[int], stopped: bool, rich: bool) -> None:
    logprobs = [-float(token) for token in tokens]
    tops = [[(token, -1.0)] for token in tokens] if rich else []
    row = Row(tokens, logprobs, stopped, tops, [[float(token)] for token in tokens] if rich else [])
    joined, rest = Row([], [], False), row
    for count in counts:
        part, rest = rest.split(count)
        assert len(part.tokens) == min(count, len(row.tokens) - len(joined.tokens))
        joined = joined.continued(part)
    assert joined.continued(rest) == row


@pytest.mark.parametrize("part", [1, 4, 20])
async def test_a_row_in_parts_is_one_request_and_the_row_of_one_chunk(served, part: int) -> None:
    fake = FakeEndpoint()
    engine = served(fake)
    expected = await draw(await engine.open(PROMPT, SAMPLING), LENGTH, LENGTH)
    (whole,) = fake.bodies
    fake.bodies.clear()
    session = await engine.open(PROMPT, SAMPLING)
    assert await draw(session, LENGTH, part) == expected
    (body,) = fake.bodies
    assert body == whole | {"stream": True, "stream_options": {"include_usage": True}}
    assert session.cached_tokens == 3 and not engine.replicas.all[0].rows


@pytest.mark.parametrize("cut", [0, 1, 6])
async def test_what_a_stream_fails_to_bring_is_asked_for_again(served, cut: int) -> None:
    fake = FakeEndpoint()
    engine = served(fake)
    fake.cut = cut
    session = await engine.open(PROMPT, SAMPLING)
    tokens = await draw(session, LENGTH, 2)
    assert len(tokens) == LENGTH or tokens[-1] == END
    assert session.prefixes == [PROMPT + tokens]
    streamed = [body for body in fake.bodies if "stream" in body]
    chunks = [body for body in fake.bodies if "stream" not in body]
    assert streamed and chunks and all(body["max_tokens"] <= WORDS_CHUNK for body in chunks)
    assert len(streamed) <= LENGTH // WORDS_CHUNK + 1
    assert all(body["prompt"] == (PROMPT + tokens)[: len(body["prompt"])] for body in fake.bodies)


async def test_a_server_that_streams_nothing_is_asked_for_chunks(served) -> None:
    fake = FakeEndpoint()
    engine = served(fake)
    fake.respond = lambda body: 400 if "stream" in body else fake.complete(body)
    tokens = await draw(await engine.open(PROMPT, SAMPLING), 9, 4)
    assert len(tokens) == 9 or tokens[-1] == END


async def test_a_session_that_closes_ends_its_stream(served) -> None:
    fake = FakeEndpoint()
    engine = served(fake)
    fake.seconds_per_event = 0.05
    session = await engine.open(PROMPT, SAMPLING)
    await session.extend([0], 1, 1, LONG)
    assert engine.replicas.all[0].rows == 1
    session.close()
    for _ in range(500):
        if not engine.replicas.all[0].rows:
            break
        await asyncio.sleep(0.01)
    assert not engine.replicas.all[0].rows
    await asyncio.sleep(0.1)
    events = fake.events
    await asyncio.sleep(0.3)
    assert fake.events == events < LONG


async def test_a_tilt_that_reads_words_is_set_anew_while_its_row_streams(served, tmp_path) -> None:
    """At the same tokens as where the row is one chunk."""
    fake = FakeEndpoint()
    engine = served(fake, adapters=tmp_path / "adapters")
    biases = []
    for part in (LENGTH, 3):
        fake.bodies.clear()
        session = await engine.open(PROMPT, SAMPLING, (), words_tilt())
        await draw(session, LENGTH, part)
        biases.append([(body["max_tokens"], body["seed"], body["logit_bias"]) for body in fake.bodies])
    assert biases[0] == biases[1] and len(biases[0]) > 1 and biases[0][0][0] == WORDS_CHUNK
