"""A python grader's process in the grader service (``service.py``): source and calls go there by HTTP.

The service keeps nothing that a call needs, so what fails is sent again. What it answers is checked: code of strangers
runs beside it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import threading
import time
from typing import Annotated

import httpx
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, FiniteFloat

from iro_server.graders.base import Flag, Grade
from iro_server.graders.environment import GraderService
from iro_server.graders.process import CLOSED, LOAD_TIMEOUT, TOO_DEEP, Call, grade_in_slices
from iro_server.graders.sandbox import START_TIMEOUT

QUEUE_SECONDS = 60.0  # that a request waits in the service for a slot, before it is to be sent again
CONNECT = 5.0  # seconds
PAUSE = 0.5  # seconds before a request is sent again
FIRST_CALLS, MOST_CALLS = 8, 256  # in one request
MOST_BYTES = 2**20  # of the calls in one request, unless the first is longer
MOST_ANSWER_BYTES = 8 * 2**20


class GraderServiceUnavailable(RuntimeError):
    """The grader service does not answer, or refuses the key. The message names it, for the operator."""

    code = "grader_service_unavailable"


class _NoAnswer(Exception):
    """The service cannot be reached, or its answer makes no sense."""


class _Busy(Exception):
    """The service answers, and cannot grade this now."""


class _RemoteGrade(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reward: FiniteFloat | None
    error: str | None
    flag: Flag

    def as_grade(self) -> Grade:
        if self.reward is None or self.error is not None:
            return Grade.failed(self.error or "no reward", self.flag)
        return Grade.of(self.reward)


class _Answer(BaseModel):
    grades: Annotated[list[_RemoteGrade], Len(1, MOST_CALLS)]


class RemoteGraderProcess:
    """As ``GraderProcess``. ``project``: for whom it grades; the service serves projects in rotation."""

    def __init__(self, service: GraderService, source: str, timeout: float, project: str):
        self._service, self._source, self._timeout = service, source, timeout
        self._names = _new_names(project)
        self._turn = threading.Lock()
        self._closed = threading.Event()
        self._started = False
        self._count = FIRST_CALLS

    def grade_batch(self, calls: list[Call]) -> list[Grade]:
        """One grade a call. Raises GraderServiceUnavailable once the service has been away for its patience."""
        with self._turn:
            return grade_in_slices(self._grade_some, calls)

    def close(self) -> None:
        """End the process, in mid-call too: calls still running or made later fail."""
        self._closed.set()
        if self._started:
            # A service that cannot be reached ends the process once the connection of its call breaks.
            with contextlib.suppress(httpx.HTTPError):
                _client(self._service).delete("/processes", params=self._names, timeout=CONNECT)

    def _grade_some(self, calls: list[Call]) -> list[Grade]:
        """Of the first calls, as many as the service grades in one slice of time."""
        encoded = self._encoded(calls)
        if not encoded:
            return [TOO_DEEP]
        grades = self._ask(encoded)
        all_graded = len(grades) == len(encoded)
        self._count = min(MOST_CALLS, 2 * (self._count if all_graded else len(grades)))
        return grades

    def _encoded(self, calls: list[Call]) -> list[str]:
        """The first calls, as JSON; none where the first is nested too deeply."""
        encoded: list[str] = []
        size = 0
        for call in calls[: self._count]:
            try:
                encoded.append(json.dumps(call))
            except RecursionError:
                break
            size += len(encoded[-1])
            if size > MOST_BYTES:
                break
        return encoded[:-1] if len(encoded) > 1 and size > MOST_BYTES else encoded

    def _ask(self, calls: list[str]) -> list[Grade]:
        away_since: float | None = None
        while not self._closed.is_set():
            self._started = True
            try:
                return self._post(calls)
            except _Busy:
                away_since = None
            except _NoAnswer as failure:
                now = time.monotonic()
                away_since = now if away_since is None else away_since
                if now - away_since >= self._service.patience:
                    raise GraderServiceUnavailable(f"{self._service.url}: {failure}") from None
            self._closed.wait(PAUSE)
        return [CLOSED] * len(calls)

    def _post(self, calls: list[str]) -> list[Grade]:
        start = json.dumps({"source": self._source, "timeout": self._timeout})
        body = f'{start[:-1]}, "calls": [{", ".join(calls)}]}}'
        client = _client(self._service)
        try:
            with client.stream(
                "POST", "/grade", params=self._names, content=body.encode(), timeout=self._http_timeout()
            ) as response:
                content = _read(response)
        except httpx.HTTPError as error:
            self._names = _new_names(self._names["project"])  # the service ends the process of a broken connection
            raise _NoAnswer(f"{type(error).__name__} {error}".strip()) from None
        match response.status_code:
            case 200:
                return _grades(content, len(calls))
            case 409 | 429:
                raise _Busy
            case 401:
                raise GraderServiceUnavailable(f"{self._service.url} refuses the key (IRO_GRADER_SERVICE_KEY)")
            case 400 | 413 if len(calls) > 1:
                return self._post(calls[:1])
            case 400 | 413:
                return [Grade.failed("the sample and the item are too large for the grader", "sample_parse_error")]
        raise _NoAnswer(f"status {response.status_code}")

    def _http_timeout(self) -> httpx.Timeout:
        """The service waits for a slot; then up to two sandboxes start, load the source and grade."""
        grading = QUEUE_SECONDS + 2 * (START_TIMEOUT + LOAD_TIMEOUT + self._timeout)
        return httpx.Timeout(grading + 10, connect=CONNECT)


def _new_names(project: str) -> dict[str, str]:
    return {"project": project, "process": secrets.token_hex(16)}


@functools.lru_cache(maxsize=8)
def _client(service: GraderService) -> httpx.Client:
    """One for all graders of this process, so that connections stay open. The service is next door: no proxy."""
    return httpx.Client(
        base_url=service.url,
        headers={"Authorization": f"Bearer {service.key}"},
        limits=httpx.Limits(max_connections=None, max_keepalive_connections=32),
        trust_env=False,
    )


def _read(response: httpx.Response) -> bytes:
    content = b""
    for part in response.iter_bytes():
        content += part
        if len(content) > MOST_ANSWER_BYTES:
            raise _NoAnswer("an answer that is too long")
    return content


def _grades(content: bytes, calls: int) -> list[Grade]:
    try:
        grades = _Answer.model_validate_json(content).grades
    except ValueError:
        raise _NoAnswer("an answer that is no list of grades") from None
    if len(grades) > calls:
        raise _NoAnswer("more grades than calls")
    return [grade.as_grade() for grade in grades]
