"""What the database must hold, and how long anyone waits for it."""

from __future__ import annotations

import pytest
from sqlalchemy import create_engine, exc, select, text

from iro_server.jobs import records
from iro_server.jobs.worker import retry_while_unavailable
from iro_server.settings import Settings
from iro_server.store.database import find, is_unavailable, open_database
from iro_server.store.tables import Event, File, Job, Upload

pytestmark = pytest.mark.both_databases

MANY = 3 * 2**30  # more than a signed integer of 32 bits
JOB = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "config": {}}


@pytest.fixture
def settings(tmp_path, database_url):
    return Settings(data_dir=tmp_path, database_url=database_url)


def test_a_file_of_three_gigabytes_and_a_job_of_as_many_tokens_are_stored(settings):
    sessions = open_database(settings)
    with sessions.begin() as session:
        session.add(File(id="file-1", filename="rows.jsonl", purpose="fine-tune", bytes=MANY, expires_at=MANY))
        session.add(Upload(id="up-1", filename="rows.jsonl", purpose="fine-tune", bytes=MANY, expires_at=MANY))
        session.add(Job(id="ftjob-1", status="queued", model_name="m:1", **JOB))
    job = records.take_next(sessions, "here")
    records.succeed(sessions, job, "/v", {}, None, MANY)
    with sessions() as session:
        assert find(session, File, "file-1").bytes == find(session, Upload, "up-1").bytes == MANY
        assert find(session, Job, "ftjob-1").trained_tokens == MANY


def test_nul_in_what_a_grader_says_does_not_lose_the_event(settings):
    sessions = open_database(settings)
    with sessions.begin() as session:
        session.add(Job(id="ftjob-1", status="running", model_name="m:1", job_metadata={"a": "b\0c"}, **JOB))
        session.flush()
        records.add_event(session, "ftjob-1", "an error\0 here", data={"said": "\0", "escaped": "\\u0000"})
    with sessions() as session:
        event = session.scalar(select(Event))
        assert (event.message, event.data) == ("an error\ufffd here", {"said": "\ufffd", "escaped": "\\u0000"})
        member = Job.job_metadata["a"].as_string()
        assert session.scalars(select(member)).all() == ["b\ufffdc"]


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_statement_that_takes_too_long_is_ended(settings):
    sessions = open_database(settings.model_copy(update={"database_statement_timeout": 0.2}))
    with sessions() as session, pytest.raises(exc.OperationalError, match="statement timeout"):
        session.execute(text("SELECT pg_sleep(20)"))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_write_to_a_standby_is_repeated_on_the_primary(settings):
    sessions = open_database(settings)
    name = sessions.kw["bind"].url.database
    primary = create_engine(settings.url, isolation_level="AUTOCOMMIT")

    def switch(value: str) -> None:
        with primary.connect() as connection:
            connection.execute(text("SET default_transaction_read_only = off"))
            connection.execute(text(f"ALTER DATABASE {name} SET default_transaction_read_only = {value}"))

    errors: list[exc.DBAPIError] = []

    @retry_while_unavailable
    def write() -> None:
        try:
            with sessions.begin() as session:
                session.add(File(id="file-1", filename="rows.jsonl", purpose="fine-tune", bytes=1))
        except exc.DBAPIError as error:
            errors.append(error)
            switch("off")  # the failover ends; connections from before it stay read-only
            raise

    switch("on")
    sessions.kw["bind"].dispose()
    write()
    primary.dispose()
    assert [type(error) for error in errors] == [exc.InternalError] and is_unavailable(errors[0])
    with sessions() as session:
        assert find(session, File, "file-1").bytes == 1


def test_a_wait_for_a_connection_is_repeated():
    errors = iter([exc.TimeoutError("all connections are in use"), None])

    @retry_while_unavailable
    def read() -> str:
        if error := next(errors):
            raise error
        return "row"

    assert read() == "row"


def test_who_waits_for_a_connection_waits_for_a_bounded_time(settings):
    sessions = open_database(settings.model_copy(update={"database_connections": 1, "database_timeout": 0.2}))
    with sessions() as one:
        one.execute(text("SELECT 1"))
        with sessions() as other, pytest.raises(exc.TimeoutError):
            other.execute(text("SELECT 1"))


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_connection_that_the_database_closed_is_made_anew(settings):
    sessions = open_database(settings.model_copy(update={"database_connections": 2}))
    with sessions() as one, sessions() as other:
        pid = one.scalar(text("SELECT pg_backend_pid()"))
        other.execute(text("SELECT 1"))
        one.commit()
        other.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
        assert one.scalar(text("SELECT 1")) == 1
