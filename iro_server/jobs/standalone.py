"""Jobs without the API: a supervisor on a machine, or in a container, of its own."""

from __future__ import annotations

import asyncio
import signal

from iro_server.access.key_requirement import KeyRequirement
from iro_server.jobs.supervisor import Supervisor
from iro_server.settings import Settings
from iro_server.store import keys
from iro_server.store.database import open_database
from iro_server.telemetry import logs, tracing


def work(settings: Settings) -> None:
    """Take jobs and see to them until told to stop; what runs then goes on with whoever takes it next."""
    logs.configure(settings.log_format)
    if settings.job_concurrency == 0:
        raise ValueError("IRO_JOB_CONCURRENCY is 0, so this worker would take no job: make it 1 or more")
    if settings.otlp_endpoint:
        tracing.start(settings.otlp_endpoint)  # its workers will: what they would lack is told now
    asyncio.run(_supervise(settings))


async def _supervise(settings: Settings) -> None:
    sessions = open_database(settings)
    keys_required = KeyRequirement(settings, sessions)
    grader_environment = settings.grader_environment(keys.internal(settings.data_dir), keys_required)
    supervisor = Supervisor(settings, sessions, grader_environment)
    for stop_signal in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(stop_signal, supervisor.stopping.set)
    await supervisor.run()
