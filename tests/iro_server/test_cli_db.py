"""``iro db``: where the tables are, and bringing them up to date."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import create_engine, text
from typer.testing import CliRunner

from benchmarks.postgres import Postgres
from iro_server.cli.main import app


def iro(*arguments: str):
    return CliRunner().invoke(app, ["db", *arguments])


def test_an_empty_database_has_no_revision_until_it_is_upgraded(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    empty = iro("current", *where).stdout
    newest = iro("upgrade", *where).stdout
    assert empty == f"none (this version of Iro has {newest.strip()}; `iro db upgrade` goes there)\n"
    assert newest.strip().isdigit() and iro("current", *where).stdout == newest


def test_a_damaged_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "iro.db").write_bytes(b"no database" * 1000)
    for command in ("current", "upgrade"):
        refused = iro(command, "--data-dir", str(tmp_path))
        assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
        assert refused.stderr.endswith("iro.db cannot be used: file is not a database\n")


def test_a_role_that_may_make_no_tables_is_told_what_it_lacks(
    tmp_path: Path, postgresql: Postgres, new_database: Callable[[str], str]
) -> None:
    url = new_database("postgresql")
    with create_engine(url).begin() as connection:
        connection.execute(text("DROP ROLE IF EXISTS ordinary"))
        connection.execute(text("CREATE ROLE ordinary LOGIN"))
        connection.execute(text("REVOKE CREATE ON SCHEMA public FROM public"))  # as PostgreSQL 15 does
    refused = iro("upgrade", "--data-dir", str(tmp_path), "--database-url", url.replace("iro@", "ordinary@"))
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert "permission denied for schema public" in refused.stderr
    assert "grant CREATE on schema public to that role" in refused.stderr


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    url = "postgresql+psycopg://iro@127.0.0.1:1/iro"
    refused = iro("current", "--data-dir", str(tmp_path), "--database-url", url)
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("Error: the database postgresql+psycopg://iro@127.0.0.1:1/iro cannot be used: ")
