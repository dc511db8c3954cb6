"""Loggers that other threads may make while pytest goes through them: it does so before each phase of a test, and the
threads of a test's server import modules then, each with a logger of its own."""

from __future__ import annotations

import logging
from typing import Any


class CopiedWhenRead(dict[str, Any]):
    """Loggers by name, whose ``values()`` are a copy: going through them never fails as one is added."""

    def values(self) -> Any:
        return list(super().values())


def pytest_configure() -> None:
    manager = logging.Logger.manager
    manager.loggerDict = CopiedWhenRead(manager.loggerDict)
