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

from iro_server.decoding.base import SearchParams
from iro_server.decoding.beam import SampledTokens
from iro_server.decoding.search import guided_search
from iro_server.decoding.stopping import STOP_TOKENS
from iro_server.engines.base import Sampling, Session, Steering
from iro_server.engines.endpoints import EngineUnavailable, SchemaViolated
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
    """Towards the prompt's words, away from the response's own."""
    gates = torch.zeros(len(FEATURES), 17)
    gates[FEATURES.index("prompt"), -1] = 3.0
    gates[FEATURES.index("repeated"), -1] = -2.0
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


@pytest.mark.parametrize("tilted", [False, True])
async def test_the_one_of_several_rows_that_goes_on_is_the_one_that_streams(served, tmp_path, tilted: bool) -> None:
    """As where the others have stopped at strings. What it said steers it on."""
    fake = FakeEndpoint()
    engine = served(fake, adapters=tmp_path / "adapters")
    bodies = []
    for more in (0, 1):
        session = await engine.open(PROMPT, SAMPLING, (), words_tilt() if tilted else None)
        first, second = (await session.extend([0], 2, 3)).tokens_RL.tolist()
        fake.bodies.clear()
        (added,) = (await session.extend([1], 1, 1, more)).tokens_RL.tolist()
        assert first != second and session.prefixes == [PROMPT + second + added]
        (body,) = fake.bodies
        assert body["prompt"] == PROMPT + second
        bodies.append(body.get("logit_bias"))
    assert bodies[0] == bodies[1] and bool(bodies[0]) == tilted


PENALTIES = replace(SAMPLING, presence_penalty=0.5)
LETTERS = replace(SAMPLING, schema=r'{"type": "string", "pattern": "^[a-z]*$"}')


class PairStops:
    """A row ends at two equal tokens that follow each other."""

    num_context_tokens = 1

    def first_stop(self, context: Sequence[int], tokens: Sequence[int]) -> int | None:
        row = [*context, *tokens]
        ends = (place + 1 - len(context) for place in range(1, len(row)) if row[place] == row[place - 1])
        return next(ends, None)


@pytest.mark.parametrize("stops", [None, PairStops()])
@pytest.mark.parametrize("chunk_length", [None, 1, 5, 13])
async def test_a_single_row_with_penalties_streams_in_one_request(served, chunk_length: int | None, stops) -> None:
    fake = FakeEndpoint()
    engine = served(fake)
    expected = await draw(await engine.open(PROMPT, PENALTIES), LENGTH, LENGTH)
    if stops:
        expected = expected[: stops.first_stop([], expected)]
    fake.bodies.clear()
    if chunk_length is not None:
        fake.held_after = min(chunk_length, STOP_TOKENS) + 1
    parts: list[int] = []

    def hear(agreed: SampledTokens) -> None:
        parts.append(len(agreed.tokens))
        fake.heard.set()

    params = SearchParams(beam_width=1, num_successors=1, chunk_length=chunk_length)
    result = await guided_search(
        engine,
        PROMPT,
        params,
        PENALTIES,
        LENGTH,
        stops=stops,
        on_agreed=hear,
    )
    assert result.finals[0].tokens == expected
    (body,) = fake.bodies
    assert (body["max_tokens"], body["presence_penalty"]) == (LENGTH, 0.5)
    assert parts[-1] == len(expected) and (len(parts) > 1) == (chunk_length is not None)


@pytest.mark.parametrize("seed", [SEED, None])
@pytest.mark.parametrize("cut", [0, 1, 6])
async def test_a_stream_that_no_request_continues_is_drawn_again_as_a_whole(served, cut: int, seed: int | None) -> None:
    fake = FakeEndpoint()
    engine = served(fake)
    fake.cut = cut
    session = await engine.open(PROMPT, replace(PENALTIES, seed=seed))
    session.seed = SEED  # which it draws where the request has none
    tokens = await draw(session, LENGTH, 2)
    streamed, whole = fake.bodies
    assert streamed == whole | {"stream": True, "stream_options": {"include_usage": True}}
    assert tokens == tokens_of(PROMPT, whole["seed"], LENGTH)
    assert session.prefixes == [PROMPT + tokens] and not engine.replicas.all[0].rows


async def test_a_row_that_is_drawn_whole_gets_a_seed_only_from_its_sampling(served) -> None:
    """Else all answers to a prompt would be one."""
    fake = FakeEndpoint()
    engine = served(fake)
    for options in (PENALTIES, SAMPLING):
        await draw(await engine.open(PROMPT, replace(options, seed=None)), LENGTH, LENGTH)
    assert len(fake.bodies) == 2 and not any("seed" in body for body in fake.bodies)


async def test_a_broken_stream_whose_row_another_draw_does_not_repeat_fails(served) -> None:
    fake = FakeEndpoint()
    engine = served(fake)
    fake.cut = 6
    session = await engine.open(PROMPT, PENALTIES)
    await session.extend([0], 1, 2, LENGTH - 2)
    fake.respond = lambda body: fake.complete(body | {"seed": body["seed"] + 1})
    with pytest.raises(EngineUnavailable, match="penalties or a format"):
        for _ in range(3):
            await session.extend([0], 1, 2, LENGTH)


@pytest.mark.parametrize("part", [1, 4, LENGTH])
async def test_the_whole_of_a_streamed_row_has_to_fit_its_schema(served, part: int) -> None:
    """The endpoint holds no row to one."""
    engine = served(FakeEndpoint())
    with pytest.raises(SchemaViolated, match="does not fit"):
        await draw(await engine.open(PROMPT, LETTERS), LENGTH, part)
