"""Rows of an eval's run: those that bring no sample, or one that cannot be read, and what may stand in an item."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import COUNTED, SAYS_Z, ended_run, new_eval, output_items, run_eval, sampled
from tests.iro_server.api.serving import serving, settings_for

JSON = {"Content-Type": "application/json"}


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    with serving(settings_for(tmp_path_factory.mktemp("data"), python_graders="unsafe"), ByteEngine()) as client:
        yield client


def test_a_row_without_a_sample_is_graded_by_criteria_that_read_its_item_alone(client: openai.OpenAI) -> None:
    of_item = {"type": "string_check", "name": "item", "input": "{{item.q}}", "reference": "a", "operation": "eq"}
    parsed = SAYS_Z | {"name": "parsed", "input": "{{sample.output_json}}"}
    python = {"type": "python", "name": "python", "source": "def grade(sample, item): return len(item['q'])"}
    eval_id = new_eval(client, [of_item, python, SAYS_Z, parsed, COUNTED])
    source = {"type": "jsonl", "source": {"type": "file_content", "content": [{"item": {"q": "a"}}]}}
    (item,) = output_items(client, eval_id, run_eval(client, eval_id, source).id)
    results, errors = item["results"], [result.get("error", "") for result in item["results"]]
    assert [result["score"] for result in results] == [1, 1, 0, 0, 0] and item["status"] == "error"
    assert errors[:2] == ["", ""] and item["sample"]["output"] == []
    assert errors[2].startswith("sample has no field 'output_text'")
    assert errors[3].startswith("sample has no field 'output_json'")
    assert "KeyError: 'output_text'" in errors[4] and "sample has no fields; item has q" in errors[4]


def test_a_sample_without_an_answer_is_refused(client: openai.OpenAI) -> None:
    eval_id = new_eval(client, [SAYS_Z])
    rows = [{"item": {"q": "a"}, "sample": {"output_text": ""}}, {"item": {"q": "a"}, "sample": {"text": "z"}}]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.evals.runs.create(eval_id, data_source=source)
    assert refused.value.param == "data_source.source.content"
    assert "1: sample has neither output_text nor choices" in refused.value.message


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"sample": {"choices": ["hi"]}}, "sample.choices.0: Input should be an object"),
        ({"sample": {"choices": [{"message": "hi"}]}}, "sample.choices.0.message: Input should be an object"),
        ({"sample": {"choices": {"a": 1}}}, "sample.choices: Input should be a valid list"),
        ({"sample": {"output_text": 0}}, "sample.output_text: Input should be a valid string"),
        ({"sample": {"output_text": "z", "output_tools": "f"}}, "sample.output_tools: Input should be a valid list"),
        ({"sample": {"choices": [{"message": {"content": [{"type": "image_url"}]}}]}}, "'image_url' is not supported"),
        ({"item": {"q": "a", "x": float("nan")}}, "not JSON compliant"),
        ({"item": {"q": "a", "x": nested(300)}}, "recursion limit exceeded"),
    ],
)
def test_a_row_that_cannot_be_read_is_refused_with_its_number(client: openai.OpenAI, row: dict, message: str) -> None:
    eval_id = new_eval(client, [SAYS_Z])
    rows = [{"item": {"q": "a"}, "sample": {"output_text": "z"}}, {"item": {"q": "b"}} | row]
    body = {"data_source": {"type": "jsonl", "source": {"type": "file_content", "content": rows}}}
    text = json.dumps(body).replace("NaN", "1e999")
    refused = httpx.post(f"{client.base_url}evals/{eval_id}/runs", content=text, headers=JSON)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"], error["code"]) == (400, "data_source.source.content", "invalid_item")
    assert f"'{error['param']}': 1: " in error["message"] and message in error["message"]


def test_a_schema_that_is_nested_too_deep_is_refused(client: openai.OpenAI) -> None:
    config = {"type": "custom", "item_schema": {"type": "object", "x": nested(300)}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.evals.create(data_source_config=config, testing_criteria=[SAYS_Z])
    assert refused.value.param == "data_source_config"


def test_parameters_that_are_nested_too_deep_are_refused(client: openai.OpenAI) -> None:
    eval_id = new_eval(client, [SAYS_Z])
    with pytest.raises(openai.BadRequestError) as refused:
        client.evals.runs.create(eval_id, data_source=sampled(1, response_format={"x": nested(300)}))
    assert refused.value.param == "data_source"


def test_a_sample_of_choices_has_their_text_and_their_calls(client: openai.OpenAI) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"city": "Oslo"}'}}
    messages = [{"content": [{"type": "text", "text": "z"}]}, {"content": None, "tool_calls": [call]}]
    rows = [{"item": {"q": "a"}, "sample": {"choices": [{"message": message}]}} for message in messages]
    called = SAYS_Z | {"name": "city", "input": "{{sample.output_tools[0].function.arguments}}", "reference": "Oslo"}
    eval_id = new_eval(client, [SAYS_Z, called])
    source = {"type": "jsonl", "source": {"type": "file_content", "content": rows}}
    text, calls = output_items(client, eval_id, run_eval(client, eval_id, source).id)
    assert [result["passed"] for result in text["results"]] == [True, False]
    assert [result["passed"] for result in calls["results"]] == [False, True]
    assert text["sample"]["output"] == [{"role": "assistant", "content": "z"}]
    assert calls["sample"]["output"] == [{"role": "assistant", "content": "", "tool_calls": [call]}]


def test_an_item_with_half_a_surrogate_pair_is_sampled(client: openai.OpenAI) -> None:
    eval_id, data_source = new_eval(client, [SAYS_Z]), sampled(3)
    data_source["source"]["content"][1]["item"]["q"] = "cut \ud83d"
    body = json.dumps({"data_source": data_source})
    created = httpx.post(f"{client.base_url}evals/{eval_id}/runs", content=body, headers=JSON)
    run = ended_run(client, eval_id, created.json()["id"])
    assert (run.status, run.result_counts.total, run.result_counts.errored) == ("completed", 3, 0)
    assert len(output_items(client, eval_id, run.id)) == 3


def test_a_row_of_a_training_file_is_the_item_though_it_has_a_field_item(client: openai.OpenAI) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}], "item": {"q": "shirt"}, "q": "a"}
    file = client.files.create(file=("rows.jsonl", json.dumps(row).encode()), purpose="fine-tune")
    eval_id = new_eval(client, [SAYS_Z | {"input": "{{item.item.q}}", "reference": "shirt"}])
    run = run_eval(client, eval_id, {"type": "jsonl", "source": {"type": "file_id", "id": file.id}})
    (item,) = output_items(client, eval_id, run.id)
    assert item["datasource_item"] == row and item["status"] == "pass"
