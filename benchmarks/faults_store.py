"""A disk that is full and a database that is locked, under a running job."""

from __future__ import annotations

import errno
import os
import random
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import openai

from benchmarks.faults_jobs import Jobs
from benchmarks.faults_ledger import Phase
from benchmarks.faults_results import Reference, create, upload_rows
from benchmarks.faults_server import Server, insist, served, wait_for
from benchmarks.faults_uploads import Uploads, sha256
from iro_server.settings import Settings

DISK = "96m"
FILE = 4 * 2**20  # bytes of an upload that fills the disk
LOCKED = 40.0  # seconds; SQLite gives up waiting after 30


def lock_database(server: Server, phase: Phase, reference: Reference) -> None:
    """Requests get 503 while another process keeps the database; the job under way ends as if nothing had been."""
    judge = Jobs([server], phase, {reference.recipe: reference}, random.Random(0))
    job = start(server, judge, reference)
    path = server.settings.data_dir / "iro.db"
    codes: Counter[str] = Counter()
    stopping = threading.Event()

    def upload() -> None:
        while not stopping.is_set():
            try:
                uploads.promise(upload_rows(server.client), "rows.jsonl")
            except openai.APIStatusError as error:
                codes[f"{error.status_code} {error.code}"] += 1

    uploads = Uploads([server], phase, 0)
    uploads.sent["rows.jsonl"] = uploads.hash_of(judge.training_file)
    with closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        threads = [threading.Thread(target=upload, daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + LOCKED
        while time.monotonic() < until:
            server.client.fine_tuning.jobs.retrieve(job)  # what only reads goes on
            time.sleep(1)
        connection.execute("ROLLBACK")
    stopping.set()
    for thread in threads:
        thread.join()
    phase.notes |= {f"uploads answered {code}": count for code, count in codes.items()}
    phase.expect(set(codes) == {"503 storage_unavailable"}, f"uploads to a locked database got {dict(codes)}")
    uploads.check_all()
    judge.judge(job, reference.recipe)


def start(server: Server, jobs: Jobs, reference: Reference) -> str:
    """A job of the reference's recipe, once it has finished a step."""
    job = create(server.client, reference.recipe, reference.seed, jobs.training_file)
    jobs.phase.acknowledge("jobs")
    finished = server.settings.job_dir(job) / "run" / "checkpoints" / f"{reference.steps[2]}.pt"
    wait_for(finished.exists, "a step of the job")
    return job


def fill_disk(settings: Settings, mount: Path, log: Path, phase: Phase, reference: Reference) -> None:
    """Uploads to a full disk are refused cleanly; a job is paused and, once there is room and it is resumed, ends as
    if nothing had been."""
    if os.geteuid() != 0:
        phase.skipped = "a file system of a fixed size takes root to mount"
        return
    with small_disk(mount, DISK):
        server = Server(settings.model_copy(update={"data_dir": mount}), log)
        with served(server):
            fill_by_uploads(server, phase)
            fill_under_job(server, phase, reference)


@contextmanager
def small_disk(mount: Path, size: str) -> Iterator[None]:
    mount.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(mount)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(mount)], check=True)


def fill_by_uploads(server: Server, phase: Phase) -> None:
    uploads = Uploads([server], phase, 0)
    refused = None
    for number in range(1000):
        name = f"{number}.jsonl"
        content = b'{"prompt": "%s"}\n' % (str(number % 10).encode() * FILE)
        uploads.sent[name] = sha256(content)
        try:
            uploads.promise(server.client.files.create(file=(name, content), purpose="fine-tune").id, name)
        except openai.APIStatusError as error:
            refused = error
            break
    phase.expect(
        refused is not None and (refused.status_code, refused.code) == (507, "storage_full"),
        f"an upload to a full disk got {refused}",
    )
    uploads.check_all()
    for id in uploads.promised:
        server.client.files.delete(id)


def fill_under_job(server: Server, phase: Phase, reference: Reference) -> None:
    jobs = Jobs([server], phase, {reference.recipe: reference}, random.Random(0))
    job = start(server, jobs, reference)
    ballast = server.settings.data_dir / "ballast"
    fill(ballast)
    time.sleep(15)  # steps fail, and what they tell finds no room either
    ballast.unlink()
    wait_for(lambda: server.client.fine_tuning.jobs.retrieve(job).status == "paused", "the job to be paused", 60)
    messages = [event.message for event in server.client.fine_tuning.jobs.list_events(job, limit=100)]
    phase.expect(any("disk is full" in message for message in messages), f"no event tells of the disk: {messages}")
    phase.acknowledge("pauses")
    insist([server], lambda client: client.fine_tuning.jobs.resume(job))
    jobs.judge(job, reference.recipe)


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
