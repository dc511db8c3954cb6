"""A job's events as a stream: oldest first, as they come, until the job has ended."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from iro_server.api import job_events
from iro_server.store.database import open_database
from iro_server.store.sweep import _forget
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, new_key, serving, settings_for, start_job, wait_for

WAITS = GRADER | {"name": "waits"}


@contextmanager
def following(client, job_id: str, **query: str) -> Iterator[Iterator[str]]:
    """The lines of a job's stream that are not blank."""
    url = f"{client.base_url}fine_tuning/jobs/{job_id}/events"
    headers = {"authorization": f"Bearer {client.api_key}"}
    with httpx.stream("GET", url, params={"stream": "true"} | query, headers=headers, timeout=120) as response:
        if response.status_code == 200:
            assert response.headers["content-type"].startswith("text/event-stream")
        else:
            response.read()
        response.raise_for_status()
        yield filter(None, response.iter_lines())


def events_of(lines: Iterator[str]) -> list[dict]:
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


def listed(client, job_id: str) -> list[dict]:
    """Oldest first."""
    return [event.to_dict() for event in client.fine_tuning.jobs.list_events(job_id, limit=100).data][::-1]


def test_an_ended_job_streams_all_its_events_and_ends(client, job):
    with following(client, job.id) as lines:
        *body, last = lines
    assert events_of(iter(body)) == listed(client, job.id) and last == "data: [DONE]"
    ids = [line.removeprefix("id: ") for line in body if line.startswith("id: ")]
    assert ids == [event["id"] for event in listed(client, job.id)]
    with following(client, job.id, after=ids[-3]) as lines:
        assert [event["id"] for event in events_of(lines)] == ids[-2:]
    with following(client, job.id, after=ids[-1]) as lines:
        assert list(lines) == ["data: [DONE]"]


def test_events_arrive_while_the_job_runs_and_comments_while_it_waits(client, monkeypatch):
    monkeypatch.setattr(job_events, "COMMENT_SECONDS", 0.1)
    job_id = start_job(client, WAITS, iterations=5)
    with following(client, job_id) as lines:
        for line in lines:  # step 2 comes, after which the job waits to be stopped
            if line.startswith("data: ") and json.loads(line[6:])["data"].get("step") == 2:
                break
        assert client.fine_tuning.jobs.retrieve(job_id).status == "running"
        assert next(line for line in lines if line == ": waiting")
        client.fine_tuning.jobs.cancel(job_id)
        *_, event, done = (line for line in lines if line.startswith("data: "))
    assert json.loads(event[6:])["message"] == "The job was cancelled" and done == "data: [DONE]"


@pytest.mark.parametrize(("job_id", "after"), [("ftjob-none", None), (None, "ftevent-none")])
def test_an_unknown_job_or_event_is_not_found(client, job, job_id, after):
    query = {"after": after} if after else {}
    with pytest.raises(httpx.HTTPStatusError) as error, following(client, job_id or job.id, **query):
        pass
    assert error.value.response.status_code == 404


def test_a_stream_is_none_of_a_keys_requests_at_once_and_streams_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(job_events, "MAX_STREAMS", 1)
    settings = settings_for(tmp_path)
    key, other = new_key(settings, "single", "--concurrency", "1"), new_key(settings, "other")
    with serving(settings, ByteEngine()) as client, ThreadPoolExecutor() as threads:
        other, client = client.with_options(api_key=other), client.with_options(api_key=key)
        job_id = start_job(client, WAITS, iterations=5)
        with following(client, job_id) as lines:
            next(lines)
            assert client.fine_tuning.jobs.retrieve(job_id).id == job_id
            with pytest.raises(httpx.HTTPStatusError) as error, following(client, job_id):
                pass
            assert error.value.response.status_code == 429
            with pytest.raises(httpx.HTTPStatusError) as unknown, following(other, job_id):
                pass
            assert unknown.value.response.status_code == 404
            assert "without 'stream'" in error.value.response.json()["error"]["message"]
        wait_for(lambda: not +job_events.streams)
        with following(client, job_id) as lines:
            rest = threads.submit(list, lines)
            client.fine_tuning.jobs.cancel(job_id)
            assert rest.result(120)[-1] == "data: [DONE]"


def test_a_stream_that_the_server_cuts_goes_on_after_its_last_event(tmp_path):
    with serving(settings_for(tmp_path, request_timeout=1.0), ByteEngine()) as client:
        job_id = start_job(client, WAITS, iterations=5)
        wait_for(lambda: len(client.fine_tuning.jobs.list_events(job_id).data) >= 4)
        with following(client, job_id) as lines:
            first = list(lines)
        assert first and "data: [DONE]" not in first
        client.fine_tuning.jobs.cancel(job_id)
        ended(client, job_id)
        last = [line.removeprefix("id: ") for line in first if line.startswith("id: ")][-1]
        with following(client, job_id, after=last) as lines:
            *rest, done = lines
        streamed = events_of(iter(first)) + events_of(iter(rest))
        assert done == "data: [DONE]" and "The job was cancelled" in [event["message"] for event in streamed]
        # the worker may still record the step that it was at: what comes after the end is not waited for
        assert streamed == listed(client, job_id)[: len(streamed)]


def test_a_stream_whose_place_is_forgotten_ends(tmp_path, monkeypatch):
    """By the sweeper, between two reads of an ended job's events."""
    settings = settings_for(tmp_path)
    read, sessions = job_events._read, open_database(settings)

    def read_and_forget(*arguments):
        page = read(*arguments)
        _forget(sessions, time.time() + 10)
        return page

    monkeypatch.setattr(job_events, "READ", 2)
    with serving(settings, ByteEngine()) as client:
        job = ended(client, start_job(client))
        monkeypatch.setattr(job_events, "_read", read_and_forget)
        with following(client, job.id) as lines:
            assert len(events_of(lines)) == 2
