"""PostgreSQL stopped, as by a crash, and started again under a running job."""

from __future__ import annotations

import random
import time
from pathlib import Path

import openai

from benchmarks.faults_jobs import Jobs
from benchmarks.faults_ledger import Phase
from benchmarks.faults_results import Reference, upload_rows
from benchmarks.faults_server import Server, served
from benchmarks.faults_store import start
from benchmarks.faults_uploads import Uploads
from benchmarks.postgres import MISSING, postgres, programs
from iro_server.settings import Settings

CRASHES = 3


def crash_postgres(settings: Settings, log: Path, phase: Phase, reference: Reference, seed: int) -> None:
    """Requests get 503 while the database is away; the job under way ends as if nothing had been."""
    if (bin := programs()) is None:
        phase.skipped = MISSING
        return
    rng = random.Random(f"{seed}-postgres")
    with postgres(bin) as database:
        server = Server(settings.model_copy(update={"database_url": database.url}), log)
        with served(server):
            jobs = Jobs([server], phase, {reference.recipe: reference}, rng)
            uploads = Uploads([server], phase, 0)
            uploads.sent["rows.jsonl"] = uploads.hash_of(jobs.training_file)
            job = start(server, jobs, reference)
            for _ in range(CRASHES):
                uploads.promise(upload_rows(server.client), "rows.jsonl")
                time.sleep(rng.uniform(0, 2))
                database.crash()
                phase.note("crashes of the database")
                try:
                    upload_rows(server.client)
                except openai.APIStatusError as error:
                    phase.expect(error.code == "storage_unavailable", f"without a database an upload got {error}")
                else:
                    phase.fault("lost", "an upload was acknowledged without a database")
                time.sleep(rng.uniform(0, 3))
                database.start()
            uploads.check_all()
            jobs.judge(job, reference.recipe)
