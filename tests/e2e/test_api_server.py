"""The real server on the real model and the real alignment job, in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import openai
import pytest

from iro_server.engines.ports import free_port
from iro_server.jobs import lock
from iro_server.settings import Settings
from tests.iro_server.api.serving import conforms, ended, upload, wait_for

MODEL = Settings().model_name
SERVE = "import sys; from iro_server.api.app import serve; from iro_server.settings import Settings; "
SERVE += "serve(Settings.model_validate_json(sys.argv[1]))"
OPENINGS = [
    "The film",
    "I saw this",
    "The acting was",
    "My wife and I",
    "This story",
    "What a",
    "The plot",
    "It begins",
    "We went to",
    "After the first",
    "Nobody in",
    "The music",
    "Her voice",
    "At the end",
    "A friend",
    "The director",
]
ROWS = "".join(json.dumps({"prompt": opening, "letter": "e"}) + "\n" for opening in OPENINGS).encode()
COUNT_LETTER = "def grade(sample, item):\n    return sample['output_text'].count(item['letter']) / 10\n"
SMALL = {"iterations": 2, "rollouts_per_prompt": 8, "beam_width": 2, "num_successors": 4, "chunk_length": 2}
SMALL |= {
    "max_tokens": 8,
    "validation_prompts": 4,
    "tilt": "off",
    "keep_unproven": True,
}  # served by its search in any case


@contextmanager
def server(settings: Settings):
    """A server process, killed at the end unless it has gone already; and a client."""
    process = subprocess.Popen([sys.executable, "-c", SERVE, settings.model_dump_json()])
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{settings.port}/v1", api_key="none", max_retries=0)

    def up() -> bool:
        assert process.poll() is None, "the server did not start"
        try:
            return client.models.list().data[0].id == MODEL
        except openai.APIConnectionError:
            return False

    try:
        wait_for(up, seconds=300)
        yield process, client
    finally:
        process.terminate()
        process.wait()


@pytest.fixture
def settings(tmp_path):
    return Settings(data_dir=tmp_path, port=free_port(), heartbeat=0.2)


def create_job(client, source: str = COUNT_LETTER) -> str:
    grader = {"type": "python", "name": "letters", "source": source}
    options = SMALL | {"iterations": 1, "rollouts_per_prompt": 4}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": options}}
    return client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client, ROWS), method=method, seed=3).id


def say(client, model: str, **options) -> openai.types.Completion:
    return client.completions.create(model=model, prompt="The film", seed=5, **({"max_tokens": 12} | options))


@pytest.mark.slow(90)
def test_a_job_survives_the_death_of_server_and_worker_and_its_model_is_served(settings):
    with server(settings) as (process, client):
        chat = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "What is the capital of France?"}], temperature=0
        )
        assert "Paris" in conforms(chat).choices[0].message.content
        job_id = create_job(client)
        wait_for(lambda: lock.holder(settings.job_dir(job_id)))
        wait_for(lambda: any(e.type == "metrics" for e in client.fine_tuning.jobs.list_events(job_id)), seconds=300)
        process.kill()
        process.wait()
        os.kill(lock.holder(settings.job_dir(job_id)), signal.SIGKILL)
    with server(settings) as (_, client):
        job = ended(client, job_id, seconds=300)
        assert job.status == "succeeded", job.error
        told = [event.message for event in client.fine_tuning.jobs.list_events(job_id)]
        assert "The worker died while the server was away; the job goes on" in told
        assert sum(message.startswith("The frozen model") for message in told) == 1  # its baseline was kept
        guided = conforms(say(client, job.fine_tuned_model))
        assert guided.usage.value_tokens == guided.usage.base_tokens > 0
        streamed = "".join(chunk.choices[0].text for chunk in say(client, job.fine_tuned_model, stream=True))
        assert streamed == guided.choices[0].text
        plain = say(client, MODEL)
        assert plain.choices[0].text == say(client, MODEL, extra_body={"search": {"chunk_length": 2}}).choices[0].text


@pytest.mark.slow(30)
def test_a_grader_that_never_works_fails_its_job_and_says_why(settings):
    bad = {"raise KeyError('no label')": "no label", "return float('nan')": "not a finite number"}
    with server(settings) as (_, client):
        jobs = [create_job(client, f"def grade(sample, item):\n    {body}\n") for body in bad]
        for job_id, told in zip(jobs, bad.values(), strict=True):
            job = ended(client, job_id, seconds=300)
            assert (job.status, job.error.code, job.error.param) == ("failed", "grader_error", "grader")
            assert told in job.error.message
