"""The engine over text alone."""

from __future__ import annotations

import asyncio

import pytest

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from iro_server.engines.endpoints import Endpoints, EngineUnavailable
from iro_server.engines.text import MORE_TOKENS, TextEngine
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint


async def test_a_row_continues_the_endpoints_own_text(engine, fake):
    session = await engine.open(engine.tokenizer("Hi, wörld")["input_ids"], Sampling(seed=1, top_k=7))
    # What an endpoint says need not be what its tokens, cut anew, decode to.
    fake.turn(
        lambda good: good | {"choices": [each | {"text": "ab", "finish_reason": "length"} for each in good["choices"]]}
    )
    chunk = await session.extend([0], 2, 4)
    assert engine.tokenizer.decode(chunk.tokens_RL[0]) == "ab"
    assert chunk.lengths_R.tolist() == [2, 2] and not chunk.stopped_R.any()
    await session.extend([1], 3, 4)
    assert [body["prompt"] for body in fake.bodies] == ["Hi, wörld", "Hi, wörldab"]
    assert fake.bodies[1]["n"] == 3 and fake.bodies[1]["top_k"] == 7
    assert all(0 <= body["seed"] < 2**31 for body in fake.bodies)
    assert not {"return_token_ids", "stop_token_ids", "cache_salt"} & fake.bodies[0].keys()


async def test_a_text_that_spells_special_tokens_is_kept_as_it_stands(engine, fake):
    assert engine.tokenizer.all_special_tokens
    text = f"a turn ends with {engine.tokenizer.all_special_tokens[0]}."
    session = await engine.open([72], Sampling())
    fake.turn(lambda good: {"choices": [each | {"text": text, "finish_reason": "length"} for each in good["choices"]]})
    chunk = await session.extend([0], 1, 4)
    assert engine.tokenizer.decode(chunk.tokens_RL[0], skip_special_tokens=True) == text
    assert not chunk.stopped_R.any() and END not in chunk.tokens_RL[0]


@pytest.mark.parametrize(("text", "reason"), [("ab", "stop"), ("", "stop"), ("", "length")])
async def test_a_row_that_has_ended_ends_with_the_end_token(engine, fake, text, reason):
    session = await engine.open([72], Sampling())
    fake.turn(lambda good: {"choices": [each | {"text": text, "finish_reason": reason} for each in good["choices"]]})
    chunk = await session.extend([0], 1, 4)
    assert chunk.stopped_R.all() and chunk.tokens_RL[0, -1] == END
    assert len(chunk.tokens_RL[0]) == len(text) + 1


async def test_a_row_of_a_cut_character_is_drawn_again_with_more_tokens(engine, fake):
    """Its text is empty though the endpoint has not ended it."""
    session = await engine.open(engine.tokenizer("H")["input_ids"], Sampling(seed=1))

    def cut(good):
        texts = ["a", "", "b"] if fake.bodies[-1]["max_tokens"] == 2 else ["é"]
        return {"choices": [{"index": i, "text": text, "finish_reason": "length"} for i, text in enumerate(texts)]}

    fake.turn(cut)
    chunk = await session.extend([0], 3, 2)
    assert [(body["n"], body["max_tokens"]) for body in fake.bodies] == [(3, 2), (1, 2 + MORE_TOKENS)]
    assert session.prefixes == ["Ha", "Hé", "Hb"] and not chunk.stopped_R.any()
    assert fake.bodies[0]["seed"] != fake.bodies[1]["seed"]  # else it would be a copy of the first row


@pytest.mark.parametrize("reason", ["abort", "error", None])
async def test_an_answer_that_its_server_broke_off_is_asked_for_again(engine, fake, reason):
    def broken_off(good):
        choices = [choice | {"finish_reason": reason} for choice in good["choices"]]
        return good | ({"choices": choices} if len(fake.bodies) == 1 else {})

    fake.turn(broken_off)
    session = await engine.open(engine.tokenizer("H")["input_ids"], Sampling(seed=1))
    await session.extend([0], 1, 2)
    assert len(fake.bodies) == 2


def test_a_search_over_text(engine):
    params = SearchParams(beam_width=2, num_successors=2, chunk_length=4)
    searches = [guided_search(engine, [72, 105], params, Sampling(seed=3), 12) for _ in range(2)]
    first, same = (asyncio.run(search) for search in searches)
    assert [final.tokens for final in first.finals] == [final.tokens for final in same.finals]
    assert not engine.info.logprobs and not engine.info.hidden


def test_value_functions_belong_to_the_endpoints_model(model_dir, engine):
    other = FakeEndpoint(model="other", ids=False)
    with TextEngine(model_dir, Endpoints((other.url,))) as another:
        assert another.info.model_hash != engine.info.model_hash
    other.close()


def test_an_endpoint_without_completions_is_refused(model_dir, fake):
    fake.turn(404)
    with pytest.raises(EngineUnavailable, match="/completions is not there"):
        TextEngine(model_dir, Endpoints((fake.url,)))
