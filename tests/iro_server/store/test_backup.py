"""A restore drill: a backup beside a server under load, restored elsewhere, has all that was acknowledged before."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import openai
import pytest
from sqlalchemy import select, text
from typer.testing import CliRunner

from iro_server.cli.main import app
from iro_server.jobs import records
from iro_server.settings import Settings
from iro_server.store import backup as store_backup
from iro_server.store import keys
from iro_server.store.backup import _snapshot_transaction, backup, restore
from iro_server.store.database import open_database
from iro_server.store.files import FileCorrupt
from iro_server.store.tables import Checkpoint, Eval, Event, Job, Model, now
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import GRADER, ended, serving, settings_for, start_job, upload, wait_for

HI = [{"role": "user", "content": "hi"}]
ROW = '{{"messages": [{{"role": "user", "content": "say {}"}}]}}\n'


@contextmanager
def load(client: openai.OpenAI, acknowledged: dict[str, str]):
    """Two clients store files, each other one deleted refusal at once, until the context ends."""
    stop, numbers = threading.Event(), count()

    def store() -> None:
        while not stop.is_set():
            content = ROW.format(next(numbers)).encode() * 50
            id = upload(client, content)
            if next(numbers) % 2:
                client.files.delete(id)
            else:
                acknowledged[id] = hashlib.sha256(content).hexdigest()

    threads = [threading.Thread(target=store) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.mark.parametrize(
    ("kind", "restored_on"),
    [
        ("sqlite", "sqlite"),
        pytest.param("postgresql", "postgresql", marks=pytest.mark.slow(18)),
        pytest.param("sqlite", "postgresql", marks=pytest.mark.slow(12)),
    ],
)
def test_all_that_was_acknowledged_is_there_elsewhere(tmp_path, new_database, kind, restored_on):
    here = settings_for(tmp_path / "here", database_url=new_database(kind))
    secret = keys.create(open_database(here), "mine")[1]
    acknowledged: dict[str, str] = {}
    with serving(here, ByteEngine()) as client:
        ours = client.with_options(api_key=secret)
        done = ended(ours, start_job(ours))
        running = start_job(ours, GRADER | {"name": "slow"}, iterations=8)
        wait_for(lambda: ours.fine_tuning.jobs.checkpoints.list(running).data)
        with load(ours, acknowledged):
            wait_for(lambda: len(acknowledged) > 5)
            before = dict(acknowledged)
            backup(here, open_database(here), tmp_path / "backup")
    there = settings_for(tmp_path / "there", database_url=new_database(restored_on))
    restore(there, tmp_path / "backup")
    with serving(there, ByteEngine()) as client:
        theirs = client.with_options(api_key=secret)
        for id, digest in before.items():
            assert hashlib.sha256(theirs.files.content(id).read()).hexdigest() == digest
        assert theirs.fine_tuning.jobs.retrieve(done.id).status == "succeeded"
        assert len(theirs.fine_tuning.jobs.list_events(done.id, limit=100).data) >= 5
        assert theirs.chat.completions.create(model=done.fine_tuned_model, messages=HI, max_tokens=4).choices
        assert ended(theirs, running).status == "succeeded"
        messages = [event.message for event in theirs.fine_tuning.jobs.list_events(running, limit=100)]
        assert messages.count("Checkpoint created at step 1") == 1 and "Fine-tuning job goes on" in messages
        upload(theirs)


def test_a_run_that_had_begun_finds_its_config_where_it_is_now(tmp_path, new_database):
    here, there = (settings_for(tmp_path / name) for name in ("here", "there"))
    open_database(here)
    run = here.job_dir("ftjob-1") / "run"
    (run / "iterations/1").mkdir(parents=True)
    inside, outside = str(here.job_dir("ftjob-1") / "rows.jsonl"), str(tmp_path / "models")
    (run / "config.json").write_text(json.dumps({"config": {"training_file": inside, "model_dir": outside}}))
    Path(inside).touch(), (run / "iterations/1/manifest.json").touch()
    (run / "result.json").write_text(json.dumps({"best_checkpoint": str(run / "iterations/1")}))
    rest = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "model_name": "m"}
    with open_database(here).begin() as session:
        session.add(Job(id="ftjob-1", status="paused", config={"training_file": inside, "model_dir": outside}, **rest))
    backup(here, open_database(here), tmp_path / "backup")
    restore(there, tmp_path / "backup")
    config = json.loads((there.job_dir("ftjob-1") / "run" / "config.json").read_text())["config"]
    assert config == {"training_file": str(there.job_dir("ftjob-1") / "rows.jsonl"), "model_dir": outside}
    result = json.loads((there.job_dir("ftjob-1") / "run" / "result.json").read_text())
    assert result == {"best_checkpoint": str(there.job_dir("ftjob-1") / "run/iterations/1")}
    with open_database(there)() as session:
        assert session.query(Job).one().config == config


def test_no_text_of_a_user_is_rewritten_that_begins_with_the_data_directory(tmp_path):
    here, there = (settings_for(tmp_path / name) for name in ("here", "there"))
    open_database(here)
    text = f"{here.data_dir}/notes are where?"
    grader = {"type": "string_check", "name": text, "input": text, "reference": text, "operation": "eq"}
    rest = {"model": "m", "training_file": "f", "seed": 1, "model_name": "ft", "status": "succeeded"}
    bundle = str(here.job_dir("ftjob-1") / "run/iterations/1")
    config = {"training_file": str(here.job_dir("ftjob-1") / "training_file.jsonl"), "grader": grader}
    with open_database(here).begin() as session:
        session.add(Job(id="ftjob-1", method={"grader": grader}, config=config, job_metadata={"note": text}, **rest))
        session.flush()
        session.add(Model(id="ft", base="m", job_id="ftjob-1", path=bundle, search={}))
        session.add(Checkpoint(id="c", job_id="ftjob-1", step=1, model_name="ft:1", path=bundle, metrics={}))
        records.add_event(session, "ftjob-1", text, data={"path": bundle, "message": text})
        session.add(Eval(id="eval_1", name=text, data_source_config={"path": text}, testing_criteria=[grader]))
    run = here.job_dir("ftjob-1") / "run"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"config": {"grader": grader}}))
    backup(here, open_database(here), tmp_path / "backup")
    restore(there, tmp_path / "backup")
    moved = str(there.job_dir("ftjob-1") / "run/iterations/1")
    with open_database(there)() as session:
        job = session.query(Job).one()
        assert job.config == {"training_file": str(there.job_dir("ftjob-1") / "training_file.jsonl"), "grader": grader}
        assert (job.method, job.job_metadata) == ({"grader": grader}, {"note": text})
        assert session.query(Model).one().path == session.query(Checkpoint).one().path == moved
        event, stored_eval = session.query(Event).one(), session.query(Eval).one()
        assert (event.message, event.data) == (text, {"path": moved, "message": text})
        assert (stored_eval.name, stored_eval.data_source_config) == (text, {"path": text})
    assert json.loads((there.job_dir("ftjob-1") / "run" / "config.json").read_text()) == {"config": {"grader": grader}}


def test_what_is_no_whole_backup_and_what_is_no_empty_server_is_refused(tmp_path):
    here, there = (settings_for(tmp_path / name) for name in ("here", "there"))
    with serving(here, ByteEngine()) as client:
        file = upload(client)
    with pytest.raises(ValueError, match=r"not a complete backup: it has no backup\.json"):
        restore(there, tmp_path)
    backup(here, open_database(here), tmp_path / "backup")
    with pytest.raises(ValueError, match="is not empty; choose another folder"):
        backup(here, open_database(here), tmp_path / "backup")
    with pytest.raises(ValueError, match="its table files has rows"):
        restore(here, tmp_path / "backup")
    (here.files_dir / file).write_bytes(b"other bytes")
    with pytest.raises(FileCorrupt):
        backup(here, open_database(here), tmp_path / "second")


class SteppingJob:
    """A server's running job whose steps end when a test says: each stores its events, then its file."""

    def __init__(self, folder: Path) -> None:
        self.settings = settings_for(folder)
        self.sessions = open_database(self.settings)
        self.folder = self.settings.job_dir("ftjob-1")

    def start(self) -> None:
        rest = {"model": "m", "training_file": "f", "seed": 1, "method": {}, "config": {}, "model_name": "m"}
        with self.sessions.begin() as session:
            session.add(Job(id="ftjob-1", status="running", attempt=1, **rest))
        self.folder.mkdir(parents=True)
        (self.folder / "training_file.jsonl").write_text("{}")

    def end_step(self, step: int) -> None:
        with self.sessions() as session:
            job = session.scalars(select(Job)).one()
        bundle = self.folder / f"run/iterations/{step}"
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "manifest.json").write_text(str(step))
        for type in ("metrics", "checkpoint"):
            records.record(self.sessions, job, {"type": type, "data": {"step": step, "path": str(bundle)}})
        (self.folder / "run/checkpoints").mkdir(exist_ok=True)
        (self.folder / f"run/checkpoints/{step}-report.pt").write_text(str(step))

    def end(self, last_step: int) -> None:
        self.end_step(last_step)
        with self.sessions.begin() as session:
            job = session.scalars(select(Job)).one()
            job.status, job.finished_at = "succeeded", now()

    def files_in(self, folder: Path) -> set[str]:
        job_folder = folder / "jobs" / "ftjob-1"
        return {str(path.relative_to(job_folder)) for path in job_folder.rglob("*") if path.is_file()}


