from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, upload
from tests.iro_server.api.test_webhooks import Receiver


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A server with the byte engine and the fake job: its client, an uploaded file, a job that succeeded and its model,
    the ids of one more of those, of one that fails and of one that goes on for long, and a receiver of webhooks."""
    settings = settings_for(tmp_path_factory.mktemp("data"), python_graders="unsafe", job_concurrency=4)
    with serving(settings, ByteEngine()) as client, Receiver() as receiver:
        first, spare = start_job(client), start_job(client)
        failing = start_job(client, GRADER | {"name": "raises"})
        slow = start_job(client, GRADER | {"name": "slow"}, iterations=16)
        job = ended(client, first)
        yield SimpleNamespace(
            client=client,
            file=upload(client),
            job=job,
            model=job.fine_tuned_model,
            spare=spare,
            failing=failing,
            slow=slow,
            receiver=receiver,
        )


@pytest.fixture(scope="session")
def client(world):
    return world.client
