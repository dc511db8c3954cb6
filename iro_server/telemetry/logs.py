"""Log lines, as text or as JSON, each with the request or the job that it belongs to."""

from __future__ import annotations

import logging
from typing import Any, Literal

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

from iro_server.telemetry.control_characters import escaped
from iro_server.telemetry.request import request_id

LogFormat = Literal["text", "json"]
NAMES = {"levelname": "level", "name": "logger", "exc_info": "exception"}


class _Named(logging.Filter):
    """Names the request being answered or, in a worker, the job."""

    def __init__(self, job: str | None) -> None:
        super().__init__()
        self.job = job

    def filter(self, record: logging.LogRecord) -> bool:
        names = {"request_id": request_id(), "job_id": self.job}
        log_fields = {name: value for name, value in names.items() if value is not None}
        record.__dict__ |= log_fields
        record.subject = "".join(f" [{value}]" for value in log_fields.values())
        return True


class _OneLine(logging.Formatter):
    """A record's message is one line, whatever it quotes; its exception, if any, follows on lines of its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:
        return escaped(super().formatException(ei), layout=True)


def configure(format: LogFormat, level: int = logging.INFO, job: str | None = None) -> None:
    """Write what this process logs to stderr. ``level`` is that of other packages' lines; ours are told from INFO."""
    handler = logging.StreamHandler()
    handler.addFilter(_Named(job))
    if format == "json":
        wanted, unwanted = "%(levelname)s %(name)s %(message)s", [*RESERVED_ATTRS, "subject", "color_message"]
        handler.setFormatter(JsonFormatter(wanted, rename_fields=NAMES, timestamp="time", reserved_attrs=unwanted))
    else:
        handler.setFormatter(_OneLine("%(levelname)s %(name)s%(subject)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    logging.getLogger("iro").setLevel(logging.INFO)
    logging.getLogger("alembic").setLevel(logging.WARNING)  # store/upgrade.py says what it did in one line
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it tells each URL, and a webhook's may hold a token
