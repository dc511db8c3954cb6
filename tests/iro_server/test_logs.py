"""Log lines carry what they belong to."""

from __future__ import annotations

import io
import json
import logging
import os
import subprocess
import sys

import httpx
import openai
import pytest

from iro_server.engines.ports import free_port
from iro_server.telemetry import logs
from tests.iro_server.api.serving import GRADER, ended, settings_for, start_job, wait_for

SERVE = (
    "import sys, uvicorn; from iro_server.api.app import create_app; from iro_server.settings import Settings; "
    "from iro_server.telemetry import logs; from tests.iro_server.api.byte_engine import ByteEngine; "
    "settings = Settings.model_validate_json(sys.argv[1]); logs.configure(settings.log_format); "
    "uvicorn.run(create_app(settings, ByteEngine()), port=settings.port, log_config=None)"
)


@pytest.fixture(params=["json", pytest.param("text", marks=pytest.mark.slow(15))])
def told(request, tmp_path):
    """What a server and a worker wrote that answered a request and ran a job which failed: the id of the request and
    of the job, the lines of each."""
    settings = settings_for(tmp_path, port=free_port(), log_format=request.param)
    command = [sys.executable, "-c", SERVE, settings.model_dump_json()]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stderr=log, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
        try:
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{settings.port}/v1", api_key="none", max_retries=0)
            wait_for(lambda: answers(client), seconds=120)
            answer = client.files.with_raw_response.list()
            job = ended(client, start_job(client, GRADER | {"name": "raises"}), seconds=120)
        finally:
            server.terminate()
            server.wait()
    worker = (settings.job_dir(job.id) / "worker.log").read_text()
    return request.param, answer.headers["x-request-id"], job.id, (tmp_path / "log").read_text(), worker


def answers(client) -> bool:
    try:
        return bool(client.models.list().data)
    except openai.APIConnectionError:
        return False


@pytest.mark.slow(12)
def test_lines_carry_the_request_and_the_job(told):
    format, request_id, job_id, server, worker = told
    if format == "text":
        assert f"INFO uvicorn.access [{request_id}]: " in server
        assert f"ERROR iro.worker [{job_id}]: the job failed" in worker and "GraderFailed" in worker
        return
    lines = [json.loads(line) for line in server.splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == request_id]
    assert line["logger"] == "uvicorn.access" and "GET /v1/files" in line["message"] and line["level"] == "INFO"
    assert any(line["logger"] == "uvicorn.error" and "request_id" not in line for line in lines)
    (failed,) = [json.loads(line) for line in worker.splitlines()]
    assert (failed["job_id"], failed["message"]) == (job_id, "the job failed")
    assert "GraderFailed: the grader gave NaN" in failed["exception"] and failed["time"]


def test_the_urls_that_requests_go_to_are_not_logged(monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", lines)
    monkeypatch.setattr(logging.root, "handlers", [])
    logs.configure("text")
    answers = httpx.MockTransport(lambda request: httpx.Response(200))
    httpx.Client(transport=answers).post("http://hooks.example/services/SECRET?key=SECRET")
    logging.getLogger("iro.webhooks").info("sent")
    assert lines.getvalue() == "INFO iro.webhooks: sent\n"


def test_a_line_in_text_stays_one_line_whatever_it_quotes(monkeypatch):
    lines = io.StringIO()
    monkeypatch.setattr(sys, "stderr", lines)
    monkeypatch.setattr(logging.root, "handlers", [])
    logs.configure("text")
    try:
        raise ValueError("two\x1b[2J\nlines")
    except ValueError:
        logging.getLogger("iro.test").exception("from %s", "a\x1b[2J\nERROR iro: forged")
    first, *rest = lines.getvalue().split("\n")
    assert first == r"ERROR iro.test: from a\x1b[2J\nERROR iro: forged"
    assert rest[0].startswith("Traceback") and "\x1b" not in lines.getvalue()
