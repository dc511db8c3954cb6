"""An aligned model that is served with a tilt, over HTTP and on a small frozen model."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from iro_server.engines.embedded import EmbeddedEngine
from tests.iro_server.api.serving import settings_for
from tests.iro_server.api.tilted import add_checkpoint, serving_tilted

ASK = {
    "model": "tilted",
    "messages": [{"role": "user", "content": "Write one sentence that uses the words river, lamp and garden."}],
    "max_tokens": 24,
    "seed": 3,
}
WORDS = ("river", "lamp", "garden")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, small_engine: EmbeddedEngine) -> Iterator[openai.OpenAI]:
    settings = settings_for(tmp_path_factory.mktemp("steered"))
    with serving_tilted(settings, small_engine) as client:
        add_checkpoint(settings, "tilted", 1, {"search": {"strength": 1.0}})
        add_checkpoint(settings, "tilted", 2, {})  # of a version before checkpoints named their search
        yield client


def ask(client: openai.OpenAI, **search: float) -> tuple[str, float]:
    """The text and the nats that it moved."""
    extra = {"search": search} if search else {}
    answer = client.chat.completions.create(**ASK, extra_body=extra)
    assert answer.usage is not None and answer.choices[0].message.content is not None
    return answer.choices[0].message.content, (answer.usage.model_extra or {}).get("kl", 0.0)


def test_one_row_is_steered_and_says_how_far(client: openai.OpenAI) -> None:
    def words(**search: float) -> int:
        answer = client.chat.completions.create(**ASK, n=8, extra_body={"search": search} if search else {})
        return sum(word in str(choice.message.content).lower() for choice in answer.choices for word in WORDS)

    assert words() > words(strength=0)
    assert ask(client)[1] > 1 and ask(client, strength=0)[1] == 0


def test_a_checkpoint_answers_by_the_search_that_its_metrics_were_measured_with(client: openai.OpenAI) -> None:
    def answer(model: str, **search: object) -> tuple[str | None, object]:
        extra = {"search": search} if search else {}
        completion = client.chat.completions.create(**ASK | {"model": model}, extra_body=extra)
        return completion.choices[0].message.content, (completion.usage.model_extra or {}).get("kl")

    model, checkpoint, earlier = "tilted", "tilted:ckpt-step-1", "tilted:ckpt-step-2"
    assert answer(checkpoint) == answer(model) and answer(model)[1] > 1
    assert answer("bytes", values={checkpoint: 1.0}) == answer(model)
    assert answer(earlier) == answer(model, strength=0) and answer(earlier, strength=1.0) == answer(model)


def test_a_request_bounds_how_far_an_answer_moves(client: openai.OpenAI) -> None:
    assert ask(client, max_kl=0.5)[1] <= 0.501
    assert ask(client, max_kl=0.0)[0] == ask(client, strength=0)[0]


def test_a_stream_is_the_whole_answer(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(**ASK, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert "".join(pieces) == ask(client)[0] and len(list(filter(None, pieces))) > 2


def test_an_answer_that_stops_moved_as_far_as_its_tokens_did(client: openai.OpenAI) -> None:
    """More tokens are drawn than the answer has: a stop string is looked for once every few."""
    text, _ = ask(client)
    stop = text[len(text) // 3 :][:2]
    stopped = client.chat.completions.create(**ASK, stop=stop).usage
    stream = client.chat.completions.create(**ASK, stop=stop, stream=True, stream_options={"include_usage": True})
    (streamed,) = [chunk.usage for chunk in stream if chunk.usage]
    assert stopped is not None and stopped.completion_tokens < stopped.model_extra["base_tokens"]
    shorter = client.chat.completions.create(**ASK | {"max_tokens": stopped.completion_tokens}).usage
    assert stopped.model_extra["kl"] == streamed.model_extra["kl"] == shorter.model_extra["kl"]


def test_rows_add_a_search(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, extra_body={"search": {"rows": 4, "chunk_length": 8}})
    usage = answer.usage.model_extra
    assert usage["rounds"] == 3 and usage["base_tokens"] > ASK["max_tokens"] and usage["kl"] > 0


@pytest.mark.parametrize(
    ("model", "search", "param"),
    [
        ("bytes", {"strength": 1}, "search.strength"),
        ("tilted", {"strength": -1}, "search.strength"),
        ("tilted", {"max_kl": -1}, "search.max_kl"),
        ("tilted", {"rows": 0}, "search.rows"),
        ("tilted", {"rows": 100_000}, "search.rows"),
    ],
)
def test_what_cannot_be_is_refused(client: openai.OpenAI, model: str, search: dict[str, float], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**ASK | {"model": model}, extra_body={"search": search})
    assert error.value.param == param
