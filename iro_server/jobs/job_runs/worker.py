"""The process of one run: ``python -m iro_server.jobs.job_runs.worker FOLDER``. Where its graders run is in
``$IRO_GRADERS``. SIGTERM has it end after its current step; it ends at once where the server does."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from pathlib import Path

from iro_server.alignment.entry import load_batch_job
from iro_server.jobs import lock
from iro_server.jobs.job_runs.folder import RunFolder
from iro_server.jobs.worker import TAKEN, explain

log = logging.getLogger("iro.runs")
NICENESS = 10  # requests come first
ORPHAN_SECONDS = 1.0  # between two looks whether the server is alive
FAILED, STOPPED = 1, 2  # exit statuses


def main() -> int:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    os.nice(NICENESS)
    logging.basicConfig(level=logging.WARNING)
    folder = RunFolder(Path(sys.argv[1]))
    with lock.hold(folder.path) as held:
        return _run(folder, stop) if held else TAKEN


def _run(folder: RunFolder, stop: threading.Event) -> int:
    request = folder.request()
    try:
        job = load_batch_job(request["kind"])
        job.execute(request["config"], folder.out, on_event=folder.note, should_stop=stop.is_set)
    except Exception as error:
        if stop.is_set():
            return STOPPED
        log.exception("the run failed")
        folder.write_error(*explain(error))
        return FAILED
    return 0


def _end_with(server: int) -> None:
    """End this process and those that it has started once the process ``server`` has ended."""
    while os.getppid() == server:
        time.sleep(ORPHAN_SECONDS)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
