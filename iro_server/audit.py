"""The audit log: a line for each request, and for each key that is made or revoked."""

from __future__ import annotations

import logging
from logging.handlers import WatchedFileHandler

from iro_server.settings import Settings


def audit_log(settings: Settings) -> logging.Logger:
    """``<data dir>/audit.jsonl``, which may be rotated from outside."""
    log = logging.getLogger(f"iro.audit.{settings.data_dir}")
    if not log.handlers:
        handler = WatchedFileHandler(settings.data_dir / "audit.jsonl", delay=True)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        log.propagate = False
    return log
