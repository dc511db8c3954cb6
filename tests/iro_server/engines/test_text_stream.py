"""A single row of a text endpoint that is drawn in parts: one streamed request, and what becomes of one that fails."""

from __future__ import annotations

import threading

import pytest

from iro_server.decoding.base import SearchParams
from iro_server.decoding.beam import SampledTokens
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.streaming_session import UNSTREAMED_TOKENS
from iro_server.engines.text import TextEngine
from tests.iro_server.engines.fake_endpoint import END

LENGTH = 12
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
ENDING, CUT = 3, 4  # seeds: a row that ends before LENGTH, and one that does not
ROW = SearchParams(chunk_length=1)


async def drawn(
    engine: TextEngine, seed: int, params: SearchParams, heard: threading.Event | None = None
) -> tuple[list[int], str, list[int]]:
    """A row's tokens, how it finished, and how many tokens each part of it had brought. ``heard``: set by the first."""
    lengths: list[int] = []

    def hear(agreed: SampledTokens) -> None:
        lengths.append(len(agreed.tokens))
        if heard:
            heard.set()

    result = await guided_search(
        engine,
        engine.tokenizer("Hi")["input_ids"],
        params,
        Sampling(seed=seed),
        LENGTH,
        on_agreed=hear,
    )
    return result.finals[0].tokens, result.finals[0].finish_reason, lengths


@pytest.mark.parametrize("seed", [ENDING, CUT])
async def test_a_row_in_parts_is_one_request_and_the_row_of_one_chunk(engine, fake, seed: int) -> None:
    tokens, finish_reason, _ = await drawn(engine, seed, SearchParams())
    assert (finish_reason == "stop") == (tokens[-1] == END) == (seed == ENDING)
    (whole,) = fake.bodies
    fake.bodies.clear()
    fake.held_after = 2
    in_parts, finish_in_parts, lengths = await drawn(engine, seed, ROW, fake.heard)
    assert (in_parts, finish_in_parts) == (tokens, finish_reason) and len(lengths) > 1
    assert fake.bodies == [whole | STREAMED] and not engine.replicas.all[0].rows


@pytest.mark.parametrize("seed", [ENDING, CUT])
@pytest.mark.parametrize("characters", [2, 5, 50])
async def test_an_event_may_bring_several_tokens(engine, fake, characters: int, seed: int) -> None:
    tokens, finish_reason, _ = await drawn(engine, seed, SearchParams())
    fake.bodies.clear()
    fake.characters_per_event = characters
    assert (await drawn(engine, seed, SearchParams(chunk_length=4)))[:2] == (tokens, finish_reason)
    assert len(fake.bodies) == 1


async def test_a_row_with_fewer_tokens_than_the_endpoint_counts_ends_with_its_stream(engine, fake) -> None:
    """The endpoint's tokens may be longer than those of the model's directory."""
    complete = fake.complete
    fake.complete = lambda body: complete(body) | {"choices": [{"index": 0, "text": "ab", "finish_reason": "length"}]}
    tokens, finish_reason, lengths = await drawn(engine, CUT, ROW)
    assert engine.tokenizer.decode(tokens) == "ab" and finish_reason == "length"
    assert lengths[-1] == 2 and len(fake.bodies) == 1


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
async def test_a_row_with_more_tokens_than_the_endpoint_counts_is_streamed_to_its_end(
    engine, fake, finish_reason: str
) -> None:
    """The endpoint's tokens may be longer than those of the model's directory."""
    complete, row = fake.complete, {"index": 0, "text": "ab" * LENGTH, "finish_reason": finish_reason}
    fake.complete = lambda body: complete(body) | {"choices": [row]}
    whole = await drawn(engine, CUT, SearchParams())
    assert (await drawn(engine, CUT, ROW))[:2] == whole[:2]


async def test_the_one_of_several_rows_that_goes_on_is_the_one_that_streams(engine, fake) -> None:
    """As where the others have stopped at strings."""
    session = await engine.open(engine.tokenizer("Hi")["input_ids"], Sampling(seed=CUT))
    await session.extend([0], 2, 3)
    first, second = session.prefixes
    assert first != second
    fake.bodies.clear()
    await session.extend([1], 1, 1, 1)
    assert [body["prompt"] for body in fake.bodies] == [second]


@pytest.mark.parametrize("cut", [0, 1, 6])
async def test_what_a_stream_fails_to_bring_is_asked_for_after_what_it_brought(engine, fake, cut: int) -> None:
    fake.cut = cut
    tokens, _, _ = await drawn(engine, CUT, SearchParams(chunk_length=4))
    assert len(tokens) == LENGTH or tokens[-1] == END
    text = engine.tokenizer.decode(tokens, skip_special_tokens=True)
    first, *others = fake.bodies
    assert "stream" in first and others and all("stream" not in body for body in others)
    assert all(body["max_tokens"] <= UNSTREAMED_TOKENS for body in others)
    prompts = [body["prompt"] for body in others]
    assert prompts[0] == "Hi" + text[:cut] and all(f"Hi{text}".startswith(prompt) for prompt in prompts)


async def test_an_endpoint_that_streams_nothing_is_asked_for_chunks(engine, fake) -> None:
    fake.respond = lambda body: 400 if "stream" in body else fake.complete(body)
    tokens, _, lengths = await drawn(engine, CUT, ROW)
    assert len(tokens) == LENGTH or tokens[-1] == END
    assert lengths == [*range(UNSTREAMED_TOKENS, len(tokens), UNSTREAMED_TOKENS), len(tokens)]
    assert len(fake.bodies) == 2 * len(lengths)


async def test_a_part_that_its_server_broke_off_is_asked_for_again(engine, fake) -> None:
    complete = fake.complete

    def aborted(body):
        (choice,) = complete(body)["choices"]
        broken_off = {"text": choice["text"][:5], "finish_reason": "abort"} if "stream" in body else {}
        return complete(body) | {"choices": [choice | broken_off]}

    fake.complete = aborted
    tokens, _, _ = await drawn(engine, CUT, ROW)
    assert len(fake.bodies) > 1 and (len(tokens) == LENGTH or tokens[-1] == END)
