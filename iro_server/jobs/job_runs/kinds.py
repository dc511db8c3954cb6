"""The installed batch jobs as data: ``python -m iro_server.jobs.job_runs.kinds`` prints them as JSON.

A process apart imports them, so that their libraries stay out of the server.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from functools import cache
from typing import TypedDict

from iro_server import JsonObject
from iro_server.alignment.entry import JobUnavailable, batch_jobs, load_batch_job
from iro_server.concurrency.openmp import job_environment

SECONDS = 300  # for all imports, on a machine that is busy


class JobKind(TypedDict):
    """``config_schema``: JSON schema of the config. ``problem``: what to install before the job runs, else None."""

    id: str
    summary: str
    presets: dict[str, JsonObject]
    config_schema: JsonObject
    problem: str | None


_reading = threading.Lock()


def job_kinds() -> Mapping[str, JobKind]:
    """The batch jobs of this installation, by name. Read once."""
    with _reading:
        return _read()


@cache
def _read() -> Mapping[str, JobKind]:
    command = [sys.executable, "-m", "iro_server.jobs.job_runs.kinds"]
    environment = job_environment(os.environ)
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment, timeout=SECONDS)
    if done.returncode != 0:
        raise RuntimeError(f"the batch jobs could not be read: {done.stderr.decode(errors='replace')[-2000:]}")
    kinds: list[JobKind] = json.loads(done.stdout)
    return {kind["id"]: kind for kind in kinds}


def kind_of(name: str) -> JobKind:
    try:
        job = load_batch_job(name)
    except (JobUnavailable, ImportError, OSError) as error:  # of a library too, that the others do without
        return {"id": name, "summary": "", "presets": {}, "config_schema": {}, "problem": str(error)}
    presets = {preset: dict(config) for preset, config in job.presets.items()}
    schema = job.Config.model_json_schema()
    return {"id": name, "summary": job.summary, "presets": presets, "config_schema": schema, "problem": None}


def path_fields(schema: JsonObject) -> set[str]:
    """Fields of a config that hold a path, at any depth."""
    definitions = schema.get("$defs", {})
    return {name for name, field in schema.get("properties", {}).items() if _holds_path(field, definitions, ())}


def _holds_path(schema: object, definitions: Mapping[str, object], references: tuple[str, ...]) -> bool:
    if isinstance(schema, list):
        return any(_holds_path(part, definitions, references) for part in schema)
    if not isinstance(schema, dict):
        return False
    if str(schema.get("format", "")).endswith("path"):  # path, file-path, directory-path
        return True
    name = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    if name and name not in references and _holds_path(definitions.get(name), definitions, (*references, name)):
        return True
    return any(_holds_path(part, definitions, references) for part in schema.values())


def main() -> None:
    with contextlib.redirect_stdout(sys.stderr):  # a library may greet
        kinds = [kind_of(name) for name in sorted(batch_jobs().names)]
    json.dump(kinds, sys.stdout)


if __name__ == "__main__":
    main()
