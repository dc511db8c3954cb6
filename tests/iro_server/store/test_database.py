"""The tables: made by migrations, the same on each database, and old databases brought up to them."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time

import pytest
from alembic import op
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from iro_server.settings import Settings
from iro_server.store import upgrade
from iro_server.store.database import find, open_database
from iro_server.store.tables import Base, File, Job, Model

pytestmark = pytest.mark.both_databases

# A database as the first version made it, before projects, hashes and attempts, and before migrations.
FIRST = """
CREATE TABLE files (seq {serial}, id VARCHAR NOT NULL UNIQUE, created_at INTEGER NOT NULL, filename VARCHAR NOT NULL,
    purpose VARCHAR NOT NULL, bytes INTEGER NOT NULL);
CREATE TABLE jobs (seq {serial}, id VARCHAR NOT NULL UNIQUE, created_at INTEGER NOT NULL, status VARCHAR NOT NULL,
    finished_at INTEGER, model VARCHAR NOT NULL, training_file VARCHAR NOT NULL, validation_file VARCHAR,
    suffix VARCHAR, seed INTEGER NOT NULL, method JSON NOT NULL, metadata JSON, error JSON, model_name VARCHAR NOT NULL,
    config JSON NOT NULL, search JSON, restarts INTEGER NOT NULL, heartbeat INTEGER NOT NULL);
CREATE TABLE models (seq {serial}, id VARCHAR NOT NULL UNIQUE, created_at INTEGER NOT NULL, base VARCHAR NOT NULL,
    job_id VARCHAR NOT NULL REFERENCES jobs (id), path VARCHAR NOT NULL, search JSON NOT NULL);
INSERT INTO files (id, created_at, filename, purpose, bytes) VALUES ('file-1', 7, 'rows.jsonl', 'fine-tune', 3);
INSERT INTO jobs (id, created_at, status, model, training_file, seed, method, model_name, config, restarts, heartbeat)
    VALUES ('ftjob-1', 8, 'queued', 'm', 'file-1', 1, '{{}}', 'm:1', '{{"a": 1}}', 0, 5);
INSERT INTO models (id, created_at, base, job_id, path, search) VALUES ('m:1', 9, 'm', 'ftjob-1', '/v', '{{}}');
"""
SERIAL = {"sqlite": "INTEGER NOT NULL PRIMARY KEY", "postgresql": "BIGSERIAL NOT NULL PRIMARY KEY"}


@pytest.fixture
def settings(tmp_path, database_url):
    return Settings(data_dir=tmp_path, database_url=database_url)


@pytest.fixture
def engine(database_url):
    made = create_engine(database_url)
    yield made
    made.dispose()


def differences(engine) -> list:
    """What alembic would change to make the tables those of the models."""
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection), Base.metadata)


def test_the_migrations_make_the_tables_that_the_models_say(settings, engine):
    open_database(settings)
    assert differences(engine) == []
    assert upgrade.revisions(engine) == ("0011", "0011")


def test_a_database_from_before_migrations_is_brought_up_and_keeps_its_rows(settings, engine):
    with engine.begin() as connection:
        for statement in FIRST.format(serial=SERIAL[engine.dialect.name]).split(";\n")[:-1]:
            connection.execute(text(statement.replace(":", r"\:")))
    sessions = open_database(settings)
    assert differences(engine) == []
    with sessions() as session:
        file, job, model = find(session, File, "file-1"), find(session, Job, "ftjob-1"), find(session, Model, "m:1")
        assert (file.bytes, file.project, file.sha256) == (3, "default", None)
        assert (job.config, job.attempt, job.heartbeat, job.project) == ({"a": 1}, 0, 5, "default")
        assert job.ran is None
        assert (model.path, model.project) == ("/v", "default")
    with sessions.begin() as session:
        session.add(Job(id="ftjob-2", model="m", training_file="f", seed=1, method={}, model_name="m:2", config={}))


@pytest.mark.slow(6)
def test_servers_that_start_at_once_do_not_collide(settings, engine):
    program = "import sys; from iro_server.settings import Settings\n"
    program += "from iro_server.store.database import open_database\n"
    program += "settings = Settings.model_validate_json(sys.argv[1]); print('ready', flush=True); input()\n"
    program += "open_database(settings)"
    command = [sys.executable, "-c", program, settings.model_dump_json()]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    servers = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for server in servers:
        assert server.stdout.readline() == "ready\n"
    for server in servers:
        server.stdin.write("\n")
        server.stdin.close()
    assert [server.wait() for server in servers] == [0] * 4
    for server in servers:
        server.stdout.close()
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT version_num FROM alembic_version")).all() == ["0011"]


def test_a_new_sqlite_database_waits_for_another_server_that_is_making_it(tmp_path):
    settings = Settings(data_dir=tmp_path)
    other = sqlite3.connect(tmp_path / "iro.db", check_same_thread=False, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    threading.Timer(0.5, lambda: other.execute("ROLLBACK")).start()
    started = time.monotonic()
    open_database(settings)
    assert time.monotonic() - started >= 0.4
    other.close()


def test_a_migration_that_fails_leaves_nothing_behind(settings, engine, monkeypatch):
    monkeypatch.setattr(op, "get_bind", lambda bind=op.get_bind: _failing(bind()))
    with pytest.raises(RuntimeError, match="half way"):
        open_database(settings)
    monkeypatch.undo()
    assert inspect(engine).get_table_names() == []
    open_database(settings)
    assert differences(engine) == []


def _failing(connection):
    connection.execute(text("CREATE TABLE half (id INTEGER)"))
    raise RuntimeError("half way")


def test_a_later_versions_database_is_refused(settings, engine):
    open_database(settings)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ValueError, match="revision 9999, which this version of Iro does not know: update Iro"):
        open_database(settings)


def test_a_database_that_is_away_is_an_error_of_one_line(tmp_path):
    away = Settings(data_dir=tmp_path, database_url="postgresql+psycopg://iro:secret@127.0.0.1:1/iro")
    with pytest.raises(ConnectionError, match=r"iro:\*\*\*@127.0.0.1:1/iro cannot be used: .*refused") as refused:
        open_database(away)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
        ("postgresql+psycopg://iro@here:port/iro", "'port'"),
        ("here", "URL"),
    ],
)
def test_a_url_that_names_no_database_is_refused_by_the_setting(tmp_path, url, message):
    with pytest.raises(ValueError, match=f"^database_url: .*{message}.*; give one such as ") as refused:
        open_database(Settings(data_dir=tmp_path, database_url=url))
    assert "\n" not in str(refused.value)


def test_a_missing_driver_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ValueError, match=r"psycopg, which is not installed: pip install 'iro-align\[postgres\]'"):
        open_database(Settings(data_dir=tmp_path, database_url="postgresql+psycopg://iro@127.0.0.1:1/iro"))
