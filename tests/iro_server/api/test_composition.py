"""Several aligned models in one request, over HTTP and on a small frozen model."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from fastapi.testclient import TestClient

from iro_server.alignment.definition import ServedDefaults
from iro_server.api.app import create_app
from iro_server.api.registry import CompositeMismatch, ServedModel
from iro_server.decoding.base import SearchParams
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.settings import Settings
from iro_server.store.database import find, open_database
from iro_server.store.tables import Model
from tests.contract.strict import strictly
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, new_key, serving, settings_for
from tests.iro_server.api.tilted import serving_tilted, words_tilt
from value_heads import FeatureSpec, LinearHead, LoraValues, ValueStack, save_bundle
from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.prompt_features import FEATURES
from value_heads.tilt import fold_tilts, zero_tilt

ASK: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Write one sentence that uses the words river, lamp and garden."}],
    "max_tokens": 16,
    "seed": 3,
    "logprobs": True,
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return settings_for(tmp_path_factory.mktemp("composition"))


@pytest.fixture(scope="module")
def client(settings: Settings, small_engine: EmbeddedEngine) -> Iterator[openai.OpenAI]:
    """Models ``a``, ``b`` and ``c``: linear values and a tilt each, of which two ignore other words of a prompt."""
    size = small_engine.info.hidden_size
    tilt, stacks = words_tilt(small_engine), {}
    biased = replace(tilt, bias=torch.randn(len(tilt.bias), generator=torch.Generator().manual_seed(9)))
    for number, (name, its_tilt) in enumerate({"a": tilt, "b": biased, "c": replace(tilt, ignored=(5, 6))}.items()):
        generator = torch.Generator().manual_seed(number)
        spec = FeatureSpec(current=(small_engine.info.num_layers // 2,), summed=(0,), horizon=8 + number)
        head = LinearHead(spec, 0.01 * torch.randn(spec.width(size), generator=generator), float(number))
        stacks[name] = ValueStack([head], [0.5], its_tilt)
    with serving_tilted(settings, small_engine, stacks) as client:
        yield client


def ask(client: openai.OpenAI, model: str = "bytes", values: dict[str, float] | None = None, **search: Any) -> Any:
    search |= {"values": values} if values is not None else {}
    return client.chat.completions.create(model=model, **ASK, extra_body={"search": search}).choices[0]


def numbers(choice: Any, name: str) -> list[float]:
    return [getattr(entry, name) for entry in choice.logprobs.content]


@pytest.mark.slow(8)
def test_one_model_of_weight_1_is_that_model_to_the_bit(client: openai.OpenAI) -> None:
    assert ask(client, values={"a": 1.0}).to_dict() == ask(client, "a").to_dict()
    assert ask(client, "a", values={"a": 1.0}).to_dict() == ask(client, "a").to_dict()
    searched = {"rows": 4, "chunk_length": 4}
    assert ask(client, values={"b": 1}, **searched).to_dict() == ask(client, "b", **searched).to_dict()


def test_values_add_with_their_weights(client: openai.OpenAI) -> None:
    """At strength 0 all draw the frozen model's tokens: shares of the same tokens add."""
    mixed = ask(client, values={"a": 2.0, "b": -0.5, "c": 0.25}, strength=0)
    parts = {name: ask(client, name, strength=0) for name in "abc"}
    assert {mixed.message.content} == {part.message.content for part in parts.values()}
    expected = [
        2 * a - 0.5 * b + 0.25 * c for a, b, c in zip(*(numbers(part, "value") for part in parts.values()), strict=True)
    ]
    assert numbers(mixed, "value") == pytest.approx(expected, abs=1e-4)


def test_opposite_weights_are_the_frozen_model(client: openai.OpenAI) -> None:
    cancelled = ask(client, values={"a": 1.0, "tilted": -1.0})  # the same tilt
    assert cancelled.message.content == ask(client).message.content
    assert max(map(abs, numbers(cancelled, "log_ratio"))) < 1e-4
    assert ask(client, values={"a": 0.0}).message.content == ask(client).message.content