def stored_steps(out: Path) -> dict[str, list[int]]:
    """Of the backup's rows."""
    lines = {name: (out / f"{name}.jsonl").read_text().splitlines() for name in ("events", "checkpoints")}
    events, checkpoints = (list(map(json.loads, lines[name])) for name in ("events", "checkpoints"))
    metrics = [event["data"]["step"] for event in events if event["type"] == "metrics"]
    return {"metrics": metrics, "checkpoints": [checkpoint["step"] for checkpoint in checkpoints]}


def around_snapshot(monkeypatch, before: Callable[[], None], after: Callable[[], None] = lambda: None) -> None:
    """Have the backup call ``before`` and ``after`` when it reads the rows."""
    write_snapshot = store_backup._write_snapshot

    def call(engine, out):
        before()
        counts = write_snapshot(engine, out)
        after()
        return counts

    monkeypatch.setattr(store_backup, "_write_snapshot", call)


def test_a_step_that_is_done_in_the_copy_has_its_rows(tmp_path, monkeypatch):
    """A restored job repeats what its folder lacks, and tells nothing of what it has."""
    job = SteppingJob(tmp_path / "here")
    job.start()
    job.end_step(1)
    around_snapshot(monkeypatch, lambda: job.end_step(2), lambda: job.end_step(3))
    backup(job.settings, job.sessions, tmp_path / "backup")
    assert stored_steps(tmp_path / "backup") == {"metrics": [1, 2], "checkpoints": [1, 2]}
    assert job.files_in(tmp_path / "backup") == {
        "training_file.jsonl",
        "run/checkpoints/1-report.pt",
        "run/iterations/1/manifest.json",
        "run/iterations/2/manifest.json",  # which a row names, and may be called before the step is repeated
    }


