"""Graders that sleep hold up nothing but their own project."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import openai
import pytest

from iro_server.graders.base import Sample
from iro_server.jobs.validation import Validation
from iro_server.store.database import find, open_database
from iro_server.store.tables import Job
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import ended, new_key, serving, settings_for, start_job, wait_for
from tests.iro_server.api.test_webhooks import Receiver
from tests.iro_server.jobs.fake_job import JOB

SLEEPS = {"type": "python", "name": "sleeps", "timeout": 60, "source": "import time\ndef grade(*_): time.sleep(60)"}
QUICK = {"type": "python", "name": "quick", "source": "def grade(*_): return 1.0"}
FLOOD = 36  # more than the threads that asyncio.to_thread has on any machine


@contextmanager
def flooded(client: openai.OpenAI) -> Iterator[None]:
    """While ``FLOOD`` calls of a grader that sleeps run or wait, each on a connection of its own."""
    body = json.dumps({"grader": SLEEPS, "model_sample": "x"}).encode()
    head = f"POST /v1/fine_tuning/alpha/graders/run HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
    head += f"Content-Type: application/json\r\nAuthorization: Bearer {client.api_key}\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(FLOOD):
            address = (client.base_url.host, client.base_url.port)
            stack.enter_context(socket.create_connection(address)).sendall(head.encode() + body)
        time.sleep(2)  # those that have a thread sleep by now
        yield


@pytest.mark.slow(8)
def test_a_flood_of_sleeping_graders_holds_up_neither_jobs_nor_webhooks_nor_other_projects_graders(tmp_path):
    settings = settings_for(tmp_path, private_webhooks=True)
    flood, other = new_key(settings, "flood"), new_key(settings, "other")
    with serving(settings, ByteEngine()) as client, Receiver() as receiver:
        client = client.with_options(api_key=other)
        client.webhooks.create(name="mine", url=receiver.url, event_types=["fine_tuning.job.succeeded"])
        with flooded(client.with_options(api_key=flood)):
            assert client.fine_tuning.alpha.graders.run(grader=QUICK, model_sample="x", timeout=50).reward == 1
            ended(client, start_job(client), seconds=50)
            wait_for(lambda: receiver.got)


def test_a_project_whose_graders_all_sleep_is_told_to_wait(tmp_path):
    settings = settings_for(tmp_path, grading_waiting=FLOOD // 2)
    key = new_key(settings, "flood")
    with serving(settings, ByteEngine()) as client:
        client = client.with_options(api_key=key)
        with flooded(client), pytest.raises(openai.InternalServerError) as refusal:
            client.fine_tuning.alpha.graders.run(grader=QUICK, model_sample="x")
    assert (refusal.value.status_code, refusal.value.code) == (503, "overloaded")
    assert int(refusal.value.response.headers["retry-after"]) > 0


def test_clients_that_leave_end_their_graders(tmp_path):
    settings = settings_for(tmp_path)
    key = new_key(settings, "flood")
    with serving(settings, ByteEngine()) as client:
        client = client.with_options(api_key=key)
        with flooded(client):
            pass
        assert client.fine_tuning.alpha.graders.run(grader=QUICK, model_sample="x", timeout=50).reward == 1


class CheckingJob(JOB):
    """Its validation grades one sample: how long that takes is the grader's business."""

    @staticmethod
    def validate(config, model, grader) -> list[str]:
        grader.grade(Sample("x"), {})
        return []


def test_a_job_whose_grader_sleeps_in_validation_holds_up_no_other_projects_job(tmp_path):
    settings = settings_for(tmp_path, align_entry=f"{__name__}:CheckingJob")
    flood, other = new_key(settings, "flood"), new_key(settings, "other")
    with serving(settings, ByteEngine()) as client:
        sleeping = client.with_options(api_key=flood)
        held = [start_job(sleeping, SLEEPS) for _ in range(2)]
        client = client.with_options(api_key=other)
        id = start_job(client)
        wait_for(lambda: client.fine_tuning.jobs.retrieve(id).status != "validating_files", seconds=50)
        assert {sleeping.fine_tuning.jobs.retrieve(each).status for each in held} == {"validating_files"}
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 50  # the server does not wait for what sleeps
    with open_database(settings)() as session:  # and the next one validates the jobs
        assert {find(session, Job, each).status for each in held} == {"validating_files"}


def test_a_check_that_begins_as_the_server_stops_does_not_sleep(tmp_path):
    settings = settings_for(tmp_path, align_entry=f"{__name__}:CheckingJob")
    validation = Validation(settings, open_database(settings), settings.grader_environment("key"), ByteEngine().info)
    validation.stopping = True
    began = time.monotonic()
    alignment = {"training_file": "rows.jsonl", "grader": SLEEPS}
    assert validation._warnings(Job(project="a", config=alignment)) == [] and time.monotonic() - began < 40
