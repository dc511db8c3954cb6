"""The process that runs one job: ``python -m iro_server.jobs.worker --job ID --attempt N``.

Its settings are in ``$IRO_SETTINGS``, and where its graders run in ``$IRO_GRADERS``.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from tenacity import retry, retry_if_exception, wait_exponential

from iro_server.alignment.definition import ServedDefaults
from iro_server.alignment.entry import JobEvent, load_alignment_job
from iro_server.engines.endpoints import EngineUnavailable
from iro_server.jobs import disk, leftovers, lock, records
from iro_server.jobs.progress import Progress
from iro_server.settings import Settings
from iro_server.store import files
from iro_server.store.database import Sessions, connect, find, is_unavailable, sessions_on
from iro_server.store.tables import File, Job, new_id
from iro_server.telemetry import grading, logs, tracing

log = logging.getLogger("iro.worker")  # which, unlike a print, raises nothing where the log's disk is full
SETTINGS_VARIABLE = "IRO_SETTINGS"
TAKEN = 75  # exit status: another worker has the job's folder
AWAY = {  # by the code of the error
    "storage_unavailable": "The storage of checkpoints",
    "cluster_unavailable": "The Ray cluster",
    "grader_service_unavailable": "The service of python graders",
}
Result = TypeVar("Result")


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", type=int, required=True)
    arguments = parser.parse_args()
    settings = Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
    logs.configure(settings.log_format, logging.WARNING, arguments.job)
    if settings.otlp_endpoint:
        tracing.start(settings.otlp_endpoint, "iro-worker")
    folder = settings.job_dir(arguments.job)
    with lock.hold(folder) as held:
        if not held:
            return TAKEN
        Worker(settings, sessions_on(connect(settings)), arguments.job, arguments.attempt).work()
    return 0


def retry_while_unavailable(call: Callable[..., Result]) -> Callable[..., Result]:
    """``call``, retried while the database is unavailable, so that no computed result is lost."""
    unavailable = retry_if_exception(is_unavailable)
    return retry(retry=unavailable, wait=wait_exponential(multiplier=0.2, max=5), reraise=True)(call)


class Worker:
    def __init__(self, settings: Settings, sessions: Sessions, job_id: str, attempt: int) -> None:
        self.settings, self.sessions, self.job_id, self.attempt = settings, sessions, job_id, attempt
        self.out = settings.job_dir(job_id) / "run"
        self.stop = threading.Event()
        self.stage: str | None = None

    def work(self) -> None:
        """Run the job to its end and record how it ended, whatever it raises."""
        job = retry_while_unavailable(self._read)()
        if job is None or job.status != "running" or job.attempt != self.attempt:
            return
        threading.Thread(target=self.beat, args=(job,), daemon=True).start()
        attributes: dict[str, str | int] = {"iro.job_id": job.id, "iro.job_attempt": job.attempt}
        try:
            with tracing.span("job", context=tracing.after(job.traceparent), attributes=attributes):
                self._execute(job)
        except records.LeaseLost as error:
            log.warning("%s", error)
        except Exception as error:
            self._record_error(job, error)
        finally:
            self._discard()

    def _record_error(self, job: Job, error: Exception) -> None:
        """Pause the job, or fail it, unless it is cancelled, paused or another worker's already."""
        if self.stop.is_set():
            return
        log.error("the job failed", exc_info=error)
        try:
            if why := self._passing(error):
                retry_while_unavailable(records.pause_as_worker)(self.sessions, job, why)
            else:
                retry_while_unavailable(records.fail)(self.sessions, job, *explain(error))
        except records.LeaseLost as lost:
            log.warning("%s", lost)

    def _discard(self) -> None:
        job = retry_while_unavailable(self._read)()
        if job and job.status in ("failed", "cancelled"):
            leftovers.discard(self.settings, self.job_id)
        retry_while_unavailable(leftovers.discard_deleted_inputs)(self.settings, self.sessions, Job.id == self.job_id)

    def _passing(self, error: Exception) -> str | None:
        """What to tell where the error is no fault of the job's, which can go on once that has passed."""
        if disk.is_cause(error, self.out):
            return disk.PAUSED
        if isinstance(error, EngineUnavailable):
            return "The model cannot be reached: the job is paused. Resume it once its servers answer."
        if (code := getattr(error, "code", None)) in AWAY:
            return f"{AWAY[code]} cannot be used: the job is paused. Resume it once that has passed."
        return None

    def beat(self, job: Job) -> None:
        """Heartbeats, until the job is to stop."""
        while not self.stop.wait(self.settings.heartbeat):
            try:
                if self._tell(job) != "running":
                    self.stop.set()
            except records.LeaseLost:
                self.stop.set()
            except Exception:  # such as a database that is locked: a heartbeat that ends would have the worker killed
                log.exception("no heartbeat")

    def _tell(self, job: Job) -> str:
        return records.beat(self.sessions, job, stage=self.stage, grading=grading.so_far())

    def _read(self) -> Job | None:
        with self.sessions() as session:
            return find(session, Job, self.job_id)

    def _execute(self, job: Job) -> None:
        alignment_job = load_alignment_job(self.settings.align_entry)
        config = alignment_job.Config.model_validate(job.config | self.settings.moved_engine_fields(job.config))
        defaults = config.served_defaults.model_dump(exclude_none=True)
        search = (job.search or {}) | defaults  # an earlier worker's measured max_tokens stays
        retry_while_unavailable(records.beat)(self.sessions, job, search=search)
        progress = Progress(self.sessions, job)

        def on_event(event: JobEvent) -> None:
            if event["type"] == "progress":
                retry_while_unavailable(progress.note)(**event["data"])
            elif event["type"] == "stage":
                self.stage = event["data"]["stage"]  # for the next heartbeat to tell
            elif event["type"] == "defaults":
                search.update(event["data"])
                retry_while_unavailable(records.beat)(self.sessions, job, search=search)
            else:
                retry_while_unavailable(records.record)(self.sessions, job, event)

        result = alignment_job.execute(config, self.out, on_event=on_event, should_stop=self.stop.is_set)
        search |= {name: result[name] for name in ("max_tokens", "improved", "over_optimization") if name in result}
        retry_while_unavailable(self._tell)(job)  # of what was graded since the last heartbeat
        retry_while_unavailable(records.beat)(self.sessions, job, search=search)
        if "search" in result:  # of the model alone: a checkpoint's metrics name its own
            search |= {"search": result["search"]}
        if not (search.get("improved", True) or config.keep_unproven):
            search |= ServedDefaults().model_dump(include={"search"})
        ended = (str(result["best_checkpoint"]), search, self._result_file(job), result.get("trained_tokens"))
        retry_while_unavailable(records.succeed)(self.sessions, job, *ended)

    def _result_file(self, job: Job) -> File | None:
        """The run's metrics, stored as a file of the project; its row is for ``succeed`` to add."""
        metrics = self.out / "metrics.csv"
        if not metrics.exists():
            return None
        id = new_id("file-")
        with metrics.open("rb") as lines:
            size, digest = files.write_whole(self.settings.files_dir / id, lines)
        row = File(id=id, project=job.project, filename="step_metrics.csv", purpose="fine-tune-results", bytes=size)
        row.sha256 = digest
        return row


def explain(error: Exception) -> tuple[str, str, str | None]:
    """Code, message and parameter of a failed job's error, from what its ``execute`` raised."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        param = ".".join(str(step) for step in first["loc"])
        return "invalid_config", f"{param}: {first['msg']}", param or None
    if isinstance(error, SQLAlchemyError):  # its text has the statement, its code is of SQLAlchemy's documentation
        return "server_error", f"The server had an error: {type(error).__name__}", None
    code = getattr(error, "code", None)
    code = code if isinstance(code, str) else "job_failed"
    return code, str(error) or type(error).__name__, getattr(error, "param", None)


if __name__ == "__main__":
    sys.exit(main())
