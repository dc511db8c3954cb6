"""``iro graders`` as a process of its own."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.processes import Server
from iro_server.graders.environment import GraderEnvironment, GraderService, PythonLimits

KEY = "of-the-grader-service"
LIMITS = PythonLimits(memory_bytes=256 * 2**20, processes=16, disk_bytes=8 * 2**20, output_bytes=2**16, timeout=10)


class GraderServiceProcess(Server):
    """Ready inside ``with``. It may be killed and started again at the same address."""

    health = "/health"

    def command(self) -> list[str]:
        return [sys.executable, "-m", "iro_server", "graders", "--port", str(self.port)]

    def environment(self) -> dict[str, str]:
        return os.environ | {"IRO_GRADER_SERVICE_KEY": KEY, "IRO_PYTHON_LIMITS": LIMITS.model_dump_json()}

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.process.wait()

    def grader_environment(self, project: str = "default", key: str = KEY, patience: float = 30.0) -> GraderEnvironment:
        """Of a server that uses it."""
        service = GraderService(url=self.address, key=key, patience=patience)
        return GraderEnvironment(project=project, python_limits=LIMITS, grader_service=service)

    def settings(self) -> dict[str, Any]:
        """Of ``Settings``."""
        return {"grader_service": self.address, "grader_service_key": KEY}


def grader_service(folder: Path) -> GraderServiceProcess:
    return GraderServiceProcess(folder / "graders.log")
