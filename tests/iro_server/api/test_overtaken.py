"""Requests that overtake one another: one deletes what the other changes or names."""

from __future__ import annotations

import openai
import pytest

from iro_server.api import eval_runs, evals
from tests.iro_server.api.serving import GRADER


def new_eval(client):
    config = {"type": "custom", "item_schema": {"type": "object"}, "include_sample_schema": True}
    return client.evals.create(data_source_config=config, testing_criteria=[GRADER])


def test_an_eval_that_is_deleted_while_it_is_changed(client, monkeypatch):
    eval_id, find = new_eval(client).id, evals.find

    def find_and_delete(session, table, id):
        row = find(session, table, id)
        client.evals.delete(id)
        return row

    monkeypatch.setattr(evals, "find", find_and_delete)
    with pytest.raises(openai.ConflictError):
        client.evals.update(eval_id, name="b")


def test_an_eval_that_is_deleted_while_a_run_begins(client, monkeypatch):
    eval_id = new_eval(client).id
    monkeypatch.setattr(eval_runs, "check_eval_runs", lambda *_: client.evals.delete(eval_id))
    content = [{"item": {"a": "b"}, "sample": {"output_text": "z"}}]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": content}}
    with pytest.raises(openai.ConflictError):
        client.evals.runs.create(eval_id, data_source=source)
