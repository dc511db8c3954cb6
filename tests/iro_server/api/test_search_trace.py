"""A streamed search reports its rounds: a tree of rows whose path to the answer is the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from iro_server.engines.embedded import EmbeddedEngine
from iro_server.store.database import find, open_database
from iro_server.store.tables import Model
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, serving, settings_for
from value_heads import FeatureSpec, LinearHead, ValueStack, save_bundle

MODEL = "ft:bytes:iro::likes-z"
ASK = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "Write one sentence about a river."}],
    "seed": 5,
    "stream": True,
    "stream_options": {"include_search": True},
}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, small_engine: EmbeddedEngine) -> Iterator[openai.OpenAI]:
    """A small frozen model with a value function of random weights: its values differ from row to row."""
    settings = settings_for(tmp_path_factory.mktemp("traced"))
    aligned(settings, MODEL, iterations=1)
    with open_database(settings).begin() as session:
        path = Path(find(session, Model, MODEL).path)
    spec = FeatureSpec(summed=(small_engine.info.num_layers,), position=False)
    weights = torch.randn(
        spec.width(small_engine.frozen.head_weight.shape[1]), generator=torch.Generator().manual_seed(0)
    )
    stack = ValueStack([LinearHead(spec, weights, 0.0)], [1.0])
    save_bundle(path, stack, model_hash=small_engine.info.model_hash, template_hash=small_engine.info.template_hash)
    with serving(settings, small_engine) as client:
        yield client


@pytest.fixture(scope="module")
def bytes_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    settings = settings_for(tmp_path_factory.mktemp("bytes"))
    with serving(settings, ByteEngine("héllo 😀 zzz good night", noise=0.3)) as client:
        aligned(settings, MODEL)
        yield client


class Tree:
    """The rounds of one streamed answer, and its texts by choice."""

    def __init__(self, chunks: Any, prompt: int = 0) -> None:
        self.rounds: list[dict[str, Any]] = []
        self.answers: list[int] = []
        self.texts: dict[int, str] = {}
        for chunk in chunks:
            for choice in chunk.choices:
                text = choice.text if hasattr(choice, "text") else choice.delta.content
                self.texts[choice.index] = self.texts.get(choice.index, "") + (text or "")
            event = chunk.to_dict().get("search")
            if event and event["prompt"] == prompt:
                assert chunk.choices == []
                self.answers = event.get("answers", self.answers)
                self.rounds += [event] if "round" in event else []
        self.beams = {beam["id"]: beam for event in self.rounds for beam in event["beams"]}

    def path(self, id: int | None) -> str:
        return self.path(self.beams[id]["parent"]) + self.beams[id]["text"] if id else ""


SEARCH = {"beam_width": 2, "num_successors": 3, "chunk_length": 4}


def ask(client: openai.OpenAI, search: dict[str, Any] = SEARCH, **changes: Any) -> Any:
    return client.chat.completions.create(**{**ASK, **changes}, extra_body={"search": search})


def test_the_path_of_the_tree_is_the_answer_of_a_frozen_model(embedded):
    tree = Tree(ask(embedded, max_tokens=16))
    assert [event["round"] for event in tree.rounds] == [1, 2, 3, 4]
    assert [len(event["beams"]) for event in tree.rounds] == [6] * 4  # W·K rows
    assert tree.path(tree.answers[0]) == tree.texts[0] != ""
    for event in tree.rounds[:-1]:
        values = sorted(((beam["value"], beam["kept"]) for beam in event["beams"]), reverse=True)
        assert len({value for value, _ in values}) > 1
        assert [kept for _, kept in values] == [True] * 2 + [False] * 4  # the highest values live on
    best = max(tree.rounds[-1]["beams"], key=lambda beam: beam["value"])
    assert tree.answers == [best["id"]] and best["tokens"] == 16
    assert tree.texts == Tree(ask(embedded, max_tokens=16, stream_options=None)).texts  # the same with and without


@pytest.mark.parametrize(
    ("search", "options"),
    [
        ({}, {}),
        ({"selection": "smc"}, {}),
        ({"selection": "top", "chunk_length": 1}, {"n": 3}),
        ({"chunk_length": 3}, {"stop": ["z go"]}),
        ({"beam_width": 1, "num_successors": 8, "chunk_length": None, "pick": "grader"}, {}),
    ],
)
@pytest.mark.parametrize("max_tokens", [9, 40])  # cut within a character, or ended
def test_every_answer_is_a_path_of_the_tree(bytes_client, search, options, max_tokens):
    tree = Tree(ask(bytes_client, SEARCH | search, max_tokens=max_tokens, **options))
    assert [tree.path(id) for id in tree.answers] == [tree.texts[index] for index in range(options.get("n", 1))]
    live = {None}
    for event in tree.rounds:
        assert {beam["parent"] for beam in event["beams"]} <= live
        kept = {beam["id"] for beam in event["beams"] if beam["kept"]}
        finished = {id for id in live if id and tree.beams[id]["finished"]}
        assert set(event["dropped"]) <= finished
        live = kept | finished - set(event["dropped"])
    assert set(tree.answers) <= live and tree.rounds[-1]["last"]


def test_rounds_come_before_the_answer_ends_and_only_where_asked_for(bytes_client):
    chunks = [chunk.to_dict() for chunk in ask(bytes_client, max_tokens=20)]
    searches = [number for number, chunk in enumerate(chunks) if "search" in chunk]
    assert "answers" in chunks[searches[-1]]["search"]
    assert chunks[-1]["choices"][0]["finish_reason"] and searches[-1] < len(chunks) - 1
    silent = ask(bytes_client, max_tokens=20, stream_options={"include_usage": True})
    assert not any("search" in chunk.to_dict() for chunk in silent)
    single = Tree(ask(bytes_client, {"rows": 1}, max_tokens=20))  # nothing is searched for
    assert single.rounds == [] and single.answers == [] and single.texts[0]


def test_each_prompt_of_a_text_completion_has_a_tree(bytes_client):
    create = bytes_client.completions.create
    options = {"stream": True, "stream_options": {"include_search": True, "include_usage": True}}
    chunks = list(
        create(model=MODEL, prompt=["a", "b"], seed=1, max_tokens=20, extra_body={"search": SEARCH}, **options)
    )
    for prompt in (0, 1):
        tree = Tree(chunks, prompt)
        assert tree.path(tree.answers[0]) == tree.texts[prompt] != ""


def test_without_value_functions_there_are_no_values(bytes_client):
    tree = Tree(ask(bytes_client, model="bytes", max_tokens=8))
    assert {beam["value"] for beam in tree.beams.values()} == {None}
