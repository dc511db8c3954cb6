"""``search.pick: "grader"``: where the grader asks this server, and what others learn of it."""

from __future__ import annotations

import openai
import pytest

from iro_server.store.database import open_database
from iro_server.store.tables import Permission, new_id
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, aligned, ended, new_key, serving, settings_for, start_job, wait_for
from tests.iro_server.api.test_tools import RESPONSE_TOOLS, SAYS, TOOLS

HI = [{"role": "user", "content": "hi"}]
SEARCH = {"beam_width": 2, "num_successors": 2, "pick": "grader"}
SCORE = {
    "type": "score_model",
    "name": "judge",
    "model": "bytes",
    "input": [{"role": "user", "content": "Rate {{ sample.output_text }}"}],
    "sampling_params": {"temperature": 0, "max_tokens": 4},
}
LABEL = SCORE | {"type": "label_model", "labels": ["0.7", "0.2"], "passing_labels": ["0.7"]}
CALLS = GRADER | {
    "input": "{{ sample.output_tools[0].function.name }} {{ sample.output_text }}",
    "reference": "get_weather I look.",
}
FAILS = {"type": "python", "name": "fails", "source": "def grade(*_): raise ValueError('the secret answer is 42')"}


@pytest.mark.parametrize("judge", [SCORE, LABEL], ids=["score_model", "label_model"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_judge_on_this_server_may_pick_though_its_search_took_all_rows(tmp_path, stream, judge):
    settings = settings_for(tmp_path, max_active_rows=4)
    key, model = new_key(settings, "default"), aligned(settings, "mine", grader=judge)
    with serving(settings, ByteEngine("0.7", noise=0.1)) as client:
        client = client.with_options(api_key=key, timeout=15)
        body = {"search": SEARCH}
        answer = client.chat.completions.create(
            model=model, messages=HI, max_tokens=4, n=2, stream=stream, extra_body=body
        )
        if stream:
            assert {choice.index for part in answer for choice in part.choices} == {0, 1}
        else:
            assert len(answer.choices) == 2


def test_only_the_owner_reads_what_the_grader_says(tmp_path):
    settings = settings_for(tmp_path)
    owner, guest = new_key(settings, "default"), new_key(settings, "guest")
    model = aligned(settings, "shared", grader=FAILS)
    with open_database(settings).begin() as session:
        session.add(Permission(id=new_id("cp_"), model_name=model, project_id="guest"))
    with serving(settings, ByteEngine()) as client:

        def refusal(key: str) -> openai.BadRequestError:
            with pytest.raises(openai.BadRequestError) as refused:
                client.with_options(api_key=key).chat.completions.create(
                    model=model, messages=HI, max_tokens=4, extra_body={"search": SEARCH}
                )
            return refused.value

        assert "the secret answer is 42" in refusal(owner).message
        message = refusal(guest)
    assert message.body["message"] == "The model's grader could grade no completion."
    assert message.body["param"] == "search.pick" and "secret" not in message.response.text


@pytest.mark.parametrize(
    "grader",
    [
        GRADER | {"reference": "{{ item.answer }}"},
        {"type": "python", "name": "reads", "source": "def grade(sample, item): return item['answer']"},
    ],
    ids=["template", "python"],
)
def test_a_grader_that_lacks_the_item_says_where_to_send_it(tmp_path, grader):
    settings = settings_for(tmp_path, python_graders="unsafe")
    model = aligned(settings, "mine", grader=grader)
    with serving(settings, ByteEngine()) as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=HI, max_tokens=4, extra_body={"search": SEARCH})
    assert refused.value.body["message"].endswith("; send the row's fields as `item` of the request")


def test_a_grader_that_picks_reads_the_calls_of_an_answer(tmp_path):
    """As it does in a job and in an eval."""
    settings = settings_for(tmp_path)
    model, body = aligned(settings, "mine", grader=CALLS), {"search": SEARCH}
    with serving(settings, ByteEngine(script=SAYS, noise=0.0, length=4096)) as client:
        answer = client.chat.completions.create(model=model, messages=HI, tools=TOOLS, max_tokens=200, extra_body=body)
        response = client.responses.create(
            model=model, input="hi", tools=RESPONSE_TOOLS, max_output_tokens=200, extra_body=body
        )
    assert [call.function.name for call in answer.choices[0].message.tool_calls] == ["get_weather", "get_time"]
    assert [item.name for item in response.output[1:]] == ["get_weather", "get_time"]


def test_a_model_answers_whose_grader_may_not_run_any_more(tmp_path):
    settings = settings_for(tmp_path, python_graders="off")
    name = aligned(settings, "ft:bytes:iro::x", grader=FAILS)
    with serving(settings, ByteEngine()) as client:
        assert client.chat.completions.create(model=name, messages=HI, max_tokens=3).choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="no grader"):
            search = {"pick": "grader"}
            client.chat.completions.create(model=name, messages=HI, max_tokens=3, extra_body={"search": search})


def test_a_grader_of_an_endpoint_that_is_not_allowed_is_gone_with_the_first_key(tmp_path):
    """Before it, on loopback, graders may ask any endpoint; this one runs at once and has been used."""
    settings = settings_for(tmp_path)
    model = aligned(settings, "mine", grader=SCORE | {"base_url": "http://127.0.0.1:1/v1"})

    def ask(client):
        with pytest.raises(openai.APIStatusError) as refused:
            client.chat.completions.create(model=model, messages=HI, max_tokens=4, extra_body={"search": SEARCH})
        return refused.value.message

    with serving(settings, ByteEngine()) as client:
        assert "no grader" not in ask(client)
        client.api_key = new_key(settings, "default")
        wait_for(lambda: "no grader" in ask(client), seconds=20)


def test_the_jobs_grader_may_pick(client):
    """The grader wants the item's answer in the text: few completions have it, and the best by reward come first."""
    grader = GRADER | {"reference": "{{item.answer}}", "operation": "like"}
    model = ended(client, start_job(client, grader)).fine_tuned_model
    search = {"beam_width": 1, "num_successors": 16, "chunk_length": None, "pick": "grader"}
    body = {"search": search, "item": {"answer": "zz"}}
    answer = client.chat.completions.create(model=model, messages=HI, n=16, seed=2, max_tokens=6, extra_body=body)
    graded = ["zz" in choice.message.content for choice in answer.choices]
    assert graded == sorted(graded, reverse=True) and 0 < sum(graded) < 16
    with pytest.raises(openai.BadRequestError, match="answer"):  # the item that the template reads
        client.chat.completions.create(model=model, messages=HI, extra_body={"search": search})


def test_the_base_model_has_no_grader_to_pick(client):
    with pytest.raises(openai.BadRequestError, match="no grader") as refused:
        body = {"search": {"pick": "grader", "num_successors": 2}}
        client.chat.completions.create(model="bytes", messages=HI, extra_body=body)
    assert refused.value.body["param"] == "search.pick"
