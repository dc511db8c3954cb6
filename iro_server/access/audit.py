"""The audit log: a line for each request, and for each key that is made or revoked."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from logging.handlers import WatchedFileHandler
from pathlib import Path

from iro_server.settings import Settings

MAX_PATH = 500  # characters of a request's path in a line
FILE_BYTES = 100 * 2**20  # of one file, after which the next one begins
OLD_FILES = 9  # beside the one that is written
REPORT_SECONDS = 60.0  # between two log lines of a file that cannot be written
log = logging.getLogger("iro.access")


def audit_log(settings: Settings) -> logging.Logger:
    """``<data dir>/audit/<this machine>.jsonl``; each machine, or container, has its own, since lines that several
    append to one file of a network's file system may overwrite each other. ``RotatedFile`` bounds its size."""
    audit = logging.getLogger(f"iro.audit.{settings.data_dir}")
    if not audit.handlers:
        folder = settings.data_dir / "audit"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = RotatedFile(folder / f"{socket.gethostname()}.jsonl")
        handler.setFormatter(logging.Formatter("%(message)s"))
        audit.addHandler(handler)
        audit.setLevel(logging.INFO)
        audit.propagate = False
    return audit


class RotatedFile(WatchedFileHandler):
    """Renames its file to ``.1`` once it has ``FILE_BYTES``, ``.1`` to ``.2`` and so on, and keeps ``OLD_FILES``.
    Other processes may append to the file, or rotate it. A line that cannot be written, as on a full disk, is lost."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, delay=True)
        self._next_report = 0.0  # monotonic

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._rotate_if_full()
        except OSError:  # such as a folder that may not be written: the line is still to be tried
            self.handleError(record)
        try:
            super().emit(record)
        except OSError:  # the file could not be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Log the exception that is being handled, at most once in ``REPORT_SECONDS``."""
        if time.monotonic() < self._next_report:
            return
        self._next_report = time.monotonic() + REPORT_SECONDS
        log.error("the audit log %s lacks lines, which could not be written: %s", self.baseFilename, sys.exc_info()[1])

    def _rotate_if_full(self) -> None:
        try:
            if os.stat(self.baseFilename).st_size < FILE_BYTES:
                return
        except FileNotFoundError:
            return
        for number in range(OLD_FILES - 1, 0, -1):
            older = Path(f"{self.baseFilename}.{number}")
            if older.exists():
                older.replace(f"{self.baseFilename}.{number + 1}")
        os.replace(self.baseFilename, f"{self.baseFilename}.1")


def cut_access_log() -> None:
    """Cut the paths in uvicorn's log of requests to ``MAX_PATH`` characters."""
    access_log = logging.getLogger("uvicorn.access")
    if not any(isinstance(each, _CutPath) for each in access_log.filters):
        access_log.addFilter(_CutPath())


class _CutPath(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(value[:MAX_PATH] if isinstance(value, str) else value for value in record.args)
        return True
