"""``iro evals``: exports of this server and of OpenAI's, imported anew."""

from __future__ import annotations

import json
import re

import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from iro_server.cli import evals as cli_evals
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import (
    SAYS_Z,
    TEMPLATE,
    ended_run,
    new_eval,
    output_items,
    run_eval,
    sampled,
)
from tests.iro_server.api.serving import serving, settings_for


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return settings_for(tmp_path_factory.mktemp("data"), python_graders="unsafe", max_graded_bytes=1000)


@pytest.fixture(scope="module")
def client(settings):
    with serving(settings, ByteEngine()) as client:
        yield client


def test_what_is_exported_is_imported_with_its_runs(client, tmp_path):
    eval_id = new_eval(client, metadata={"team": "red"})
    run = run_eval(client, eval_id, sampled(5))
    out, url = tmp_path / "eval.json", ["--url", str(client.base_url)]
    exported = CliRunner().invoke(cli_evals.app, ["export", eval_id, "--out", str(out), *url], catch_exceptions=False)
    assert exported.exit_code == 0, exported.output
    assert len(json.loads(out.read_text())["runs"][0]["output_items"]) == 5
    imported = CliRunner().invoke(cli_evals.app, ["import", str(out), *url], catch_exceptions=False)
    new_id, new_run = (line.split()[0] for line in imported.output.splitlines())
    absent = CliRunner().invoke(cli_evals.app, ["export", "eval?a=b", "--out", str(tmp_path / "no"), *url])
    assert str(absent.exception) == "No such eval: eval?a=b"
    made, original = client.evals.retrieve(new_id).to_dict(), client.evals.retrieve(eval_id).to_dict()
    assert {**made, "id": 0, "created_at": 0} == {**original, "id": 0, "created_at": 0}
    ended_run(client, new_id, new_run)
    assert output_items(client, new_id, new_run) == output_items(client, eval_id, run.id)


def test_an_imported_run_keeps_the_nulls_of_its_items():
    items = [{"item": {"q": None, "a": [{"b": None}]}, "sample": {"output_text": "z", "output_json": None}}]
    source = {"type": "jsonl", "source": {"type": "file_content", "id": None, "content": items}, "model": None}
    body = cli_evals.run_request({"id": "evalrun_1", "name": "run", "data_source": source}, None, {})
    assert body["data_source"] == {"type": "jsonl", "source": {"type": "file_content", "content": items}}


def test_a_judge_takes_the_place_of_all_models_of_a_multi(client):
    """In each of the shapes that OpenAI publishes: graders by name, a list of them, and one alone."""
    check = {"type": "string_check", "name": "b", "input": "x", "operation": "eq", "reference": "score_model"}
    judge = {"type": "score_model", "name": "a", "model": "gpt-4.1", "input": [{"role": "user", "content": "Good?"}]}
    for graders, judged in (
        ({"a": judge, "b": check}, {"a": judge | {"model": "bytes"}, "b": check}),
        ([judge, check], [judge | {"model": "bytes"}, check]),
        (judge, judge | {"model": "bytes"}),
    ):
        multi = {"type": "multi", "name": "sum", "graders": graders, "calculate_output": "a"}
        exported = {"data_source_config": {"type": "logs"}, "testing_criteria": [multi, check]}
        assert cli_evals.eval_request(exported)["testing_criteria"] == [multi, check]
        body = cli_evals.eval_request(exported, "bytes")
        assert body["testing_criteria"] == [multi | {"graders": judged}, check]
        assert client.evals.create(**body).testing_criteria[0].type == "multi"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"testing_criteria": None}, "0.testing_criteria"),
        ({"testing_criteria": ["string_check"]}, "0.testing_criteria.0"),
        ({"data_source_config": []}, "0.data_source_config"),
        ({"data_source_config": {"type": "custom", "schema": []}}, "0.data_source_config.schema"),
        ({"data_source_config": {"type": "custom", "schema": {"properties": {"item": 1}}}}, "properties.item"),
        ({"runs": {}}, "0.runs"),
        ({"runs": [1]}, "0.runs.0"),
        ({"runs": [{}]}, "0.runs.0.data_source"),
        ({"runs": [{"data_source": {"type": "jsonl"}}]}, "0.runs.0.data_source.source"),
        ({"runs": [{"data_source": []}]}, "0.runs.0.data_source"),
    ],
)
def test_an_import_of_what_is_no_eval_names_the_field(change, field):
    exported = {"data_source_config": {"type": "custom"}, "testing_criteria": []}
    with pytest.raises(ValidationError, match=re.escape(field)):
        cli_evals.exported_evals(exported | change)


@pytest.mark.parametrize("exported", [None, 3, "eval", [1], {"data": 3}])
def test_an_import_of_other_json_is_refused(exported):
    with pytest.raises(ValidationError):
        cli_evals.exported_evals(exported)


def test_an_openai_export_is_imported_with_another_model_and_its_file(client, tmp_path):
    """As GET https://api.openai.com/v1/evals/{id} and its runs answer."""
    criterion = SAYS_Z | {"id": "says z-2eaf2d8d"}
    judge = {"type": "label_model", "name": "judge", "model": "gpt-4o", "labels": ["a", "b"], "passing_labels": ["a"]}
    judge["input"] = [{"type": "message", "role": "developer", "content": {"type": "input_text", "text": "a or b?"}}]
    schema = {"type": "object", "properties": {"item": {"type": "object"}, "sample": {"type": "object"}}}
    source = {"type": "responses", "model": "gpt-4o-mini", "source": {"type": "file_id", "id": "file-abc"}}
    source |= {"input_messages": TEMPLATE, "sampling_params": {"seed": 42, "top_p": None, "max_completion_tokens": 4}}
    config = {"type": "custom", "schema": schema | {"required": ["item", "sample"]}}
    exported = {"object": "eval", "id": "eval_abc", "created_at": 1, "name": "old", "metadata": {}}
    exported |= {"data_source_config": config, "testing_criteria": [criterion, judge]}
    exported["runs"] = [{"object": "eval.run", "id": "evalrun_abc", "name": "gpt", "data_source": source}]
    (tmp_path / "eval.json").write_text(json.dumps({"object": "list", "data": [exported]}))
    (tmp_path / "items.jsonl").write_text('{"item": {"q": "a"}}\n{"item": {"q": "b"}}\n')
    options = ["--model", "bytes", "--judge", "bytes", "--url", str(client.base_url)]
    command = ["import", str(tmp_path / "eval.json"), *options]
    evals = len(client.evals.list().data)
    with pytest.raises(ValueError, match="--file file-abc=PATH"):
        CliRunner().invoke(cli_evals.app, command, catch_exceptions=False)
    command += ["--file", f"file-abc={tmp_path / 'items.jsonl'}"]
    with pytest.raises(ValueError, match="No such model: nope"):
        CliRunner().invoke(cli_evals.app, [*command, "--model", "nope"], catch_exceptions=False)
    assert len(client.evals.list().data) == evals  # what is refused leaves none
    imported = CliRunner().invoke(cli_evals.app, command, catch_exceptions=False)
    new_id, run_id = (line.split()[0] for line in imported.output.splitlines())
    run = ended_run(client, new_id, run_id)
    assert (run.model, run.name, run.result_counts.total) == ("bytes", "gpt", 2)
    assert client.evals.retrieve(new_id).data_source_config.schema_["required"] == ["item", "sample"]