@pytest.mark.slow(7)
def test_an_aligned_models_values_have_weight_1_unless_named(client: openai.OpenAI) -> None:
    mixed = ask(client, values={"a": 1.0, "b": 0.5})
    assert ask(client, "a", values={"b": 0.5}).to_dict() == mixed.to_dict()
    assert ask(client, "a", values={"a": 0.5, "b": 1}).to_dict() == ask(client, values={"a": 0.5, "b": 1}).to_dict()
    assert mixed.message.content != ask(client, "a").message.content


@pytest.mark.slow(6)
def test_every_route_takes_them(client: openai.OpenAI) -> None:
    search = {"search": {"values": {"a": 1.0, "c": 1.0}}}
    complete = client.chat.completions.create(model="bytes", **ASK, extra_body=search)
    stream = client.chat.completions.create(model="bytes", **ASK, stream=True, extra_body=search)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == strictly(complete).choices[0].message.content
    response = client.responses.create(
        model="bytes", input=ASK["messages"], max_output_tokens=16, extra_body=search | {"seed": 3}
    )
    assert response.output_text == text
    completions = [
        client.completions.create(model=model, prompt="The river", max_tokens=8, seed=1, extra_body=extra)
        for model, extra in (("bytes", search), ("a", {"search": {"values": {"c": 1.0}}}))
    ]
    assert completions[0].choices[0].text == completions[1].choices[0].text
    assert (completions[0].usage.model_extra or {})["kl"] > 0


BAD = [
    ("bytes", {"nobody": 1.0}, 404, "model_not_found", "nobody"),
    ("bytes", {"a": 1.0, "bytes": 1.0}, 400, None, "frozen"),
    ("a", {"bytes": 1.0}, 400, None, "frozen"),
    ("bytes", {"a": "much"}, 400, None, "number"),
    ("bytes", {"a": 1e9}, 400, None, "100"),
    ("bytes", {}, 400, None, "at least 1"),
    ("bytes", {f"m{n}": 1.0 for n in range(9)}, 400, None, "at most 8"),
    ("bytes", 3, 400, None, "dict"),
]


@pytest.mark.parametrize(("model", "values", "status", "code", "part"), BAD)
def test_what_cannot_be_mixed_is_refused(
    client: openai.OpenAI, model: str, values: Any, status: int, code: str | None, part: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=part) as refused:
        ask(client, model, values)
    assert refused.value.status_code == status and str(refused.value.param).startswith("search.values")
    assert code is None or refused.value.code == code


def test_weights_are_finite(client: openai.OpenAI) -> None:
    body = b'{"model": "bytes", "messages": [{"role": "user", "content": "a"}], "search": {"values": {"a": NaN}}}'
    headers = {"content-type": "application/json"}
    refused = client._client.post(f"{client.base_url}chat/completions", content=body, headers=headers)
    assert refused.status_code == 400, refused.text


def test_betas_and_a_strength_without_a_tilt_are_refused(client: openai.OpenAI) -> None:
    too_small = {"betas": [1e-300]}, "search.betas.0"
    without_tilt = {"strength": 1.0, "values": {"a": 0.0}}, None
    for search, param in (({"betas": [1.0]}, "search.betas"), too_small, without_tilt):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, **{"values": {"a": 1.0, "b": 1.0}} | search)
        assert refused.value.param == (param or "search.strength")


