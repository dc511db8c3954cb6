"""A restore drill: a backup beside a server under load, restored elsewhere, has all that was acknowledged before."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import openai
import pytest

from iro_server.jobs import records
from iro_server.settings import Settings
from iro_server.store import keys
from iro_server.store.backup import backup, restore
from iro_server.store.database import open_database
from iro_server.store.files import FileCorrupt
from iro_server.store.tables import Checkpoint, Eval, Event, Job, Model
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
    restore(there, open_database(there), tmp_path / "backup")
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
    restore(there, open_database(there), tmp_path / "backup")
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
    restore(there, open_database(there), tmp_path / "backup")
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
        restore(there, open_database(there), tmp_path)
    backup(here, open_database(here), tmp_path / "backup")
    with pytest.raises(ValueError, match="is not empty; choose another folder"):
        backup(here, open_database(here), tmp_path / "backup")
    with pytest.raises(ValueError, match="its table files has rows"):
        restore(here, open_database(here), tmp_path / "backup")
    (here.files_dir / file).write_bytes(b"other bytes")
    with pytest.raises(FileCorrupt):
        backup(here, open_database(here), tmp_path / "second")


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
