"""``iro jobs``: a real server's jobs in the terminal."""

from __future__ import annotations

import io
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
from click.testing import Result
from rich.console import Console
from typer.testing import CliRunner

from iro_server.cli import http as cli_http
from iro_server.cli import jobs as cli_jobs
from iro_server.cli.main import app
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, wait_for
from tests.iro_server.test_cli import iro
from tests.iro_server.web.crowd import EVENTS, ITERATIONS, JOBS, add_crowd


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    settings = settings_for(tmp_path_factory.mktemp("data"), retention=None)  # the events of a crowd are old
    with serving(settings, ByteEngine()) as client:
        yield SimpleNamespace(client=client, url=str(client.base_url), settings=settings)


Answer = tuple[int, dict[str, str], bytes]  # status, headers, body


def watched(url: str, job_id: str) -> Result:
    return iro("jobs", "watch", job_id, "--url", url)


def test_a_job_that_succeeds_is_followed_from_its_first_event_to_its_last(served):
    job_id = start_job(served.client, GRADER | {"name": "slow"})
    result = watched(served.url, job_id)
    assert result.exit_code == 0, result.output
    messages = [event.message for event in served.client.fine_tuning.jobs.list_events(job_id).data][::-1]
    places = [result.output.index(message) for message in messages]
    assert places == sorted(places) and len(messages) >= 5
    assert "held out 0.200" in result.output
    assert result.output.endswith(f"{served.client.fine_tuning.jobs.retrieve(job_id).fine_tuned_model}\n")


