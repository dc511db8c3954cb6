"""``iro keys``: made, shown without their secrets, revoked."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from iro_server.cli.main import app
from iro_server.settings import Settings
from iro_server.store import keys
from iro_server.store.database import open_database


def iro(*arguments: str):
    return CliRunner().invoke(app, ["keys", *arguments])


def test_a_key_is_made_listed_and_revoked(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    made = iro("create", "ci", "--project", "team", "--requests-per-minute", "60", *where)
    secret = made.stdout.strip()
    sessions = open_database(Settings(data_dir=tmp_path))
    key = keys.by_secret(sessions, secret)
    assert (key.name, key.project, key.requests_per_minute) == ("ci", "team", 60)
    listed = iro("list", *where).stdout
    assert key.id in listed and "team" in listed and "active" in listed and secret not in listed
    assert iro("revoke", key.id, *where).exit_code == 0
    assert keys.by_secret(sessions, secret) is None and "revoked" in iro("list", *where).stdout


def test_a_key_may_end_by_itself_and_do_less_than_all(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    ends = iro("create", "visitor", "--expires-in-days", "1.5", "--scope", "read", "--scope", "generate", *where)
    ended = iro("create", "gone", "--expires-in-days", "0", *where)
    sessions = open_database(Settings(data_dir=tmp_path))
    key = keys.by_secret(sessions, ends.stdout.strip())
    assert key.scopes == ["read", "generate"] and abs(key.expires_at - key.created_at - 1.5 * 86_400) < 5
    assert keys.by_secret(sessions, ended.stdout.strip()) is None
    visitor, gone = iro("list", *where).stdout.splitlines()
    assert "active until" in visitor and "may read, generate" in visitor and "expired" in gone
    assert iro("create", "x", "--scope", "everything", *where).exit_code == 2


def test_keys_without_a_project_do_not_share_one(tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path))
    for name in ("one", "other"):
        iro("create", name, *where)
    one, other = keys.every(open_database(Settings(data_dir=tmp_path)))
    assert one.project != other.project


def test_an_unknown_key_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    refused = iro("revoke", "key_none", "--data-dir", str(tmp_path))
    assert refused.exit_code == 2
    assert refused.stderr == "Error: no key key_none; `iro keys list` shows them\n"


def test_the_first_key_says_what_it_does_not_see_and_projects_that_are_new_are_said_to_be(tmp_path):
    where = ["--data-dir", str(tmp_path)]
    assert "No keys for the server of" in iro("list", *where).stderr
    first = iro("create", "me", *where)
    assert "of the new project proj_" in first.stderr and "a key with --project default sees it" in first.stderr
    default = iro("create", "me", "--project", "default", *where)
    assert "of the project default:" in default.stderr and "from now on" not in default.stderr
    assert "of the new project alice:" in iro("create", "alice", "--project", "alice", *where).stderr
    assert "of the project alice:" in iro("create", "bob", "--project", "alice", *where).stderr
