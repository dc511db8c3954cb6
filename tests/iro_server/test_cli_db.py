"""``iro db``: where the tables are, and bringing them up to date."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from iro_server.cli.main import app


def iro(*arguments: str):
    return CliRunner().invoke(app, ["db", *arguments])


def test_an_empty_database_has_no_revision_until_it_is_upgraded(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    empty = iro("current", *where).stdout
    newest = iro("upgrade", *where).stdout
    assert empty == f"none (this version of Iro has {newest.strip()}; `iro db upgrade` goes there)\n"
    assert newest.strip().isdigit() and iro("current", *where).stdout == newest


def test_a_database_that_is_away_is_one_line(tmp_path: Path) -> None:
    url = "postgresql+psycopg://iro@127.0.0.1:1/iro"
    refused = iro("current", "--data-dir", str(tmp_path), "--database-url", url)
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert refused.stderr.startswith("Error: the database postgresql+psycopg://iro@127.0.0.1:1/iro cannot be used: ")
