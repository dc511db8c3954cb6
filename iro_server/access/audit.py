"""The audit log: a line for each request, and for each key that is made or revoked."""

from __future__ import annotations

import logging
import socket
from logging.handlers import WatchedFileHandler

from iro_server.settings import Settings


def audit_log(settings: Settings) -> logging.Logger:
    """``<data dir>/audit/<this machine>.jsonl``, which may be rotated from outside; each machine, or container, has its
    own, since lines that several append to one file of a network's file system may overwrite each other."""
    log = logging.getLogger(f"iro.audit.{settings.data_dir}")
    if not log.handlers:
        folder = settings.data_dir / "audit"
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handler = WatchedFileHandler(folder / f"{socket.gethostname()}.jsonl", delay=True)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log