def test_a_terminal_shows_the_jobs_status_below_its_events(served, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(cli_jobs, "STATUS_EVERY", 0.0)
    monkeypatch.setattr(cli_jobs, "console", Console(file=terminal, force_terminal=True, width=200))
    assert watched(served.url, start_job(served.client, GRADER | {"name": "slow"})).exit_code == 0
    assert re.search(r"[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏]\S* running", terminal.getvalue())


@pytest.mark.parametrize(
    ("finish", "line"),
    [(None, "running"), (1000, "running"), (1060, "running, about 1 min left"), (1061, "running, about 2 min left")],
)
def test_a_status_says_how_long_the_job_may_take(finish, line):
    assert cli_jobs.status_line({"status": "running", "estimated_finish": finish}, now=1000) == line


def test_a_servers_address_may_stand_without_its_path(served):
    job_id = start_job(served.client)
    assert ended(served.client, job_id).status == "succeeded"
    assert watched(served.url.removesuffix("/v1/"), job_id).exit_code == 0


def test_a_job_that_fails_or_is_cancelled_has_status_1(served):
    result = watched(served.url, start_job(served.client, GRADER | {"name": "raises"}))
    assert result.exit_code == 1 and "the grader gave NaN for row 1" in result.output
    job_id = start_job(served.client, GRADER | {"name": "waits"}, iterations=5)
    results: list[Result] = []
    watcher = threading.Thread(target=lambda: results.append(watched(served.url, job_id)))
    watcher.start()
    wait_for(lambda: served.client.fine_tuning.jobs.retrieve(job_id).status == "running")
    served.client.fine_tuning.jobs.cancel(job_id)
    watcher.join(120)
    assert results[0].exit_code == 1 and "The job was cancelled" in results[0].output


@pytest.mark.slow(6)
def test_a_stream_that_the_server_cuts_loses_and_repeats_no_event(tmp_path):
    with serving(settings_for(tmp_path, request_timeout=0.6), ByteEngine()) as client:
        job_id = start_job(client, GRADER | {"name": "slow"}, iterations=4)
        result = watched(str(client.base_url), job_id)
        assert result.exit_code == 0, result.output
        assert re.findall(r"Step (\d)", result.output) == ["1", "2", "3", "4"]


@contextmanager
def scripted_server(answers: dict[str, list[Answer]]) -> Iterator[str]:
    """The URL of a server that gives the answers of a path below the job's in turn, the last one ever after; those of
    "" to any other path."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0].removeprefix("/v1/fine_tuning/jobs/ftjob-1")
            turns = answers.get(path, answers[""])
            status, headers, body = turns.pop(0) if len(turns) > 1 else turns[0]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


SUCCEEDED = b'{"status": "succeeded", "estimated_finish": null, "fine_tuned_model": "ft:x"}'
EVENT = b'data: {"id": "ev-1", "type": "message", "level": "info", "created_at": 0, "message": "Begun", "data": {}}\n'


def test_a_server_that_is_unavailable_for_a_while_is_asked_again(monkeypatch):
    pauses: list[float] = []
    clock = {name: getattr(time, name) for name in ("time", "monotonic", "strftime", "localtime")}
    for module in (cli_jobs, cli_http):
        monkeypatch.setattr(module, "time", SimpleNamespace(**clock, sleep=pauses.append))
    answers: dict[str, list[Answer]] = {
        "/events": [
            (200, {}, EVENT),  # and the stream ends without the job
            (503, {}, b'{"error": {"message": "starting"}}'),
            (429, {"Retry-After": "7"}, b"{}"),
            (502, {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, b"<html></html>"),
            (200, {}, b"data: [DONE]\n"),
        ],
        "": [(200, {}, SUCCEEDED), (504, {"Retry-After": "1e9"}, b""), (200, {}, SUCCEEDED)],
    }
    with scripted_server(answers) as url:
        result = watched(url, "ftjob-1")
    assert result.exit_code == 0, result.output
    assert pauses == [1.0, 1.0, 7.0, 1.0, 600.0] and result.stdout.count("Begun") == 1
    assert "The server answers with status 429; trying again in 7 s.\n" in result.stderr


def answers_after_a_restart(turns: list[httpx.Response | None]) -> httpx.Client:
    """A client of a server that gives the answers in turn, and cannot be reached where one is None."""

    def answer(request: httpx.Request) -> httpx.Response:
        response = turns.pop(0)
        if response is None:
            raise httpx.ConnectError("[Errno 111] Connection refused")
        return response

    return httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server/v1")


class Clock(SimpleNamespace):
    """The ``time`` of a module, which passes by its pauses alone."""

    def __init__(self) -> None:
        super().__init__(now=0.0)

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_server_that_restarts_is_asked_until_it_is_back(monkeypatch, capsys):
    clock = Clock()
    for module in (cli_jobs, cli_http):
        monkeypatch.setattr(module, "time", clock)
    stream = httpx.Response(200, content=EVENT + b"data: [DONE]\n")
    turns = [None] * 61 + [httpx.Response(503)] + [None] * 60 + [httpx.Response(200, content=SUCCEEDED), stream]
    with answers_after_a_restart(turns) as server:
        assert [event["id"] for event in cli_jobs.follow(server, "ftjob-1")] == ["ev-1"]
    assert not turns and capsys.readouterr().err.count("cannot be reached") == 2  # once an outage


def test_a_server_that_stays_away_ends_the_watch(monkeypatch):
    clock = Clock()
    for module in (cli_jobs, cli_http):
        monkeypatch.setattr(module, "time", clock)
    with answers_after_a_restart([None] * 1000) as server, pytest.raises(httpx.ConnectError):
        next(cli_jobs.follow(server, "ftjob-1"))
    assert 60 <= clock.now <= 180


def test_a_server_that_refuses_is_not_asked_again():
    refusal = b'{"error": {"message": "The key was revoked."}}'
    with scripted_server({"": [(200, {}, SUCCEEDED)], "/events": [(401, {}, refusal)]}) as url:
        result = watched(url, "ftjob-1")
    assert (result.exit_code, result.stderr) == (2, "Error: The key was revoked.\n")


def test_a_plot_has_a_longer_bar_for_a_higher_reward(served, monkeypatch):
    monkeypatch.setattr(cli_jobs.console, "width", 100)
    job_id = add_crowd(served.settings)
    events = served.client.fine_tuning.jobs.list_events(job_id, limit=1)
    assert events.has_more and EVENTS > 900  # read in pages
    result = iro("jobs", "plot", job_id, "--url", served.url)
    assert result.exit_code == 0, result.output
    head, *lines, status = result.output.splitlines()
    assert status.startswith("Status: ") and "succeeded" not in status
    assert head.split()[0] == "iteration" and [line.split()[0] for line in lines] == ["frozen", *map(str, range(1, 9))]
    rewards = [float(line.split()[1]) for line in lines]
    bars = [line.count("█") for line in lines]
    assert len(lines) == ITERATIONS + 1 and bars[0] > 0
    assert sorted(range(9), key=lambda i: rewards[i]) == sorted(range(9), key=lambda i: (bars[i], rewards[i]))
    assert "± 0.06" in lines[0] and lines[-1].split()[-1] != lines[0].split()[-1]


def test_a_plot_of_a_job_that_failed_before_any_reward_says_why(served):
    job_id = start_job(served.client, GRADER | {"name": "raises"})
    ended(served.client, job_id)
    result = iro("jobs", "plot", job_id, "--url", served.url)
    assert result.exit_code == 2 and "failed before its first measurement: the grader gave NaN" in result.output


def test_jobs_are_listed_newest_first_in_pages(tmp_path):
    settings = settings_for(tmp_path, job_concurrency=0, retention=None)
    with serving(settings, ByteEngine()) as client:
        url = ("--url", str(client.base_url))
        none = iro("jobs", "list", *url)
        assert (none.exit_code, none.stdout, none.stderr) == (0, "", "No jobs yet.\n")
        add_crowd(settings)
        listed = [job.id for job in client.fine_tuning.jobs.list(limit=100)]
        assert len(listed) == JOBS
        first = iro("jobs", "list", "--limit", "130", *url)  # more than the API gives at once
        assert [line.split()[0] for line in first.stdout.splitlines()] == listed[:130]
        assert re.search(r"  \d{4}-\d\d-\d\d \d\d:\d\d [+-]\d{4}  ", first.stdout)
        assert first.stderr == f"Older ones: iro jobs list --after {listed[129]}\n"
        rest = iro("jobs", "list", "--limit", str(JOBS), "--after", listed[129], *url)
        assert [line.split()[0] for line in rest.stdout.splitlines()] == listed[130:] and rest.stderr == ""
        assert iro("jobs", "list", "--after", listed[-1], *url).stderr == "No older jobs.\n"
        oldest = rest.stdout.splitlines()[-1].split()
        job = client.fine_tuning.jobs.retrieve(listed[-1])
        assert (oldest[1], oldest[-2:]) == (job.status, [job.model, job.fine_tuned_model])
        assert len(iro("jobs", "list", *url).stdout.splitlines()) == 20
        unknown = iro("jobs", "list", "--after", "ftjob-none", *url)
        assert unknown.exit_code == 2 and "ftjob-none" in unknown.stderr and unknown.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["watch", "plot"])
def test_what_cannot_be_shown_is_one_line(served, command):
    for url, job_id, message in (
        (served.url, "ftjob-none", "No such fine-tuning job: ftjob-none"),
        (served.url, "ftjob-1\r", "No such fine-tuning job: ftjob-1"),
        (served.url, "a?b=c", "No such fine-tuning job: a?b=c"),
        (served.url, "", "JOB: give a job's id; `iro jobs list` shows them"),
        (served.url, " \n", "JOB: give a job's id; `iro jobs list` shows them"),
        ("http://127.0.0.1:9/v1", "ftjob-none", "cannot be reached"),
    ):
        result = iro("jobs", command, job_id, "--url", url)
        assert result.exit_code == 2 and message in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b'{"detail": "Not Found"}'), (502, b"<html></html>"), (200, b"<html></html>"), (200, b"[]")],
)
def test_a_server_of_another_kind_is_said_to_be_one(status, body):
    with scripted_server({"": [(status, {}, body)]}) as url:
        refused = iro("jobs", "list", "--url", url)
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert f"{url}/fine_tuning/jobs" in refused.stderr and f"status {status}" in refused.stderr


def test_an_empty_key_is_none(served):
    for key in ("", " \n"):
        assert iro("jobs", "list", "--url", served.url, "--key", key).exit_code == 0


@pytest.mark.parametrize("key", ["sk-secret\nx", "sk-secret\x1b", "sk-secret…x"])
def test_a_key_that_no_header_takes_is_one_line_without_it(served, key):
    for arguments, variables in ((("--key", key), {}), ((), {"IRO_KEY": key})):
        command = ["jobs", "list", "--url", served.url, *arguments]
        refused = CliRunner().invoke(app, command, env=variables)
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1 and "secret" not in refused.stderr
        assert refused.stderr.startswith("Error: --key or IRO_KEY holds a control or non-ASCII character")


def test_an_address_that_is_no_url_is_one_line():
    refused = iro("jobs", "list", "--url", "http://::1:8000")
    assert refused.exit_code == 2 and refused.stderr == "Error: --url http://::1:8000: Invalid port: ':1:8000'\n"
