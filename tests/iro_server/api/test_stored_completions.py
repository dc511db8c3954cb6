"""Stored chat completions by the official client: listed, filtered, changed, deleted, and an eval's items."""

from __future__ import annotations

import httpx
import openai
import pytest

from iro_server.store import keys
from iro_server.store.database import open_database
from iro_server.store.sweep import sweep
from iro_server.store.tables import Completion
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import SAYS_Z, output_items, run_eval
from tests.iro_server.api.serving import serving, settings_for, wait_for
from tests.iro_server.api.test_tools import SAYS, TOOLS

HI = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]
STORED = {"type": "stored_completions"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return settings_for(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def client(settings):
    with serving(settings, ByteEngine()) as client:
        yield client


def stored(client, metadata=None, **options):
    options = {"model": "bytes", "messages": HI, "max_tokens": 4} | options
    return client.chat.completions.create(**options, store=True, metadata=metadata)


def refusal(call) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as error:
        call()
    return error.value


def test_a_stored_completion_is_the_answer_with_its_messages(client):
    completion = stored(client, {"team": "red"}, n=2, logprobs=True)
    retrieved = client.chat.completions.retrieve(completion.id)
    assert retrieved.to_dict() == completion.to_dict() | {"metadata": {"team": "red"}}
    messages = list(client.chat.completions.messages.list(completion.id))
    assert [(m.role, m.content) for m in messages] == [(m["role"], m["content"]) for m in HI]
    first, *others = client.chat.completions.messages.list(completion.id, order="desc", limit=1)
    assert first.content == "hi" and [m.role for m in others] == ["system"]  # the next page
    updated = client.chat.completions.update(completion.id, metadata={"team": "blue"})
    assert updated.to_dict() == completion.to_dict() | {"metadata": {"team": "blue"}}
    assert client.chat.completions.delete(completion.id).deleted
    for call in (client.chat.completions.retrieve, client.chat.completions.delete):
        assert refusal(lambda call=call: call(completion.id)).status_code == 404


def test_without_store_nothing_is_kept(client):
    answer = client.chat.completions.create(model="bytes", messages=HI, max_tokens=2, metadata={"team": "red"})
    assert refusal(lambda: client.chat.completions.retrieve(answer.id)).status_code == 404


def test_a_stream_is_stored_as_the_answer_that_it_comes_to(client):
    chunks = list(stored(client, {"how": "streamed"}, seed=5, max_tokens=6, stream=True))
    (retrieved,) = client.chat.completions.list(metadata={"how": "streamed"})
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert (retrieved.id, retrieved.choices[0].message.content) == (chunks[0].id, text)
    assert (retrieved.object, retrieved.choices[0].finish_reason) == ("chat.completion", "length")
    assert retrieved.usage.completion_tokens == 6


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_calls_are_stored_with_the_ids_that_were_streamed(tmp_path, choice):
    with serving(settings_for(tmp_path), ByteEngine(script=SAYS, noise=0.0, length=4096)) as client:
        chunks = list(stored(client, tools=TOOLS, tool_choice=choice, max_tokens=200, n=2, stream=True))
        retrieved = client.chat.completions.retrieve(chunks[0].id)
    deltas = [(part.index, part.delta.tool_calls or []) for chunk in chunks for part in chunk.choices]
    streamed = sorted((index, call.id) for index, calls in deltas for call in calls if call.id)
    in_store = sorted((answer.index, call.id) for answer in retrieved.choices for call in answer.message.tool_calls)
    assert streamed == in_store and len({id for _, id in in_store}) == (4 if choice == "auto" else 2)


def test_lists_are_filtered_by_model_and_by_all_metadata_and_go_in_pages(client):
    tag = {"run": "filters"}
    ids = [stored(client, tag | {"kind": kind}).id for kind in ("a", "b", "a", "A", 'q"]\\ %_\0')]
    listing = client.chat.completions.list

    def listed(**metadata):
        return [completion.id for completion in listing(metadata=tag | metadata, limit=2)]

    assert listed() == ids  # over three pages
    assert listed(kind="a") == [ids[0], ids[2]] and listed(kind="A") == [ids[3]]
    assert listed(kind='q"]\\ %_\0') == [ids[4]] and listed(kind="%") == [] == listed(other="a")
    assert [c.id for c in listing(metadata=tag, order="desc")] == ids[::-1]
    assert [*listing(metadata=tag, model="other")] == [] and len([*listing(metadata=tag, model="bytes")]) == 5
    client.chat.completions.update(ids[0], metadata=tag)
    assert listed(kind="a") == [ids[2]]
    assert refusal(lambda: [*listing(after="chatcmpl-0")]).status_code == 404
    assert refusal(lambda: [*listing(metadata={str(n): "x" for n in range(17)})]).param == "metadata"
    with httpx.Client(base_url=str(client.base_url)) as http:
        page = http.get("chat/completions", params={"metadata[run]": "filters", "limit": 3}).json()
    assert page["has_more"] and (page["first_id"], page["last_id"]) == (ids[0], ids[2])


def test_a_list_goes_on_while_its_completions_are_relabelled(client):
    ids = [stored(client, {"reviewed": "no"}).id for _ in range(5)]
    listed = []
    for completion in client.chat.completions.list(metadata={"reviewed": "no"}, limit=2):
        client.chat.completions.update(completion.id, metadata={"reviewed": "yes"})
        listed.append(completion.id)
    assert listed == ids


def test_a_list_whose_completions_are_deleted_says_to_read_it_first(client):
    for _ in range(4):
        stored(client, {"use": "deletion"})
    listing, delete = client.chat.completions.list, client.chat.completions.delete
    gone = refusal(lambda: [delete(each.id) for each in listing(metadata={"use": "deletion"}, limit=2)])
    assert (gone.status_code, gone.param, gone.code) == (404, "after", "completion_not_found")
    assert "read the whole list first" in gone.message
    assert len([delete(each.id) for each in [*listing(metadata={"use": "deletion"}, limit=1)]]) == 2


def test_too_much_metadata_is_refused(client):
    assert refusal(lambda: stored(client, {"a": "b" * 513})).param == "metadata.a"
    assert refusal(lambda: stored(client, {str(n): "x" for n in range(17)})).param == "metadata"


def test_completions_expire_and_are_swept(tmp_path, database_url):
    settings = settings_for(tmp_path, database_url=database_url, completion_seconds=1)
    sessions = open_database(settings)
    with serving(settings, ByteEngine()) as client:
        completion = stored(client, {"a\0": "b\0"}, messages=[{"role": "user", "content": "a\0b"}])

        def is_gone() -> bool:
            return [*client.chat.completions.list()] == []

        wait_for(is_gone)
        assert refusal(lambda: client.chat.completions.retrieve(completion.id)).status_code == 404
        assert refusal(lambda: client.chat.completions.update(completion.id, metadata={})).status_code == 404
    sweep(settings, sessions)
    with sessions() as session:
        assert session.query(Completion).count() == 0


def test_a_completion_belongs_to_its_project_and_counts_against_its_quota(tmp_path):
    settings = settings_for(tmp_path, project_completions=1)
    sessions = open_database(settings)
    secrets = [keys.create(sessions, name, name, scopes=["read", "generate", "train"])[1] for name in ("us", "them")]
    with serving(settings, ByteEngine()) as client:
        ours, theirs = (client.with_options(api_key=secret) for secret in secrets)
        completion = stored(ours)
        full = refusal(lambda: stored(ours))
        assert full.code == "insufficient_quota" and "stored chat completions" in full.message
        assert refusal(lambda: stored(ours, stream=True)).code == "insufficient_quota"
        assert [*theirs.chat.completions.list()] == [] and [c.id for c in ours.chat.completions.list()] == [
            completion.id
        ]
        theirs_eval = theirs.evals.create(data_source_config=STORED, testing_criteria=[SAYS_Z]).id
        empty = refusal(
            lambda: theirs.evals.runs.create(theirs_eval, data_source={"type": "completions", "source": STORED})
        )
        assert (empty.param, empty.code) == ("data_source.source", "invalid_item")


def test_an_eval_grades_stored_answers_or_samples_their_requests_anew(client):
    for number in range(6):
        ask = [{"role": "user", "content": f"say {number}"}]
        stored(client, {"use": "eval", "version": str(number % 2)}, messages=ask, seed=number, max_tokens=2)
    config = {"type": "stored_completions", "metadata": {"use": "eval"}}
    quotes = SAYS_Z | {"name": "asked", "input": "{{item.input.0.content}}", "reference": "say", "operation": "like"}
    evaluation = client.evals.create(data_source_config=config, testing_criteria=[SAYS_Z, quotes])
    assert evaluation.data_source_config.type == "stored_completions"
    assert evaluation.data_source_config.metadata == {"use": "eval"}
    completions = [*client.chat.completions.list(metadata={"use": "eval"})]

    source = {"type": "completions", "source": STORED}
    run = run_eval(client, evaluation.id, source)
    assert (run.status, run.result_counts.total, run.model) == ("completed", 6, "")
    items = output_items(client, evaluation.id, run.id)
    assert [item["sample"]["output"][0]["content"] for item in items] == [
        completion.choices[0].message.content for completion in completions
    ]
    for item, completion in zip(items, completions, strict=True):
        expected = {"says z": "z" in completion.choices[0].message.content, "asked": True}
        assert {result["name"]: result["passed"] for result in item["results"]} == expected

    def num_items(**filters):
        return run_eval(client, evaluation.id, {"type": "completions", "source": STORED | filters}).result_counts.total

    assert num_items(metadata={"version": "1"}) == 3 and num_items(limit=2) == 2
    assert num_items(created_after=0, created_before=2**40, model="bytes") == 6

    resampling = source | {"model": "bytes", "sampling_params": {"max_completion_tokens": 3, "seed": 1}}
    sampled = run_eval(client, evaluation.id, resampling)
    assert sampled.result_counts.total == 6 and sampled.model == "bytes"
    inputs = [item["sample"]["input"] for item in output_items(client, evaluation.id, sampled.id)]
    assert inputs == [[{"role": "user", "content": f"say {number}"}] for number in range(6)]


@pytest.mark.slow(5)
def test_a_stored_answers_calls_are_graded(tmp_path):
    called = SAYS_Z | {"name": "called", "input": "{{sample.output_tools[0].function.name}}", "operation": "eq"}
    called["reference"] = TOOLS[0]["function"]["name"]
    with serving(settings_for(tmp_path), ByteEngine(script=SAYS, noise=0.0, length=4096)) as client:
        completion = stored(client, {"use": "calls"}, tools=TOOLS, max_tokens=200)
        assert completion.choices[0].message.tool_calls[0].function.name == called["reference"]
        config = {"type": "logs", "metadata": {"use": "calls"}}
        evaluation = client.evals.create(data_source_config=config, testing_criteria=[called])
        run = run_eval(client, evaluation.id, {"type": "completions", "source": STORED})
    assert run.result_counts.passed == 1
