"""When a job may be done, from how far it came since its worker started."""

from __future__ import annotations

import time

from iro_server.jobs import records
from iro_server.store.database import Sessions
from iro_server.store.tables import Job

INTERVAL = 1.0  # seconds between two notes of it


class Progress:
    def __init__(self, sessions: Sessions, job: Job) -> None:
        self.sessions, self.job = sessions, job
        self.first: tuple[float, int] | None = None
        self.noted = -INTERVAL

    def note(self, done: int, total: int) -> None:
        """``done`` of ``total`` parts, of which the first call's were done before this worker."""
        time_now = time.monotonic()
        if self.first is None:
            self.first = (time_now, done)
        since, before = self.first
        if done > before and time_now - self.noted >= INTERVAL:
            remaining_seconds = (time_now - since) / (done - before) * (total - done)
            self.noted = time_now
            records.progress(self.sessions, self.job, round(time.time() + remaining_seconds))
