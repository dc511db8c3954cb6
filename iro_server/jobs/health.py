"""Whether what runs on this machine is well, for the probes of those who run it: None, or what is wrong."""

from __future__ import annotations

import os

import httpx

from iro_server.jobs import presence
from iro_server.settings import GRADERS_PORT, Settings
from iro_server.store.database import connect, reachable

SECONDS = 5.0


def server_problem(settings: Settings) -> str | None:
    """Why this machine's server cannot serve."""
    return _get_problem(f"{settings.own_url}/health")


def graders_problem(port: int | None) -> str | None:
    """Why this machine's grader service does not answer. ``port`` None: $IRO_PORT, or the default."""
    return _get_problem(f"http://127.0.0.1:{port or os.environ.get('IRO_PORT', GRADERS_PORT)}/health")


def _get_problem(url: str) -> str | None:
    try:
        httpx.get(url, timeout=SECONDS).raise_for_status()
    except httpx.HTTPError as error:
        return f"{url}: {error}"
    return None


def worker_problem(settings: Settings) -> str | None:
    """Why jobs do not run here: nothing on this machine takes them, or the database cannot be used."""
    if not presence.takes_jobs_here(settings.data_dir):
        return f"nothing on this machine runs the jobs of {settings.data_dir}"
    try:
        with reachable(connect(settings.model_copy(update={"database_timeout": SECONDS}))) as engine:
            engine.connect().close()
    except ConnectionError as error:
        return str(error)
    return None