def test_a_job_that_ends_before_the_rows_are_read_is_whole(tmp_path, monkeypatch):
    job = SteppingJob(tmp_path / "here")
    job.start()
    job.end_step(1)
    around_snapshot(monkeypatch, lambda: job.end(2))
    backup(job.settings, job.sessions, tmp_path / "backup")
    assert job.files_in(tmp_path / "backup") == job.files_in(job.settings.data_dir)


def test_a_job_that_is_made_before_the_rows_are_read_starts_anew(tmp_path, monkeypatch):
    job = SteppingJob(tmp_path / "here")

    def start_and_end_a_step() -> None:
        job.start()
        job.end_step(1)

    around_snapshot(monkeypatch, start_and_end_a_step, lambda: job.end_step(2))
    backup(job.settings, job.sessions, tmp_path / "backup")
    assert stored_steps(tmp_path / "backup")["metrics"] == [1]
    assert job.files_in(tmp_path / "backup") == {"training_file.jsonl", "run/iterations/1/manifest.json"}


def test_a_folder_may_be_removed_while_it_is_listed(tmp_path, monkeypatch):
    folders = [tmp_path / "run" / name for name in ("1", "2")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "state").touch()
    scandir = os.scandir

    def remove_and_list(path):
        if str(path) == str(folders[1]):
            (folders[1] / "state").unlink()
            folders[1].rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", remove_and_list)
    store_backup._copy_folder(tmp_path / "run", tmp_path / "copy")
    monkeypatch.undo()
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["1"]


