"""Pages of large rows, and how large a row may be."""

from __future__ import annotations

import json
import threading

import httpx
import openai
import pytest

from iro_server.api import listing
from iro_server.api.errors import APIError
from iro_server.api.stored_size import check_stored_size
from iro_server.store import database
from iro_server.store.tables import Job
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.evals import CRITERIA, CUSTOM, SAYS_Z, contents, new_eval
from tests.iro_server.api.serving import GRADER, aligned, serving, settings_for, start_job, upload


@pytest.fixture(params=["sqlite", "postgresql"], scope="module")
def client(request, tmp_path_factory, new_database):
    folder, database_url = tmp_path_factory.mktemp("data"), new_database(request.param)
    with serving(
        settings_for(folder, job_concurrency=0, eval_concurrency=0, database_url=database_url), ByteEngine()
    ) as client:
        yield client


@pytest.mark.both_databases
def test_a_page_ends_before_it_is_too_large_and_has_one_row_at_the_least(client, monkeypatch):
    ids = [start_job(client, GRADER | {"name": "n" * 1000}) for _ in range(4)]
    for rows_a_page, page_bytes in ((1, 1), (2, 4500)):
        monkeypatch.setattr(database, "PAGE_BYTES", page_bytes)
        page = client.fine_tuning.jobs.list(limit=100)
        assert len(page.data) == rows_a_page and page.has_more
        assert [job.id for job in client.fine_tuning.jobs.list(limit=100)][:4] == ids[::-1]
    monkeypatch.undo()
    page = client.fine_tuning.jobs.list(limit=3)
    assert len(page.data) == 3 and page.has_more
    assert not client.fine_tuning.jobs.list(limit=100).has_more


@pytest.mark.parametrize("path", ["/fine_tuning/jobs", "/files", "/evals", "/batches", "/chat/completions"])
def test_a_list_is_encoded_by_the_thread_that_read_it(client, monkeypatch, path):
    threads = []

    class Noted(listing.AsciiJSON):
        def render(self, content):
            threads.append(threading.current_thread().name)
            return super().render(content)

    monkeypatch.setattr(listing, "AsciiJSON", Noted)
    assert client.get(path, cast_to=object)["object"] == "list"
    assert "AnyIO worker thread" in threads[0]


LARGE = "n" * 600_000


@pytest.mark.parametrize(
    ("reinforcement", "param"),
    [
        ({"grader": GRADER | {"name": LARGE}}, "method.reinforcement.grader"),
        ({"grader": GRADER, "response_format": {"type": LARGE}}, "method.reinforcement.response_format"),
        ({"grader": GRADER | {"name": LARGE[:300_000]}, "response_format": {"type": LARGE[:300_000]}}, "method"),
    ],
)
def test_a_method_that_takes_too_much_of_the_database_is_refused(client, reinforcement, param):
    method = {"type": "reinforcement", "reinforcement": reinforcement}
    with pytest.raises(openai.BadRequestError, match="bytes as JSON, over 524288") as refused:
        client.fine_tuning.jobs.create(model="bytes", training_file=upload(client), method=method)
    assert (refused.value.param, refused.value.code) == (param, "value_too_large")


def test_integrations_that_take_too_much_of_the_database_are_refused(client):
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER}}
    wandb = [{"type": "wandb", "wandb": {"project": LARGE}}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.fine_tuning.jobs.create(model="bytes", training_file=upload(client), method=method, integrations=wandb)
    assert (refused.value.param, refused.value.code) == ("integrations", "value_too_large")


@pytest.mark.parametrize(
    ("config", "criteria", "param"),
    [
        (CUSTOM, [CRITERIA[0] | {"name": LARGE}], "testing_criteria"),
        (CUSTOM | {"item_schema": {"type": "object", "title": LARGE}}, CRITERIA, "data_source_config"),
    ],
)
def test_an_eval_that_takes_too_much_of_the_database_is_refused(client, config, criteria, param):
    with pytest.raises(openai.BadRequestError, match="bytes as JSON, over 524288") as refused:
        client.evals.create(data_source_config=config, testing_criteria=criteria)
    assert (refused.value.param, refused.value.code) == (param, "value_too_large")


@pytest.mark.parametrize("number", ["1e999", "-Infinity", "NaN"])
def test_a_schema_with_a_number_that_is_not_finite_is_refused_and_jobs_are_listed_still(client, number):
    schema = {"type": "object", "properties": {"a": {"type": "number", "default": "NUMBER"}}}
    format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "response_format": format}}
    body = json.dumps({"model": "bytes", "training_file": upload(client), "method": method})
    with httpx.Client(base_url=str(client.base_url), headers={"content-type": "application/json"}) as http:
        answer = http.post("fine_tuning/jobs", content=body.replace('"NUMBER"', number))
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_value")
        assert answer.json()["error"]["param"] == "method.reinforcement.response_format"
        assert http.get("fine_tuning/jobs").status_code == 200


def test_a_value_that_is_nested_too_deep_to_be_written_is_refused():
    value = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(APIError, match="'method': it is nested too deep") as refused:
        check_stored_size(value, "method", 10**9)
    assert refused.value.status == 400


def test_a_stored_number_that_is_not_finite_is_listed_as_null(tmp_path):
    settings = settings_for(tmp_path)
    aligned(settings, "old")
    with database.open_database(settings).begin() as session:
        job = session.query(Job).one()
        job.method = job.method | {"largest": float("inf"), "text": "NaN"}
    with serving(settings, ByteEngine()) as client:
        (shown,) = client.get("/fine_tuning/jobs", cast_to=object)["data"]
    assert (shown["method"]["largest"], shown["method"]["text"]) == (None, "NaN")


@pytest.mark.both_databases
def test_a_list_goes_on_from_a_row_that_has_left_its_filter(client):
    evaluation = new_eval(client, [SAYS_Z])
    ids = [
        client.evals.runs.create(evaluation, data_source={"type": "jsonl", "source": contents(1)}).id for _ in range(5)
    ]
    listed = []
    for run in client.evals.runs.list(evaluation, status="queued", limit=2):
        client.evals.runs.cancel(run.id, eval_id=evaluation)
        listed.append(run.id)
    assert listed == ids
    other = new_eval(client, [SAYS_Z])
    with pytest.raises(openai.NotFoundError, match="No such eval run: evalrun_") as unknown:
        client.evals.runs.list(other, after=ids[0])
    assert unknown.value.code == "eval_run_not_found"
