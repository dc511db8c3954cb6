"""A real server on a free port, and the official client to call it."""

from __future__ import annotations

import asyncio
import math
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import uvicorn
from typer.testing import CliRunner

from iro_server.api.app import ENDING, Server, create_app
from iro_server.cli import keys as cli_keys
from iro_server.settings import Settings
from iro_server.store.database import open_database
from iro_server.store.tables import Job, Model
from tests.iro_server.jobs.fake_job import JOB, Config

FAKE_JOB = "tests.iro_server.jobs.fake_job:JOB"
GRADER = {
    "type": "string_check",
    "name": "quick",
    "input": "{{sample.output_text}}",
    "reference": "z",
    "operation": "eq",
}


def settings_for(folder: Path, **changes: Any) -> Settings:
    quick = {"job_poll": 0.1, "heartbeat": 0.1, "cancel_grace": 2.0, "align_entry": FAKE_JOB, "model_name": "bytes"}
    quick["job_estimates"] = False
    return Settings(data_dir=folder, **(quick | changes))


@contextmanager
def serving(settings: Settings, engine: Any) -> Iterator[openai.OpenAI]:
    """Serve from a thread of this process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        app = create_app(settings.model_copy(update={"port": port}), engine)
        graceful = math.ceil(settings.drain) + ENDING
        server = Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=graceful), settings.drain)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        finally:
            server.should_exit = True
            thread.join(graceful + 60)
            assert not thread.is_alive(), f"the server does not stop:\n{unfinished(server)}"


def unfinished(server: Server) -> str:
    """What the server waits for: its requests, where each thread of this process stands, and its tasks. It is short:
    CI shows the last of a long output only."""
    frames = sys._current_frames()
    scopes = [vars(connection).get("scope") or {} for connection in server.server_state.connections]
    lines = [f"requests: {[scope.get('path') for scope in scopes]}"]
    for thread in threading.enumerate():
        stack = traceback.extract_stack(frames.get(thread.ident or 0))
        lines.append(f"{thread.name}: {' > '.join(f'{Path(call.filename).stem}:{call.lineno}' for call in stack[-6:])}")
    for task in asyncio.all_tasks(server.servers[0].get_loop()):
        lines.append(f"{task.get_name()}: {task.get_coro()} at {[frame.f_lineno for frame in task.get_stack(limit=1)]}")
    return "\n".join(lines)


def conforms(answer: Any) -> Any:
    """``answer``, checked against the client's own published type: the client itself parses without checking."""
    type(answer).model_validate(answer.to_dict())
    return answer


def upload(client: openai.OpenAI, content: bytes = b'{"messages": [{"role": "user", "content": "say z"}]}\n') -> str:
    return client.files.create(file=("rows.jsonl", content), purpose="fine-tune").id


def start_job(client: openai.OpenAI, grader: dict[str, Any] = GRADER, **iro: Any) -> str:
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": iro}}
    job = client.fine_tuning.jobs.create(
        model="bytes", training_file=upload(client), method=method, seed=1, suffix="zeal"
    )
    return job.id


def aligned(settings: Settings, name: str, iterations: int = 2, grader: dict[str, Any] = GRADER) -> str:
    """A model of the fake job's value functions, as if a worker had made it."""
    config = {"training_file": str(settings.data_dir / "rows.jsonl"), "grader": grader, "iterations": iterations}
    Path(config["training_file"]).write_text("{}")
    made = JOB.execute(
        Config(**config), settings.job_dir(name) / "run", on_event=lambda event: None, should_stop=lambda: False
    )
    search = Config(**config).served_defaults.model_dump(exclude_none=True)
    job = Job(id=f"ftjob-{name}", status="succeeded", model="bytes", training_file="file-1", seed=1, config=config)
    job.method, job.model_name = {"type": "reinforcement", "reinforcement": {"grader": grader}}, name
    with open_database(settings).begin() as session:
        session.add(job)
        session.flush()
        session.add(Model(id=name, base="bytes", job_id=job.id, path=made["best_checkpoint"], search=search))
    return name


def wait_for(what: Any, seconds: float = 180) -> Any:
    """The first true value of ``what()``."""
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return value


def ended(client: openai.OpenAI, job_id: str, seconds: float = 180) -> Any:
    """The job once it has ended."""

    def look() -> Any:
        job = client.fine_tuning.jobs.retrieve(job_id)
        return job if job.status in ("succeeded", "failed", "cancelled") else None

    return wait_for(look, seconds)


def new_key(settings: Settings, name: str, *options: str) -> str:
    """The secret of a key made with ``iro keys create``; its project has its name."""
    arguments = ["create", name, "--project", name, "--data-dir", str(settings.data_dir), *options]
    result = CliRunner().invoke(cli_keys.app, arguments, catch_exceptions=False)
    return result.stdout.strip()
