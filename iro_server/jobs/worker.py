"""The process that runs one job: ``python -m iro_server.jobs.worker --job ID``, its settings in ``$IRO_SETTINGS``."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from iro_server.jobs import lock, records
from iro_server.settings import Settings
from iro_server.store.database import Sessions, find, open_database
from iro_server.store.tables import Job

SETTINGS_VARIABLE = "IRO_SETTINGS"
TAKEN = 75  # exit status: another worker has the job's folder


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--job", required=True)
    job_id = parser.parse_args().job
    settings = Settings.model_validate_json(os.environ[SETTINGS_VARIABLE])
    folder = settings.job_dir(job_id)
    with lock.hold(folder) as held:
        if not held:
            return TAKEN
        work(settings, open_database(settings), job_id, folder / "run")
    return 0


def work(settings: Settings, sessions: Sessions, job_id: str, out: Path) -> None:
    """Run the job to its end and record how it ended, whatever it raises."""
    with sessions() as session:
        job = find(session, Job, job_id)
    if job is None or job.status != "running":
        return
    stop = threading.Event()
    threading.Thread(target=_beat, args=(sessions, job_id, settings.heartbeat, stop), daemon=True).start()
    try:
        _execute(settings, sessions, job, out, stop)
    except Exception as error:
        if stop.is_set():
            return  # cancelled: the status says so already
        traceback.print_exc()
        records.fail(sessions, job_id, *explain(error))


def _execute(settings: Settings, sessions: Sessions, job: Job, out: Path, stop: threading.Event) -> None:
    entry = load_entry(settings.align_entry)
    config = entry.Config.model_validate(job.config)
    search = defaults(config)
    with sessions.begin() as session:
        session.merge(job).search = search
    result = entry.execute(
        config, out, on_event=lambda event: records.record(sessions, job, event), should_stop=stop.is_set
    )
    if result.get("best_checkpoint") is None:
        raise NoImprovement("no iteration's held-out reward was above the base model's, so there is no model to serve")
    records.succeed(sessions, job, str(result["best_checkpoint"]), search)


class NoImprovement(Exception):
    code = "no_improvement"


def load_entry(name: str | None) -> Any:
    """The alignment job: the entry point ``align`` of ``iro.jobs``, or the object that ``module:attribute`` names."""
    if name is None:
        (entry,) = importlib.metadata.entry_points(group="iro.jobs", name="align")
        return entry.load()
    module, attribute = name.split(":")
    return getattr(importlib.import_module(module), attribute)


def defaults(config: Any) -> dict[str, Any]:
    """What the job's models do unless a request says otherwise (``registry.Defaults``): as the job evaluated them."""
    from iro_server.decoding.base import SearchParams  # torch, which takes seconds: the heartbeat is on by now

    names = [name for name in ("beam_width", "num_successors", "chunk_length", "selection") if hasattr(config, name)]
    search = SearchParams(**{name: getattr(config, name) for name in names}).model_dump(exclude={"betas"})
    sampling = {name: getattr(config, name) for name in ("temperature", "max_tokens") if hasattr(config, name)}
    return {"search": search} | sampling


def explain(error: Exception) -> tuple[str, str, str | None]:
    """Code, message and parameter of a failed job's error, from what its ``execute`` raised."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        param = ".".join(str(step) for step in first["loc"])
        return "invalid_config", f"{param}: {first['msg']}", param or None
    code = getattr(error, "code", None)
    code = code if isinstance(code, str) else "job_failed"
    return code, str(error) or type(error).__name__, getattr(error, "param", None)


def _beat(sessions: Sessions, job_id: str, interval: float, stop: threading.Event) -> None:
    while not stop.wait(interval):
        try:
            if records.beat(sessions, job_id) != "running":
                stop.set()
        except Exception:  # such as a database that is locked: a heartbeat that ends would have the worker killed
            traceback.print_exc()


if __name__ == "__main__":
    sys.exit(main())
