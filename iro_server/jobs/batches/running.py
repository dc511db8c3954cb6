"""A batch, from its first request without an answer to its last, each asked of this server's own routes.

A batch that is broken off goes on with the first group of requests whose answers are not stored: no answer is stored
twice, though requests of the group that was under way are asked again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from itertools import chain, islice, takewhile
from pathlib import Path

from sqlalchemy.exc import SQLAlchemyError

from iro_server import JsonObject
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.posting import AT_ONCE, Endpoint, Poster, Reply
from iro_server.jobs.background import TRIES, Lease, TriesSpent, WorkFailed, check_key
from iro_server.jobs.batches.lines import BadLine, checked, read_requests
from iro_server.jobs.batches.output import AttemptOutput, Kind, stored_blocks
from iro_server.settings import Settings
from iro_server.store.database import Sessions, find
from iro_server.store.files import write_whole
from iro_server.store.tables import Batch, File, new_id, now
from iro_server.store.usage import BATCH_INPUT, used_bytes
from iro_server.telemetry import request

ATTEMPTS = 20  # of a request; one that is refused for the key's limit waits for the next minute and spends none
EXPIRED: JsonObject = {
    "code": "batch_expired",
    "message": "This request could not be executed before the completion window expired.",
}
NO_USAGE = {"input_tokens": 0, "cached_tokens": 0, "output_tokens": 0, "total_tokens": 0}
MOST_TRIES = 2 * TRIES  # of a batch without progress: those after TRIES only write its files


class BatchExecutor:
    def __init__(self, settings: Settings, sessions: Sessions, environment: GraderEnvironment) -> None:
        self.settings, self.sessions, self.environment = settings, sessions, environment

    def execute(self, batch: Batch, lease: Lease) -> None:
        """Answer what is not answered yet, and write the batch's files, also where it fails. Raises LeaseLost,
        Stopping, WorkFailed."""
        lease.on_failure(partial(self._fail, batch.id, lease))
        if batch.tries > TRIES:
            raise TriesSpent
        request.set_current(request.Current(batch.id, charged_key=batch.key_id))
        folder = self.settings.batch_dir(batch.id)
        if not (folder / BATCH_INPUT).exists():  # a backup that was made while it ended may have its row alone
            raise WorkFailed("the batch's requests are not stored any more: upload them again", "input_lost")
        try:
            self._validate(batch, lease, folder / BATCH_INPUT)
        except BadLine as error:
            mistake = {"code": error.code, "message": str(error), "line": error.line, "param": error.param}
            lease.end("failed", mistake)
            shutil.rmtree(folder, ignore_errors=True)
            return
        environment = self.environment.of_job(batch.project)
        assert environment.base_url is not None
        endpoint = Endpoint(environment.base_url, environment.api_key, environment.project, quoted=True)
        seconds = self.settings.request_timeout
        with closing(Poster(endpoint, ATTEMPTS, timeout=seconds, retries_timeouts=False)) as poster:
            poster.wait_for_limits(partial(self._goes_on, batch))
            lease.on_stop(poster.close)
            status = self._answer(batch, lease, poster, folder)
        self._finish(batch, lease, folder, status)

    def _fail(self, id: str, lease: Lease, error: JsonObject) -> None:
        """End the batch with the error, and write the files of the answers that are stored."""
        with self.sessions() as session:
            batch = find(session, Batch, id)
        if batch is not None:
            self._finish(batch, lease, self.settings.batch_dir(id), "failed", error)

    def _validate(self, batch: Batch, lease: Lease, path: Path) -> None:
        if batch.in_progress_at is not None:
            return
        summary = checked(path, batch.endpoint, self.settings.batch_requests)
        batch.total, batch.model, batch.in_progress_at = summary.requests, summary.model, now()
        columns = {name: getattr(batch, name) for name in ("total", "model", "in_progress_at")}
        with self.sessions.begin() as session:
            lease.write(session, **columns)

    def _answer(self, batch: Batch, lease: Lease, poster: Poster, folder: Path) -> str:
        """Ask what is left, until the batch is done, cancelled or expired: which of these. Raises WorkFailed where its
        project has no room, or its key does not work any more."""
        requests = read_requests(folder / BATCH_INPUT, batch.completed + batch.failed)
        with AttemptOutput(folder, batch.attempt, batch.segments) as output:
            while group := [*islice(requests, AT_ONCE)]:
                if status := self._early_end(batch):
                    return status
                replies = poster.post_all(batch.endpoint.removeprefix("/v1/"), [line["body"] for line in group])
                lease.check()
                num_answered = len([*takewhile(_is_answer, replies)])
                if num_answered < len(group) and not self._goes_on(batch):
                    group, requests = group[:num_answered], chain(group[num_answered:], requests)
                self._store(batch, lease, output, [*map(_answer_line, group, replies)])
        return "completed"

    def _early_end(self, batch: Batch) -> str | None:
        with self.sessions() as session:
            current = find(session, Batch, batch.id)
            size = used_bytes(session, self.settings, batch.project)
        assert current is not None  # a batch under way is not removed
        if current.cancelling_at is not None:
            return "cancelled"
        check_key(self.sessions, batch.key_id)
        if size > self.settings.project_bytes:
            raise WorkFailed(self._over_quota(), "insufficient_quota")
        return "expired" if time.time() >= current.expires_at else None

    def _goes_on(self, batch: Batch) -> bool:
        """Whether requests that wait for a limit are still to be asked."""
        try:
            return self._early_end(batch) is None
        except WorkFailed:
            return False
        except SQLAlchemyError:  # a database that is away: the batch's next write says so
            return True

    def _store(self, batch: Batch, lease: Lease, output: AttemptOutput, lines: list[JsonObject]) -> None:
        by_kind: dict[Kind, list[JsonObject]] = {"output": [], "errors": []}
        for line in lines:
            by_kind["output" if _is_success(line) else "errors"].append(line)
        for kind, kind_lines in by_kind.items():
            output.append(kind, kind_lines)
        batch.completed += len(by_kind["output"])
        batch.failed += len(by_kind["errors"])
        batch.segments, batch.usage = output.segments, _added_usage(batch.usage, by_kind["output"])
        progress = {name: getattr(batch, name) for name in ("completed", "failed", "segments", "usage")}
        with self.sessions.begin() as session:
            lease.write(session, tries=0, **progress)

    def _finish(self, batch: Batch, lease: Lease, folder: Path, status: str, error: JsonObject | None = None) -> None:
        """Write the files and end the batch, in one transaction. Of an expired one, the rest are errors."""
        with self.sessions.begin() as session:
            lease.write(session, finalizing_at=now())
        answered, unanswered = batch.completed + batch.failed, 0
        expired: Iterator[JsonObject] = iter(())
        if status == "expired":
            unanswered = batch.total - answered
            expired = (_line(line, error=EXPIRED) for line in read_requests(folder / BATCH_INPUT, answered))
        output = self._file(batch, "output", stored_blocks(folder, batch.segments, "output"))
        errors = self._file(batch, "errors", _with_lines(stored_blocks(folder, batch.segments, "errors"), expired))
        lease.check()
        with self.sessions.begin() as session:
            session.add_all(file for file in (output, errors) if file)
            ids = {"output_file_id": output and output.id, "error_file_id": errors and errors.id}
            failed = batch.failed + unanswered
            lease.write(session, status=status, error=error, finished_at=now(), failed=failed, **ids)
        shutil.rmtree(folder, ignore_errors=True)

    def _over_quota(self) -> str:
        message = f"The project's files take more than its {self.settings.project_bytes} bytes. Delete some, and send"
        return message + " the requests without an answer again; the answers so far are in the batch's files."

    def _file(self, batch: Batch, kind: Kind, blocks: Iterator[bytes]) -> File | None:
        """The stored file of such lines; None without any."""
        id, created = new_id("file-"), now()
        path = self.settings.files_dir / id
        size, sha256 = write_whole(path, blocks)
        if size == 0:
            path.unlink()
            return None
        expires_at = None if batch.output_seconds is None else created + batch.output_seconds
        fields = {"filename": f"{batch.id}_{kind}.jsonl", "purpose": "batch_output", "bytes": size, "sha256": sha256}
        return File(id=id, project=batch.project, created_at=created, expires_at=expires_at, **fields)


def _line(request_line: JsonObject, response: JsonObject | None = None, error: JsonObject | None = None) -> JsonObject:
    line = {"id": new_id("batch_req_"), "custom_id": request_line["custom_id"]}
    return line | {"response": response, "error": error}


def _is_answer(reply: Reply) -> bool:
    """False for a request that was told to wait for a limit: it has none where its batch ends meanwhile."""
    return reply.response is None or reply.response.status_code != 429 or not reply.is_busy


def _answer_line(request_line: JsonObject, reply: Reply) -> JsonObject:
    response = reply.response
    if response is None:
        return _line(request_line, error={"code": "server_unavailable", "message": reply.error})
    try:
        body = response.json()
    except ValueError:  # a proxy's page
        return _line(request_line, error={"code": "server_unavailable", "message": f"answered {response.status_code}"})
    shown = {"status_code": response.status_code, "request_id": response.headers.get("x-request-id", "")}
    return _line(request_line, response=shown | {"body": body})


def _is_success(line: JsonObject) -> bool:
    return line["response"] is not None and line["response"]["status_code"] == 200


def _added_usage(usage: JsonObject, lines: list[JsonObject]) -> JsonObject:
    """``usage`` with that of the answers, whose routes call the counts otherwise."""
    total = NO_USAGE | usage
    for line in lines:
        of_answer = line["response"]["body"].get("usage") or {}
        details = of_answer.get("prompt_tokens_details") or of_answer.get("input_tokens_details") or {}
        total["input_tokens"] += of_answer.get("prompt_tokens") or of_answer.get("input_tokens") or 0
        total["output_tokens"] += of_answer.get("completion_tokens") or of_answer.get("output_tokens") or 0
        total["total_tokens"] += of_answer.get("total_tokens") or 0
        total["cached_tokens"] += details.get("cached_tokens") or 0
    return total


def _with_lines(blocks: Iterator[bytes], lines: Iterator[JsonObject]) -> Iterator[bytes]:
    yield from blocks
    for line in lines:
        yield json.dumps(line).encode() + b"\n"