def test_what_replaces_a_file_that_is_removed_while_others_are_copied_is_copied(tmp_path, monkeypatch):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("1-rewards", "1-rollouts"):
        (run / name).touch()
    copy = store_backup._copy

    def copy_and_end_step(source: Path, target: Path) -> bool:
        (run / "1-rollouts").unlink(missing_ok=True)
        (run / "1-report").touch()
        return copy(source, target)

    monkeypatch.setattr(store_backup, "_copy", copy_and_end_step)
    store_backup._copy_folder(run, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {"1-rewards", "1-report"}


def test_a_folder_that_cannot_be_read_ends_the_backup():
    store_backup._raise_unless_removed(FileNotFoundError())
    with pytest.raises(PermissionError):
        store_backup._raise_unless_removed(PermissionError())


def restore_error(tmp_path: Path, damage: Callable[[Path, list[str]], object]) -> str:
    """Of a backup of two files, after ``damage`` was called with its folder and their ids."""
    here, there, out = (tmp_path / name for name in ("here", "there", "backup"))
    with serving(settings_for(here), ByteEngine()) as client:
        ids = sorted(upload(client) for _ in range(2))
    backup(settings_for(here), open_database(settings_for(here)), out)
    damage(out, ids)
    settings = settings_for(there)
    with pytest.raises(ValueError) as error:
        restore(settings, out)
    assert not settings.data_dir.exists()
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(out), "BACKUP").replace(ids[0], "FILE")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out, ids: (out / "files" / ids[0]).unlink(), "BACKUP is damaged: it has no files/FILE"),
        (
            lambda out, ids: (out / "files" / ids[0]).write_bytes(b"other"),
            "BACKUP is damaged: FILE is not what was stored",
        ),
        (
            lambda out, ids: (out / "backup.json").write_text("{}"),
            "BACKUP/backup.json is not a backup's manifest: data_dir: Field required",
        ),
        (
            lambda out, ids: (out / "backup.json").write_text('{"data'),
            "BACKUP/backup.json is not a backup's manifest: Invalid JSON: ",
        ),
        (lambda out, ids: (out / "files.jsonl").write_text('{"id'), "BACKUP/files.jsonl is damaged: "),
    ],
    ids=["missing file", "other bytes", "other manifest", "cut manifest", "cut rows"],
)
def test_a_damaged_backup_is_refused_before_anything_is_restored(tmp_path, damage, message):
    assert restore_error(tmp_path, damage).startswith(message)


def test_a_database_of_another_version_is_not_migrated_by_a_backup(tmp_path):
    settings = settings_for(tmp_path / "here")
    sessions = open_database(settings)
    with sessions.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '0008'"))
    with pytest.raises(ValueError, match=r"are at revision 0008, .*: back up with the version of Iro that the server"):
        backup(settings, sessions, tmp_path / "backup")
    command = ["backup", str(tmp_path / "backup"), "--data-dir", str(settings.data_dir)]
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2 and "revision 0008" in refused.stderr and not (tmp_path / "backup").exists()
    with sessions() as session:
        assert session.scalar(text("SELECT version_num FROM alembic_version")) == "0008"


def test_a_large_table_may_take_its_time(tmp_path, new_database):
    url = new_database("postgresql")
    sessions = open_database(Settings(data_dir=tmp_path, database_url=url, database_statement_timeout=30.0))
    with _snapshot_transaction(sessions.kw["bind"]) as connection:
        assert connection.scalar(text("SHOW statement_timeout")) == "0"
    with sessions() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "30s"


@pytest.mark.slow(6)
def test_the_commands(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    settings = Settings(data_dir=here)
    keys.create(open_database(settings), "mine")

    def iro(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "iro_server", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    result = iro("backup", tmp_path / "backup", "--data-dir", here)
    assert (result.returncode, result.stdout) == (
        0,
        f"Backed up to {tmp_path / 'backup'}: 0 files, 0 jobs, 0 models, 1 keys\n",
    )
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0
    result = iro("restore", tmp_path / "backup", "--data-dir", there)
    assert (result.returncode, result.stdout) == (0, f"Restored to {there}: 0 files, 0 jobs, 0 models, 1 keys\n")
    refusal = iro("restore", tmp_path / "backup", "--data-dir", there)
    assert refusal.returncode == 2 and refusal.stderr.startswith("Error: this server is not empty")
