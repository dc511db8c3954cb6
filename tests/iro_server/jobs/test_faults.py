"""A small fault run: a server process and its workers are killed at random while files arrive and jobs run."""

from __future__ import annotations

import random
import threading
import time

import pytest

from benchmarks.faults_ledger import Phase
from benchmarks.faults_server import Server, ended, insist, kill, served, workers
from benchmarks.faults_uploads import Uploads, sha256
from tests.iro_server.api.serving import GRADER, settings_for, start_job

SERVE_BYTES = (
    "import sys, uvicorn; from iro_server.api.app import create_app; from iro_server.settings import Settings; "
    "from tests.iro_server.api.byte_engine import ByteEngine; "
    "settings = Settings.model_validate_json(sys.argv[1]); "
    "uvicorn.run(create_app(settings, ByteEngine()), port=settings.port)"
)
STRIKES = ("worker", "server", "worker", "worker", "both", "worker", "worker")
SLOW = GRADER | {"name": "slow"}
ITERATIONS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    settings = settings_for(folder / "data", job_concurrency=2, job_restarts=len(STRIKES))
    server = Server(settings, folder / "server.log", SERVE_BYTES)
    with served(server):
        yield server


def strike(server: Server, target: str, rng: random.Random) -> None:
    time.sleep(rng.uniform(0.1, 1.5))
    running = workers(server.settings.data_dir)
    if target != "server":
        for pid in rng.sample(list(running.values()), k=min(1, len(running))):
            kill(pid)
    if target != "worker":
        server.kill()
        server.start()
        server.wait()


def observe(server: Server, jobs: list[str], seen: dict[str, dict]) -> None:
    """Note the events and checkpoints that a client can see now."""
    for job in jobs:
        for read in (server.client.fine_tuning.jobs.list_events, server.client.fine_tuning.jobs.checkpoints.list):
            seen |= {item.id: item.to_dict() for item in read(job, limit=100)}


def bundles(server: Server, job: str) -> dict[str, bytes]:
    folder = server.settings.job_dir(job) / "run"
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("step-*/*"))}


def say(server: Server, model: str) -> str:
    messages = [{"role": "user", "content": "hi"}]
    return server.client.chat.completions.create(model=model, messages=messages, seed=3).choices[0].message.content


@pytest.mark.slow(50)
def test_nothing_acknowledged_is_lost_and_jobs_end_as_if_nobody_had_been_killed(server):
    rng, phase, seen = random.Random(1), Phase("test"), {}
    undisturbed = ended([server], start_job(server.client, iterations=ITERATIONS))
    expected = bundles(server, undisturbed.id), say(server, undisturbed.fine_tuned_model)
    jobs = [start_job(server.client, SLOW, iterations=ITERATIONS) for _ in range(2)]
    uploads = Uploads([server], phase, seed=1)
    uploading = threading.Thread(target=uploads.run, args=(0,))
    uploading.start()
    try:
        for target in STRIKES:
            strike(server, target, rng)
            observe(server, jobs, seen)
    finally:
        uploads.stopping.set()
        uploading.join()
    uploads.check_all()
    assert uploads.promised and not any(phase.faults.values())
    done = [ended([server], job) for job in jobs]
    there: dict[str, dict] = {}
    observe(server, jobs, there)
    assert seen.items() <= there.items()
    told = [item for item in there.values() if item.get("type") == "metrics"]
    assert len(told) == ITERATIONS * len(jobs)  # each step's once
    for job in done:
        assert job.status == "succeeded", job.error
        steps = [each.step_number for each in server.client.fine_tuning.jobs.checkpoints.list(job.id)]
        assert steps == [4, 3, 2, 1]
        assert (bundles(server, job.id), say(server, job.fine_tuned_model)) == expected


@pytest.mark.slow(15)
def test_a_part_that_was_acknowledged_counts_after_the_servers_death(server):
    content = b'{"prompt": "one"}\n', b'{"prompt": "two"}\n'
    client = server.client
    upload = client.uploads.create(
        bytes=sum(map(len, content)), filename="rows.jsonl", mime_type="text/jsonl", purpose="fine-tune"
    )
    parts = [client.uploads.parts.create(upload.id, data=piece).id for piece in content]
    server.kill()
    server.start()
    server.wait()
    done = insist([server], lambda client: client.uploads.complete(upload.id, part_ids=parts))
    assert client.files.content(done.file.id).read() == b"".join(content)


@pytest.mark.slow(11)
def test_a_loss_is_noticed(server):
    phase = Phase("test")
    uploads = Uploads([server], phase, seed=2)
    for name, content in (("kept.jsonl", b'{"prompt": "a"}\n'), ("gone.jsonl", b'{"prompt": "b"}\n')):
        uploads.sent[name] = sha256(content)
        uploads.in_one_request(name, content)
    kept, gone = uploads.promised
    server.client.files.delete(gone)
    path = server.settings.files_dir / kept
    path.write_bytes(path.read_bytes().upper())
    uploads.check_all()
    assert sorted(what.split()[0] for what in phase.faults["lost"]) == sorted([kept, gone])
