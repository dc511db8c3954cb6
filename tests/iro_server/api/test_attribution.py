"""What each token of an aligned answer counts for, over HTTP and on a small frozen model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
import torch
from sqlalchemy import select

from iro_server.cli.generate import complete
from iro_server.decoding.base import SearchParams
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.settings import Settings
from iro_server.store.database import open_database
from iro_server.store.tables import Model
from tests.contract.strict import strictly
from tests.iro_server.api.serving import settings_for
from tests.iro_server.api.tilted import serving_tilted, words_tilt
from value_heads import FeatureSpec, LinearHead, MLPHead, ValueStack

QUESTION = "Write one sentence that uses the words river, lamp and garden."
ASK = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 24, "seed": 3}


def stacks(engine: EmbeddedEngine) -> dict[str, ValueStack]:
    generator = torch.Generator().manual_seed(0)
    size, middle = engine.info.hidden_size, engine.info.num_layers // 2
    spec = FeatureSpec(current=(middle,), summed=(0,), averaged=(middle,), stop_ids=engine.info.eos_ids)
    width = spec.width(size)
    head = LinearHead(spec, 0.01 * torch.randn(width, generator=generator), 0.3)
    mlp = MLPHead(spec, torch.zeros(width), torch.ones(width))
    return {"valued": ValueStack([head], [0.5], words_tilt(engine)), "deep": ValueStack([mlp], [1.0])}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(tmp_path_factory.mktemp("attribution"))


@pytest.fixture(scope="module")
def client(settings: Settings, small_engine: EmbeddedEngine) -> Iterator[openai.OpenAI]:
    with serving_tilted(settings, small_engine, stacks(small_engine)) as client:
        yield client


def entries(choice: object) -> list[dict[str, float]]:
    return [{"logprob": entry.logprob} | (entry.model_extra or {}) for entry in choice.logprobs.content]  # type: ignore[attr-defined]


@pytest.mark.slow(8)
def test_tokens_carry_the_numbers_of_the_command_line(
    client: openai.OpenAI, settings: Settings, small_model: Path
) -> None:
    answer = strictly(client.chat.completions.create(model="valued", logprobs=True, **ASK))
    with open_database(settings)() as session:
        path = session.scalars(select(Model.path).where(Model.id == "valued")).one()
    params, sampling = SearchParams(strength=1.0), Sampling(seed=3)
    expected = complete(small_model, QUESTION, False, params, sampling, 24, {Path(path): 1.0})
    tokens = entries(answer.choices[0])
    assert answer.choices[0].message.content == expected.text
    assert [token["value"] for token in tokens] == pytest.approx(expected.values, abs=1e-4)
    assert [token["log_ratio"] for token in tokens] == pytest.approx(expected.log_ratios, abs=1e-4)
    assert max(abs(token["value"]) for token in tokens) > 1e-2 and max(token["log_ratio"] for token in tokens) > 1


def test_shares_of_a_prefix_are_its_value(client: openai.OpenAI) -> None:
    """They do not depend on how long the answer goes on, nor on whether a search chose it, nor on a stop string."""
    ask = ASK | {"model": "valued", "logprobs": True}
    complete = entries(client.chat.completions.create(**ask).choices[0])
    short = entries(client.chat.completions.create(**ask | {"max_tokens": 9}).choices[0])
    assert [t["value"] for t in short] == pytest.approx([t["value"] for t in complete[:9]], abs=1e-4)
    searched = client.chat.completions.create(**ask, extra_body={"search": {"rows": 4, "chunk_length": 8}})
    assert all({"value", "log_ratio"} <= token.keys() for token in entries(searched.choices[0]))


def test_a_stream_carries_the_same(client: openai.OpenAI) -> None:
    ask = ASK | {"model": "valued", "logprobs": True}
    chunks = [chunk for chunk in client.chat.completions.create(**ask, stream=True) if chunk.choices]
    streamed = [entry for chunk in chunks if chunk.choices[0].logprobs for entry in entries(chunk.choices[0])]
    complete = entries(client.chat.completions.create(**ask).choices[0])
    for name in ("value", "log_ratio"):
        assert [t[name] for t in streamed] == pytest.approx([t[name] for t in complete], abs=1e-4)


def test_text_completions_carry_lists(client: openai.OpenAI) -> None:
    ask = {"model": "valued", "prompt": "The river", "max_tokens": 8, "seed": 1, "logprobs": 0}
    logprobs = strictly(client.completions.create(**ask)).choices[0].logprobs
    assert len(logprobs.values) == len(logprobs.log_ratios) == len(logprobs.tokens)


@pytest.mark.slow(6)
def test_only_what_decomposes_and_is_asked_for_is_told(client: openai.OpenAI) -> None:
    assert client.chat.completions.create(model="valued", **ASK).choices[0].logprobs is None
    for model, search in (("bytes", {}), ("deep", {}), ("tilted", {"strength": 0})):
        answer = client.chat.completions.create(model=model, logprobs=True, **ASK, extra_body={"search": search})
        extra = {"value"} if model == "tilted" else set()  # its values are linear, and all 0
        assert all(token.keys() - {"logprob"} == extra for token in entries(answer.choices[0]))
