"""``iro keys``: made, shown without their secrets, revoked."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner

from iro_server.cli.main import app
from iro_server.settings import Settings
from iro_server.store import keys
from iro_server.store.database import open_database


def iro(*arguments: str):
    return CliRunner().invoke(app, ["keys", *arguments])


def key_ids(folder: Path) -> list[str]:
    return [key.id for key in keys.every(open_database(Settings(data_dir=folder)))]


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
    sessions = open_database(Settings(data_dir=tmp_path))
    key = keys.by_secret(sessions, ends.stdout.strip())
    assert key.scopes == ["read", "generate"] and abs(key.expires_at - key.created_at - 1.5 * 86_400) < 5
    expired_secret = keys.create(sessions, "gone", expires_at=int(time.time()))[1]
    assert keys.by_secret(sessions, expired_secret) is None
    visitor, gone = iro("list", *where).stdout.splitlines()
    assert "active until" in visitor and "may read, generate" in visitor and "expired" in gone
    assert iro("create", "x", "--scope", "everything", *where).exit_code == 2


@pytest.mark.parametrize(
    "limit",
    [("--expires-in-days", days) for days in ("0", "-1", "9999999", "1e300", "inf", "nan")]
    + [(f"--{name}", str(2**31)) for name in ("requests-per-minute", "tokens-per-minute", "concurrency")],
    ids=" ".join,
)
def test_a_limit_that_no_key_can_hold_is_refused(tmp_path: Path, limit: tuple[str, str]) -> None:
    refused = iro("create", "ci", *limit, "--data-dir", str(tmp_path))
    assert refused.exit_code == 2 and refused.exception.__class__ is SystemExit and key_ids(tmp_path) == []


def test_a_key_that_ends_after_all_dates_is_listed(tmp_path: Path) -> None:
    keys.create(open_database(Settings(data_dir=tmp_path)), "old", expires_at=2**40)
    listed = iro("list", "--data-dir", str(tmp_path))
    assert listed.exit_code == 0 and "active until 9999-12-31" in listed.stdout


@pytest.mark.parametrize(("zone", "shown"), [("JST-9", "2027-01-15 17:00 +0900"), ("EST5", "2027-01-15 03:00 -0500")])
def test_times_are_those_of_this_machine_with_their_offset(
    zone: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys.create(open_database(Settings(data_dir=tmp_path)), "soon", expires_at=1_800_000_000)
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        listed = iro("list", "--data-dir", str(tmp_path)).stdout
    finally:
        monkeypatch.undo()
        time.tzset()
    assert listed.endswith(f"active until {shown}\n") or listed.endswith(f"expired {shown}\n")


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


def test_a_name_is_that_of_one_active_key_of_its_project(tmp_path):
    where = ["--project", "team", "--data-dir", str(tmp_path)]
    iro("create", "ci", *where)
    [id] = key_ids(tmp_path)
    refused = iro("create", "ci", *where)
    assert refused.exit_code == 2 and refused.stdout == "" and refused.stderr.count("\n") == 1
    assert f"active key {id} of the project team" in refused.stderr and key_ids(tmp_path) == [id]
    assert iro("create", "ci", "--project", "other", *where[2:]).exit_code == 0
    iro("revoke", id, *where[2:])
    keys.create(open_database(Settings(data_dir=tmp_path)), "ci", "team", expires_at=int(time.time()))
    assert iro("create", "ci", *where).exit_code == 0  # the one before has expired


@pytest.mark.parametrize(
    "command",
    [["keys", "list"], ["keys", "revoke", "key_1"], ["db", "current"], ["db", "upgrade"], ["backup", "copy"]],
    ids=" ".join,
)
def test_a_folder_without_a_server_is_named_and_not_made(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    refused = CliRunner().invoke(app, [*command, "--data-dir", "typo"])
    assert refused.exit_code == 2
    place = tmp_path / "typo"
    message = f"Error: there is no server data at {place}; name its directory: --data-dir\n"
    assert refused.stderr == message and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [["list"], ["revoke", "key_1"], ["create", "me"]], ids=" ".join)
def test_keys_leave_the_tables_of_a_server_of_an_earlier_version(tmp_path, command):
    sessions = open_database(Settings(data_dir=tmp_path))
    with sessions.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0008'"))
    refused = iro(*command, "--data-dir", str(tmp_path))
    assert refused.exit_code == 2 and refused.stderr.count("\n") == 1
    assert "are at revision 0008" in refused.stderr and "iro db upgrade" in refused.stderr
    with sessions() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "0008"


def test_no_key_is_made_where_the_audit_log_cannot_be(tmp_path):
    open_database(Settings(data_dir=tmp_path))
    (tmp_path / "audit").write_text("no folder")
    refused = iro("create", "me", "--data-dir", str(tmp_path))
    assert refused.exit_code == 2 and refused.stderr.startswith("Error: ") and refused.stderr.count("\n") == 1
    assert key_ids(tmp_path) == []


def test_the_first_key_of_a_new_folder_says_that_it_makes_it(tmp_path):
    where = ["--data-dir", str(tmp_path / "new")]
    assert iro("create", "me", *where).stderr.startswith(f"This makes a new data directory: {tmp_path / 'new'}\n")
    assert "new data directory" not in iro("create", "you", *where).stderr
