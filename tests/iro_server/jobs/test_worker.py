"""What the process of a job notes: how its models search and sample, and why the job cannot go on."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine, delete, event, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from iro_server.engines.endpoints import EngineUnavailable
from iro_server.jobs import worker
from iro_server.settings import Settings
from iro_server.store.database import Sessions, find, open_database
from iro_server.store.tables import Delivery, Event, Job, WebhookEndpoint
from tests.iro_server.api.serving import GRADER, settings_for
from tests.iro_server.jobs.fake_job import JOB, Config


class Interrupted(Exception):
    pass


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_for(tmp_path)


@pytest.fixture
def sessions(settings: Settings) -> Sessions:
    return with_a_job(open_database(settings))


def with_a_job(sessions: Sessions) -> Sessions:
    """That runs, at its first attempt."""
    config = {"training_file": "rows.jsonl", "grader": GRADER, "max_tokens": "auto"}
    job = Job(id="ftjob-1", status="running", model="bytes", training_file="file-1", seed=1, config=config, attempt=1)
    job.method, job.model_name, job.started_at = {"type": "reinforcement"}, "ft:bytes:iro::1", 0.0
    with sessions.begin() as session:
        session.add(job)
    return sessions


def stored_job(sessions: Sessions) -> Job:
    with sessions() as session:
        job = find(session, Job, "ftjob-1")
    assert job is not None
    return job


def test_a_job_that_goes_on_keeps_the_length_that_it_measured(
    settings: Settings, sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints are called before the second worker reports the length again."""

    def execute(*_: Any, on_event: Any, **__: Any) -> None:
        if not attempts:
            on_event({"type": "defaults", "data": {"max_tokens": 20}})
        attempts.append(1)
        raise Interrupted

    attempts: list[int] = []
    monkeypatch.setattr(worker, "load_alignment_job", lambda _: SimpleNamespace(Config=Config, execute=execute))
    for _ in range(2):
        with pytest.raises(Interrupted):
            worker.Worker(settings, sessions, "ftjob-1", 1)._execute(stored_job(sessions))
    assert stored_job(sessions).search["max_tokens"] == 20 and len(attempts) == 2


@pytest.mark.parametrize("error", [EngineUnavailable("the connection broke"), ValueError("a bad row"), None])
def test_a_worker_that_was_given_up_on_leaves_the_job_to_the_one_that_has_it(
    settings: Settings, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    """It hangs, as on a suspended machine, while another server takes the job over; then it reports, or fails."""

    def execute(*_: Any, on_event: Any, **__: Any) -> None:
        with sessions.begin() as session:
            session.execute(update(Job).values(attempt=2, server="B", search={"max_tokens": 7}))
        if error is not None:
            raise error
        on_event({"type": "defaults", "data": {"max_tokens": 99}})

    monkeypatch.setattr(worker, "load_alignment_job", lambda _: SimpleNamespace(Config=Config, execute=execute))
    worker.Worker(settings, sessions, "ftjob-1", 1).work()
    job = stored_job(sessions)
    assert (job.status, job.attempt, job.server, job.search) == ("running", 2, "B", {"max_tokens": 7})
    with sessions() as session:
        assert session.scalar(select(Event.message)) is None


@pytest.mark.parametrize(("before", "after"), [("running", "paused"), ("queued", "queued"), ("cancelled", "cancelled")])
def test_a_worker_whose_model_is_away_pauses_a_job_that_runs_and_no_other(
    settings: Settings, sessions: Sessions, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    """Queued: it was paused and resumed while the worker still stops."""

    def execute(*_: Any, **__: Any) -> None:
        with sessions.begin() as session:
            session.execute(update(Job).values(status=before))
        raise EngineUnavailable("the connection broke")

    monkeypatch.setattr(worker, "load_alignment_job", lambda _: SimpleNamespace(Config=Config, execute=execute))
    worker.Worker(settings, sessions, "ftjob-1", 1).work()
    assert stored_job(sessions).status == after


def test_a_webhook_that_is_deleted_as_a_job_ends_takes_nothing_from_the_job(
    tmp_path: Path, new_database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("{}\n")
    settings = settings_for(tmp_path, database_url=new_database("postgresql"))
    sessions = with_a_job(open_database(settings))
    endpoint = {"id": "we_1", "name": "w", "url": "http://x", "secret": "whsec_"}
    with sessions.begin() as session:
        session.add(WebhookEndpoint(event_types=["fine_tuning.job.succeeded"], **endpoint))
    deletions: list[int] = []

    def delete_endpoint(session: Session, *_: object) -> None:
        """Between the reading of the endpoints and the note of what they are to be told."""
        if any(isinstance(row, Delivery) for row in session.new) and not deletions:
            deletions.append(1)
            with suppress(OperationalError), create_engine(settings.url).begin() as connection:
                connection.execute(text("SET lock_timeout = '500ms'"))
                connection.execute(delete(WebhookEndpoint.__table__))

    monkeypatch.setattr(worker, "load_alignment_job", lambda _: JOB)
    event.listen(Session, "before_flush", delete_endpoint)
    try:
        worker.Worker(settings, sessions, "ftjob-1", 1).work()
    finally:
        event.remove(Session, "before_flush", delete_endpoint)
    assert deletions and stored_job(sessions).status == "succeeded", stored_job(sessions).error


def test_an_error_of_the_database_shows_no_statement() -> None:
    error = IntegrityError("INSERT INTO secrets", {"secret": 1}, Exception("violated"))
    assert worker.explain(error) == ("server_error", "The server had an error: IntegrityError", None)
