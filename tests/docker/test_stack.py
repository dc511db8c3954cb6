"""All services together, started as compose starts them: a real job, then another while each service restarts in turn.

vLLM is one of them: its environment must be there (`make vllm`).
"""

from __future__ import annotations

import pytest
from openai.types.fine_tuning import FineTuningJob

from benchmarks.deployment_client import COUNT_LETTER, ROWS
from benchmarks.faults_server import ended, insist, wait_for
from benchmarks.postgres import programs
from iro_server.graders.sandbox import isolation_problem

psycopg = pytest.importorskip("psycopg", reason="needs the extra postgres")

from tests.docker.stack import ENGINE_KEY, HAS_ENGINE, MODEL, PASSWORD, VLLM, Stack, stack  # noqa: E402

NAME = MODEL.split("/")[-1]
GRADER = {"type": "python", "name": "letters", "source": COUNT_LETTER}
SMALL = {"rollouts_per_prompt": 2, "beam_width": 2, "num_successors": 2, "chunk_length": 4, "max_tokens": 8}
SMALL |= {"validation_prompts": 2, "early_stop": False}
SMALL |= {"value_model": "lora", "backbone_layers": 1}


def start_job(running: Stack, file: str, iterations: int) -> str:
    method = {"type": "reinforcement", "reinforcement": {"grader": GRADER, "iro": SMALL | {"iterations": iterations}}}
    jobs = running.client.fine_tuning.jobs
    return jobs.create(model=NAME, training_file=file, method=method, seed=3).id


def told(running: Stack, job: str) -> list[str]:
    events = insist([running], lambda client: client.fine_tuning.jobs.list_events(job, limit=100).data)
    return [event.message for event in reversed(events)]


def model_of(running: Stack, job: FineTuningJob) -> str:
    """What came of a job that ran to its end. So small a one may not beat the base model: then its checkpoint, which
    searches all the same."""
    assert job.status == "succeeded", job.error
    if job.iro["improved"]:
        return job.fine_tuned_model
    checkpoints = insist([running], lambda client: client.fine_tuning.jobs.checkpoints.list(job.id).data)
    return checkpoints[0].fine_tuned_model_checkpoint


def say(running: Stack, model: str) -> str:
    def ask(client) -> str:
        return client.completions.create(model=model, prompt="The film", max_tokens=8, seed=5).choices[0].text

    return insist([running], ask)


def restart(running: Stack, service: str) -> None:
    if service == "postgres":
        running.database.crash()
        running.database.start()
    else:
        running.crash(service)
        running.start(service)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_ENGINE, reason=f"no {VLLM}: `make vllm` installs vLLM")
@pytest.mark.timeout(3600)
@pytest.mark.skipif(programs() is None, reason="needs PostgreSQL's programs")
def test_nothing_is_lost_while_each_service_restarts_in_turn(tmp_path_factory):
    if problem := isolation_problem():
        pytest.skip(f"this host does not isolate: {problem}")
    with stack(tmp_path_factory.mktemp("stack")) as running:
        assert "first API key" in running.run("setup")
        key = running.client.api_key
        assert "first API key" not in running.run("setup") and running.client.api_key == key
        services = ["vllm", "server", "worker"]
        for service in services:
            running.start(service)

        file = running.client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id
        first = ended([running], start_job(running, file, iterations=2))
        model = model_of(running, first)
        said = say(running, model)
        assert (
            "Paris"
            in running.client.chat.completions.create(
                model=NAME, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
            )
            .choices[0]
            .message.content
        )

        second = start_job(running, file, iterations=3)
        for service in ["postgres", "worker", "vllm", "server"]:
            status = wait_for(lambda: begun(running, second), "the job to run")
            assert status == "running", f"the job was over before {service} could be killed: {status}"
            restart(running, service)
        job = ended([running], second, seconds=1200)
        newest = model_of(running, job)
        messages = told(running, second)
        for step in (1, 2, 3):
            assert messages.count(f"Checkpoint created at step {step}") == 1
        assert any("goes on" in message for message in messages)
        assert say(running, model) == said
        assert say(running, newest)
        assert insist([running], lambda client: client.files.content(file).read()) == ROWS

        running.stop("worker")
        running.stop("server")
        logs = "".join(path.read_text() for path in running.folder.rglob("*.log"))
        assert not [secret for secret in (PASSWORD, ENGINE_KEY, key) if secret in logs]
        with pytest.raises(psycopg.OperationalError, match="no password supplied"):
            psycopg.connect(f"postgresql://iro@{running.here['postgres:5432']}/iro")


def begun(running: Stack, job: str) -> str | None:
    status = insist([running], lambda client: client.fine_tuning.jobs.retrieve(job).status)
    return None if status in ("validating_files", "queued") else status
