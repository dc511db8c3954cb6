"""Sessions of the embedded engine that are held to a schema, biased and penalised, on a small model; and many schemas
on a vocabulary of bytes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from jsonschema import Draft202012Validator
from llguidance import LLMatcher

from benchmarks.schemas import random_schema
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.adjusted import AdjustedRows
from iro_server.engines.base import HEAD_STATE, Chunk, Sampling, Steering
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.grammars import GrammarRows, Grammars, SchemaRefused, grammars_of
from iro_server.engines.prompts import chat_prompt_ids
from iro_server.engines.vllm_protocol import SEPARATORS
from tests.iro_server.api.byte_engine import byte_tokenizer
from tests.toy import ToyScorer
from value_heads.tilt import zero_tilt

NAMES = ("red", "reddish", "blue", "rue", "the blue of a blueberry")
SCHEMA = json.dumps({"enum": list(NAMES)})
TEXTS = [json.dumps(name) for name in NAMES]


@pytest.fixture(scope="module")
def engine(small_engine: EmbeddedEngine) -> EmbeddedEngine:
    return small_engine


@pytest.fixture(scope="module")
def prompt(engine: EmbeddedEngine) -> list[int]:
    return chat_prompt_ids(engine.tokenizer, [{"role": "user", "content": "Name a colour."}])


@pytest.fixture(scope="module")
def pieces(engine: EmbeddedEngine) -> dict[int, str]:
    """The text of each token that is one, and not a special token."""
    tokenizer = engine.tokenizer
    special = set(tokenizer.all_special_ids)
    return {id: tokenizer.decode([id]) for id in range(len(tokenizer)) if id not in special}


def sampling(engine: EmbeddedEngine, **changes) -> Sampling:
    return Sampling(**({"seed": 1, "stop_ids": engine.info.eos_ids, "schema": SCHEMA} | changes))


def extend(engine: EmbeddedEngine, prompt: list[int], asked: Sampling, steering: Steering | None = None):
    """A chunk of three rows, and one that continues the first of them twice, the last once, two ways each."""

    async def run() -> tuple[Chunk, Chunk]:
        session = await engine.open(prompt, asked, (HEAD_STATE,), steering)
        first = await session.extend([0], 3, 1)
        second = await session.extend([0, 2, 0], 2, 12)
        session.close()
        return first, second

    return asyncio.run(run())


def paths(first: Chunk, second: Chunk) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor, int, int]]:
    """Of each token drawn: those before it, the state it was drawn from, its log-probability, its row and place."""
    for row, length in enumerate(second.lengths_R.tolist()):
        begun = first.tokens_RL[(0, 2, 0)[row // 2]].tolist()
        for place in range(length):
            before = begun + second.tokens_RL[row, :place].tolist()
            yield before, second.hidden[HEAD_STATE][row, place], second.logprobs_RL[row, place], row, place


def allowed_after(text: str, pieces: dict[int, str], told: list[tuple[int, float]], eos: int) -> list[int]:
    """By the definition: tokens whose text goes on towards one of TEXTS; the end where the text is one.

    Where only one text can follow, llguidance may leave but its usual tokenisation, which is in ``told``."""
    rests = [whole[len(text) :] for whole in TEXTS if whole.startswith(text)]
    going_on = [id for id, piece in pieces.items() if piece and any(rest.startswith(piece) for rest in rests)]
    if len(told) == 1 and all(rest.startswith(pieces.get(told[0][0], "?")) for rest in rests):
        return [told[0][0]]
    return going_on + ([eos] if "" in rests else [])


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_each_draw_is_the_models_among_the_tokens_that_the_schema_leaves(engine, prompt, pieces, temperature) -> None:
    """Beams fork and repeat between the chunks: each row has the state of its own text."""
    first, second = extend(engine, prompt, sampling(engine, temperature=temperature, alternatives=20))
    eos = engine.info.eos_ids[0]
    for before, state, logprob, row, place in paths(first, second):
        told = second.alternatives[row][place]
        allowed = torch.tensor(allowed_after(engine.tokenizer.decode(before), pieces, told, eos))
        logits = engine.frozen.logits(state[None])[0] / temperature
        exact = dict(zip(allowed.tolist(), torch.log_softmax(logits[allowed], 0).tolist(), strict=True))
        assert logprob == pytest.approx(exact[int(second.tokens_RL[row, place])], abs=1e-3)
        assert len(told) == min(20, len(exact))
        assert dict(told) == pytest.approx({id: exact[id] for id, _ in told}, abs=1e-3)
        assert [logprob for _, logprob in told] == pytest.approx(sorted(exact.values(), reverse=True)[:20], abs=1e-3)
    texts = {engine.tokenizer.decode(final.tokens, skip_special_tokens=True) for final in finals(engine, prompt)}
    assert len(texts) > 1 and texts <= set(TEXTS)


def finals(engine, prompt, **changes):
    params = SearchParams(beam_width=2, num_successors=4, chunk_length=2)
    asked = sampling(engine, **changes)
    scorer = ToyScorer(lambda tokens: -float(len(tokens)))
    return asyncio.run(guided_search(engine, prompt, params, asked, 24, scorer)).finals


@pytest.mark.parametrize("changes", [{}, {"top_p": 0.5}, {"top_k": 3}, {"temperature": 2.0}])
def test_a_search_ends_in_whole_answers(engine, prompt, changes) -> None:
    for final in finals(engine, prompt, **changes):
        text = engine.tokenizer.decode(final.tokens, skip_special_tokens=True)
        assert text in TEXTS and final.finish_reason == "stop"


def test_a_tilt_chooses_among_what_the_schema_leaves(engine, prompt, pieces) -> None:
    """A bias of every token towards "blue" draws it alone; its ratios are those of the masked distributions."""
    zero = zero_tilt(*engine.frozen.head_weight.shape, (), engine.info.eos_ids)
    bias = torch.tensor([6.0 if "bl" in pieces.get(id, "") else 0.0 for id in range(len(zero.bias))])
    first, second = extend(engine, prompt, sampling(engine, alternatives=20), Steering(replace(zero, bias=bias)))
    texts = []
    for row, length in enumerate(second.lengths_R.tolist()):
        tokens = first.tokens_RL[(0, 2, 0)[row // 2]].tolist() + second.tokens_RL[row, :length].tolist()
        texts.append(engine.tokenizer.decode(tokens, skip_special_tokens=True))
    assert set(texts) <= set(TEXTS) and sum("bl" in text for text in texts) > 3
    eos = engine.info.eos_ids[0]
    for before, state, logprob, row, place in paths(first, second):
        told = second.alternatives[row][place]
        allowed = torch.tensor(allowed_after(engine.tokenizer.decode(before), pieces, told, eos))
        logits, token = engine.frozen.logits(state[None])[0], int(second.tokens_RL[row, place])
        base, proposal = (torch.log_softmax((logits + added)[allowed], 0) for added in (torch.zeros(()), bias))
        at = allowed.tolist().index(token)
        assert logprob == pytest.approx(float(base[at]), abs=1e-3)
        assert second.log_ratios_RL[row, place] == pytest.approx(float(proposal[at] - base[at]), abs=1e-3)
        assert second.kl_RL[row, place] == pytest.approx(float((proposal.exp() * (proposal - base)).sum()), abs=1e-3)


def test_biases_and_penalties_are_on_the_logits(engine, prompt) -> None:
    words = engine.tokenizer(" the and a", add_special_tokens=False)["input_ids"]
    biases = tuple(zip(words, (5.0, 3.0, -2.0), strict=True))
    asked = sampling(engine, schema=None, logit_bias=biases, presence_penalty=0.7, frequency_penalty=0.4)
    first, second = extend(engine, prompt, asked)
    for before, state, logprob, row, place in paths(first, second):
        logits = engine.frozen.logits(state[None])[0].clone()
        for id, bias in biases:
            logits[id] += bias
        for id in set(before):
            logits[id] -= 0.7 + 0.4 * before.count(id)
        exact = torch.log_softmax(logits, 0)[int(second.tokens_RL[row, place])]
        assert logprob == pytest.approx(float(exact), abs=2e-3)


def test_rows_with_and_without_a_schema_share_a_batch(engine, prompt) -> None:
    asked = [sampling(engine), sampling(engine, schema=None), sampling(engine, schema='{"type": "integer"}')]

    async def run(one: Sampling) -> list[list[int]]:
        params = SearchParams(beam_width=2, num_successors=2, chunk_length=3)
        return [final.tokens for final in (await guided_search(engine, prompt, params, one, 9)).finals]

    async def at_once() -> list[list[list[int]]]:
        return await asyncio.gather(*map(run, asked))

    assert asyncio.run(at_once()) == [asyncio.run(run(one)) for one in asked]


def test_a_schema_that_exceeds_a_limit_ends_its_session_alone(engine, prompt, monkeypatch) -> None:
    async def run() -> list[object]:
        searches = [guided_search(engine, prompt, SearchParams(), sampling(engine, seed=seed), 12) for seed in (1, 2)]
        plain = guided_search(engine, prompt, SearchParams(), sampling(engine, schema=None), 12)
        return await asyncio.gather(*searches, plain, return_exceptions=True)

    taken = GrammarRows.take

    def take(rows: GrammarRows, tokens: list[list[int]]) -> None:
        if rows is poisoned[0]:
            raise SchemaRefused("too much")
        taken(rows, tokens)

    poisoned: list[GrammarRows] = []
    made = GrammarRows.__init__

    def make(rows: GrammarRows, *args: object) -> None:
        made(rows, *args)
        poisoned.append(rows)

    monkeypatch.setattr(GrammarRows, "__init__", make)
    monkeypatch.setattr(GrammarRows, "take", take)
    failed, *others = asyncio.run(run())
    assert isinstance(failed, SchemaRefused) and not any(isinstance(other, Exception) for other in others)


def answer(grammars: Grammars, schema: dict, seed: int, most: int = 400) -> tuple[str, bool]:
    """Bytes drawn at random among those allowed, those that end something more often; whether it ended."""
    tokenizer = byte_tokenizer()
    eos = tokenizer.eos_token_id
    asked = Sampling(seed=seed, stop_ids=(eos,), schema=json.dumps(schema))
    rows = AdjustedRows(asked, GrammarRows(grammars.start(json.dumps(schema)), (eos,)))
    likely = torch.zeros(1, len(tokenizer))
    likely[0, tokenizer('"}]:,0123456789abc')["input_ids"]] = 6
    likely[0, tokenizer('"}]')["input_ids"]] = 8
    likely[0, eos] = 12
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    while len(tokens) < most:
        token = int(torch.softmax(rows.logits(likely)[0], 0).multinomial(1, generator=generator))
        if token == eos:
            return tokenizer.decode(tokens), True
        rows.take([[token]])
        tokens.append(token)
    return tokenizer.decode(tokens), False


@pytest.mark.parametrize("seeds", [range(80), pytest.param(range(80, 1000), marks=pytest.mark.slow(35))])
def test_answers_parse_and_fit_their_schema(seeds: range) -> None:
    tokenizer = byte_tokenizer()
    grammars, ended = grammars_of(tokenizer, (tokenizer.eos_token_id,)), 0
    for seed in seeds:
        schema = random_schema(seed)
        text, is_whole = answer(grammars, schema, seed)
        ended += is_whole
        if is_whole:
            Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(json.loads(text))
    assert ended > 0.9 * len(seeds)


REFUSED = [{"enum": []}, {"not": {}}, {"$ref": "#/$defs/x"}, {"type": "wizard"}, {"type": "string", "pattern": "("}]


@pytest.mark.parametrize("schema", REFUSED)
def test_what_no_grammar_can_be_made_of_is_refused(schema: dict) -> None:
    tokenizer = byte_tokenizer()
    with pytest.raises(SchemaRefused):
        Grammars(tokenizer, (tokenizer.eos_token_id,)).start(json.dumps(schema))


@pytest.mark.parametrize(
    ("text", "misfit"),
    [
        ('{"a": "abc"}', None),
        ('{\n  "a" :\t"abc"\n}', None),
        ('{"a": "abcd"}', "byte 'd' fails parse"),
        ('{"b": 1}', "byte 'b' fails parse"),
        ('{"a": "ab', "ends too early"),
    ],
)
def test_a_whole_answer_is_checked_against_its_schema_whatever_its_white_space(text: str, misfit: str | None) -> None:
    tokenizer = byte_tokenizer()
    grammars = Grammars(tokenizer, [256])
    letters = {"type": "string", "pattern": "^[a-z]+$", "maxLength": 3}
    schema = {"type": "object", "properties": {"a": letters}, "required": ["a"], "additionalProperties": False}
    reason = grammars.fit(json.dumps(schema)).misfit([*tokenizer(text)["input_ids"], 256])
    assert reason is None if misfit is None else misfit in str(reason)
    assert grammars.fit(json.dumps(schema)).misfit(tokenizer('{"a": "ab')["input_ids"]) is None  # cut
    assert "unused" in str(grammars.fit(json.dumps(schema)).misfit([10**6, 256]))


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('{"a":1, "b" : [1 ,2]}', True),
        ('{"a":1,  "b": []}', False),
        ('{"a":  1, "b": []}', False),
        ('{"a": 1, "b": [1,\n2]}', False),
        ('{ "a": 1, "b": []}', False),
    ],
)
def test_the_white_space_that_vllm_is_asked_for_is_one_space_beside_commas_and_colons(text: str, fits: bool) -> None:
    tokenizer = byte_tokenizer()
    properties = {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "integer"}}}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"], "x-guidance": SEPARATORS}
    grammar = LLMatcher.grammar_from_json_schema(schema, defaults={"whitespace_flexible": True})  # as vLLM 0.32 does
    matcher = LLMatcher(Grammars(tokenizer, [256]).prepare(), grammar, log_level=0)
    assert all(matcher.consume_token(token) for token in tokenizer(text)["input_ids"]) == fits
