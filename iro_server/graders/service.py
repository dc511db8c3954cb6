"""``iro graders``: python graders in a process, or container, of their own.

It has no file, database or model of the server's; servers and workers send it each grader's source with the calls
(``remote.py``). So the container that may start sandboxes is not the one that holds everyone's data.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import secrets
import threading
from collections.abc import AsyncIterator
from typing import Annotated, Literal

import uvicorn
from cachetools import TTLCache
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from iro_server import JsonObject
from iro_server.concurrency.disconnect import ClientGone, unless_gone
from iro_server.concurrency.fair_executor import FairExecutor
from iro_server.concurrency.fair_queue import QueueFull
from iro_server.graders.base import Grade
from iro_server.graders.cgroup import memory_bound
from iro_server.graders.environment import PythonLimits
from iro_server.graders.loaded import Loaded
from iro_server.graders.pool import AT_WORK, AT_WORK_PER_PROJECT
from iro_server.graders.process import GraderProcess
from iro_server.graders.remote import MOST_CALLS, QUEUE_SECONDS
from iro_server.graders.sandbox import isolation_problem
from iro_server.telemetry import logs
from iro_server.telemetry.logs import LogFormat

log = logging.getLogger("iro.graders")
MOST_BODY_BYTES = 8 * 2**20
MOST_WAITING = 64  # requests of one project
MOST_PROCESSES = 1024  # with their sources; of their sandboxes those of pool.AT_REST stay
IDLE_SECONDS = 600.0  # after which an unused one goes
ENDED_SECONDS = 600.0  # for which a request that arrives late for an ended process is refused
STOP_SECONDS = 5  # for calls under way when the service is told to stop


class ServiceSettings(BaseSettings):
    """The service's settings, ``IRO_<NAME>`` in its environment; an empty variable is as if it were not set."""

    model_config = SettingsConfigDict(frozen=True, env_prefix="IRO_", env_ignore_empty=True)

    host: str = "127.0.0.1"
    port: int = Field(8002, ge=0, le=65535)
    grader_service_key: SecretStr = Field(min_length=16)  # that servers and workers send
    python_graders: Literal["sandbox", "unsafe"] = "sandbox"
    python_limits: PythonLimits = PythonLimits()
    log_format: LogFormat = "text"


class ProcessEnded(Exception):
    """The process was ended before the request was answered."""


class Malformed(ValueError):
    """The request's body cannot be read."""


class Processes:
    """Grader processes by project and by the id that their caller chose."""

    def __init__(self, limits: PythonLimits, isolated: bool) -> None:
        self._limits, self._isolated = limits, isolated
        self._lock = threading.Lock()
        self._loaded: Loaded[GraderProcess] = Loaded(MOST_PROCESSES, IDLE_SECONDS, GraderProcess.close)
        self._ended: TTLCache[str, bool] = TTLCache(100 * MOST_PROCESSES, ENDED_SECONDS)

    def grade(self, project: str, id: str, body: bytes) -> list[Grade]:
        """Grades of the body's first calls. Raises Malformed and ProcessEnded."""
        try:
            request = json.loads(body)
            source, timeout = str(request["source"]), min(float(request["timeout"]), self._limits.timeout)
            calls = [(dict(sample), dict(item)) for sample, item in request["calls"][:MOST_CALLS]]
        except (RecursionError, ValueError, LookupError, TypeError) as error:
            raise Malformed from error
        process = self._process(project, id, source, timeout)
        grades = process.grade_some(calls)
        if process.closed:
            raise ProcessEnded
        return grades

    def end(self, project: str, id: str) -> None:
        """In mid-call too; requests for it that arrive later are refused."""
        with self._lock:
            self._ended[_key(project, id)] = True
            self._loaded.drop(_key(project, id))

    def end_idle(self) -> None:
        self._loaded.drop_idle()

    def end_all(self) -> None:
        self._loaded.clear()

    def _process(self, project: str, id: str, source: str, timeout: float) -> GraderProcess:
        def make() -> GraderProcess:
            return GraderProcess(source, timeout, self._limits, self._isolated, project)

        with self._lock:
            if _key(project, id) in self._ended:
                raise ProcessEnded
            return self._loaded.get(_key(project, id), make)


def _key(project: str, id: str) -> str:
    return f"{id} {project}"


Project = Annotated[str, Query(max_length=1000)]
ProcessId = Annotated[str, Query(pattern="^[0-9a-f]{32}$")]


def create_app(settings: ServiceSettings) -> FastAPI:
    processes = Processes(settings.python_limits, settings.python_graders == "sandbox")
    executor = FairExecutor("graders", AT_WORK, AT_WORK_PER_PROJECT, MOST_WAITING, QUEUE_SECONDS)

    @contextlib.asynccontextmanager
    async def sweeping(_: FastAPI) -> AsyncIterator[None]:
        sweep = asyncio.create_task(_sweep(processes))
        yield
        sweep.cancel()
        executor.shutdown()
        await run_in_threadpool(processes.end_all)

    def authorized(request: Request) -> None:
        expected = f"Bearer {settings.grader_service_key.get_secret_value().strip()}"  # as its callers send it
        if not secrets.compare_digest(request.headers.get("authorization", "").encode(), expected.encode()):
            raise HTTPException(401)

    app = FastAPI(lifespan=sweeping, openapi_url=None)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/grade", dependencies=[Depends(authorized)])
    async def grade(request: Request, project: Project, process: ProcessId) -> Response:
        """Grades of the first calls, as many as a slice of time allows. 409: the process was ended; 429: too many
        requests of the project wait."""
        body = await _body(request)
        try:
            grades = await unless_gone(request.receive, executor.run(project, processes.grade, project, process, body))
        except QueueFull as error:
            raise HTTPException(429, str(error)) from error
        except ProcessEnded as error:
            raise HTTPException(409, "the process was ended") from error
        except Malformed as error:
            raise HTTPException(400, "not a request to grade") from error
        except ClientGone:
            await run_in_threadpool(processes.end, project, process)
            return Response(status_code=499)
        return Response(json.dumps({"grades": [_shown(grade) for grade in grades]}), media_type="application/json")

    @app.delete("/processes", dependencies=[Depends(authorized)])
    def end(project: Project, process: ProcessId) -> dict[str, str]:
        processes.end(project, process)
        return {"status": "ended"}

    return app


def serve(settings: ServiceSettings) -> None:
    """Serve until interrupted. ValueError where this host cannot isolate graders."""
    logs.configure(settings.log_format)
    if settings.python_graders == "unsafe":
        log.warning("python graders run as plain processes: their code may do whatever this service may")
    elif problem := isolation_problem():
        raise ValueError(f"python graders cannot be isolated on this host: {problem}")
    else:
        log.info("python graders: %s", memory_bound())
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_keep_alive=75,  # longer than a client keeps one, so that none is closed under a request
    )


async def _sweep(processes: Processes) -> None:
    while True:
        await asyncio.sleep(IDLE_SECONDS / 10)
        await run_in_threadpool(processes.end_idle)


async def _body(request: Request) -> bytes:
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > MOST_BODY_BYTES:
            raise HTTPException(413)
    return bytes(body)


def _shown(grade: Grade) -> JsonObject:
    reward = grade.reward if math.isfinite(grade.reward) else None
    return {"reward": reward, "error": grade.error, "flag": grade.flag}
