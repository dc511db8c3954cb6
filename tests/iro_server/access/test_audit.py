"""The audit log on a disk that takes no more lines."""

from __future__ import annotations

import errno
import logging
import os
import time
from types import SimpleNamespace

import pytest

from iro_server.access import audit
from iro_server.settings import Settings


@pytest.fixture
def log(tmp_path):
    log = audit.audit_log(Settings(data_dir=tmp_path))
    yield log
    log.handlers.pop().close()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("failing", ["flush", "_open"], ids=["write", "open"])
def test_lines_that_cannot_be_written_are_reported_once_a_minute(log, monkeypatch, caplog, capsys, failing):
    monkeypatch.setattr(log.handlers[0], failing, full)
    with caplog.at_level(logging.ERROR, "iro.access"):
        for number in range(3):
            log.info("line %d", number)
        assert len(caplog.records) == 1 and "No space left on device" in caplog.text
        monkeypatch.setattr(audit, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + audit.REPORT_SECONDS))
        log.info("a minute later")
    assert len(caplog.records) == 2
    assert "Traceback" not in capsys.readouterr().err