@pytest.mark.slow(8)
def test_only_what_the_key_may_use_is_mixed(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    aligned(settings, "ours")
    secret, body = new_key(settings, "acme"), {"search": {"values": {"ours": 1.0}}}
    with serving(settings, ByteEngine()) as client, pytest.raises(openai.NotFoundError) as refused:
        keyed = client.with_options(api_key=secret)
        keyed.chat.completions.create(model="bytes", messages=ASK["messages"], extra_body=body)
    assert refused.value.code == "model_not_found" and refused.value.param == "search.values"


def test_a_model_of_another_frozen_model_is_refused(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    aligned(settings, "ours")
    aligned(settings, "elsewhere")
    spec = FeatureSpec(summed=(0,), position=False)
    with open_database(settings)() as session:
        path = Path(find(session, Model, "elsewhere").path)
    save_bundle(path, ValueStack([LinearHead(spec, torch.ones(2), 0.0)], [1.0]), model_hash="x", template_hash="y")
    with TestClient(create_app(settings, ByteEngine()), base_url="http://127.0.0.1") as client:
        body = {"model": "ours", "messages": ASK["messages"], "search": {"values": {"elsewhere": 1.0}}}
        error = client.post("/v1/chat/completions", json=body)
    assert error.status_code == 400 and error.json()["error"]["code"] == "model_mismatch"
    assert error.json()["error"]["param"] == "search.values" and "elsewhere" in error.json()["error"]["message"]


@pytest.mark.slow(8)
def test_composites_leave_memory(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, loaded_models=2)
    names = [aligned(settings, name) for name in ("x", "y")]
    app = create_app(settings, ByteEngine())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        registry = app.state.context.models

        def mix(weight: float) -> int:
            body = {"model": "bytes", "messages": ASK["messages"], "max_tokens": 2}
            answer = client.post("/v1/chat/completions", json=body | {"search": {"values": {"x": 1.0, "y": weight}}})
            return answer.status_code

        assert [mix(weight) for weight in (0.5, 0.25, 0.125, 0.5)] == [200] * 4
        assert len(registry.composites) == 2
        parts = [(registry.resolve(name, "default"), weight) for name, weight in zip(names, (1.0, 0.5), strict=True)]
        composite = weakref.ref(registry.composite(parts))
        assert composite() is registry.composite(parts)
        assert client.delete("/v1/models/x").status_code == 200
        gc.collect()
        assert composite() is None and len(registry.composites) == 0
        assert mix(0.5) == 404


def test_lora_values_are_mixed_with_no_others(tmp_path: Path) -> None:
    settings = settings_for(tmp_path)
    aligned(settings, "linear")
    registry = create_app(settings, ByteEngine()).state.context.models
    linear = registry.resolve("linear", "default")
    lora = replace(linear, name="lora", values=object.__new__(LoraValues), path="elsewhere")
    assert registry.composite([(lora, 1.0), (linear, 0.0)]) is lora.values
    for parts in ([(lora, 1.0), (linear, 0.5)], [(lora, 2.0)]):
        with pytest.raises(CompositeMismatch, match="'lora' has LoRA value functions"):
            registry.composite(parts)


@pytest.mark.parametrize(
    ("part", "is_applied"), [("words", True), ("word_sets", False), ("states", True), ("lengths", False)]
)
def test_a_server_over_http_takes_of_several_tilts_what_it_takes_of_one(part: str, is_applied: bool) -> None:
    """The frozen model on vLLM with adapters."""
    engine = ByteEngine()
    steers = frozenset({"bias", "words", "states"})
    engine.info = replace(engine.info, hidden=False, drift=False, steers=steers)
    words = torch.zeros(len(FEATURES), 3)
    words[0, -1] = 1.0
    tilt = replace(zero_tilt(4, 2, (), (3,)), gates=words)
    if part == "states":
        tilt = replace(tilt, state_factor=torch.ones(1, 3), token_factor=torch.ones(1, 2))
    if part == "lengths":
        tilt = replace(
            tilt, length_stop=torch.ones(NUM_LENGTH_FEATURES), length_factor=torch.ones(0, NUM_LENGTH_FEATURES)
        )
    others = [replace(tilt, ignored=(1,))] if part == "word_sets" else []
    head = LinearHead(FeatureSpec(summed=(0,), position=False), torch.zeros(2), 0.0)
    values = ValueStack([head], [1.0], fold_tilts([tilt, *others], [1.0, *[0.5] * len(others)]))
    model = ServedModel("bytes", engine, ServedDefaults(), values, composed=True)
    params = SearchParams(strength=1.0)
    if is_applied:
        assert model.steering(params) is not None
    else:
        with pytest.raises(ValueError, match=part):
            model.steering(params)
    assert model.steering(SearchParams()) is None
