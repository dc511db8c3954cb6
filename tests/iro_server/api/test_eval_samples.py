"""Rows of an eval's run that bring no sample, or one without an answer."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import COUNTED, SAYS_Z, new_eval, output_items, run_eval
from tests.iro_server.api.serving import serving, settings_for


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
