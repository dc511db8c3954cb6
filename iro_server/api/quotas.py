"""How much one project may keep and have under way: 429 beyond, as OpenAI answers a quota that is used up.

Each is counted before it grows, so requests at once may go over it together by what they bring.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, func, select

from iro_server.api.context import Context
from iro_server.api.errors import APIError
from iro_server.jobs.records import OPEN
from iro_server.store import tables as t
from iro_server.store.usage import stored_bytes, used_bytes


def check_file(context: Context, bytes: int) -> None:
    """Refuse a file of so many bytes, or an upload that announces them, which the project has no room for."""
    settings, project = context.settings, context.caller.project
    pending = (t.Upload.project == project, t.Upload.status == "pending", t.Upload.expires_at > t.now())
    stored = select(func.count()).where(t.File.project == project, t.File.unexpired())
    with context.sessions() as session:
        files = (session.scalar(stored) or 0) + (session.scalar(select(func.count()).where(*pending)) or 0)
        size = used_bytes(session, settings, project)
    _check("files, with uploads under way", files + 1, settings.project_files, "Delete some")
    resource = "bytes of files, with those that its unfinished jobs and batches keep"
    _check(resource, size + bytes, settings.project_bytes, "Delete some")


def remaining_bytes(context: Context) -> int:
    """Of files that the project has room for."""
    with context.sessions() as session:
        return context.settings.project_bytes - used_bytes(session, context.settings, context.caller.project)


def check_jobs(context: Context) -> None:
    where = (t.Job.project == context.caller.project, t.Job.status.in_(OPEN))
    with context.sessions() as session:
        jobs = session.scalar(select(func.count()).select_from(t.Job).where(*where)) or 0
    _check("jobs that have not ended", jobs + 1, context.settings.project_jobs, "Wait for some, or cancel them")


def check_webhooks(context: Context) -> None:
    where = t.WebhookEndpoint.project == context.caller.project
    with context.sessions() as session:
        endpoints = session.scalar(select(func.count()).select_from(t.WebhookEndpoint).where(where)) or 0
    _check("webhook endpoints", endpoints + 1, context.settings.project_webhooks, "Delete some")


def check_evals(context: Context) -> None:
    evals = _count(context, t.Eval)
    _check("evals", evals + 1, context.settings.project_evals, "Delete some")


def check_eval_runs(context: Context, items: int, bytes: int) -> None:
    """Refuse a run of so many items and bytes that the project has no room for."""
    unfinished = _count(context, t.EvalRun, t.EvalRun.status.in_(("queued", "in_progress")))
    most = context.settings.project_eval_runs
    _check("eval runs that have not ended", unfinished + 1, most, "Wait for some, or cancel them")
    owned = t.EvalItem.run_id.in_(select(t.EvalRun.id).where(t.EvalRun.project == context.caller.project))
    with context.sessions() as session:
        stored = session.scalar(select(func.count()).select_from(t.EvalItem).where(owned)) or 0
    _check("items of eval runs", stored + items, context.settings.project_eval_items, "Delete some runs")
    _check_stored(context, bytes)


def check_estimates(context: Context) -> None:
    unfinished = _count(context, t.Estimate, t.Estimate.status.in_(("queued", "in_progress")))
    _check("estimates that have not ended", unfinished + 1, context.settings.project_estimates, "Wait for some")


def check_batches(context: Context) -> None:
    unfinished = _count(context, t.Batch, t.Batch.status.in_(("queued", "in_progress")))
    most = context.settings.project_batches
    _check("batches that have not ended", unfinished + 1, most, "Wait for some, or cancel them")


def check_job_runs(context: Context) -> None:
    unfinished = _count(context, t.JobRun, t.JobRun.status.in_(("queued", "in_progress")))
    most = context.settings.project_job_runs
    _check("runs of batch jobs that have not ended", unfinished + 1, most, "Wait for some, or cancel them")


def check_responses(context: Context, bytes: int) -> None:
    """Refuse to store another response, to a request of so many bytes."""
    stored = _count(context, t.Response, t.Response.unexpired())
    _check("stored responses", stored + 1, context.settings.project_responses, "Delete some, or set store to false")
    _check_stored(context, bytes)


def check_completions(context: Context, bytes: int) -> None:
    """Refuse to store another chat completion, to a request of so many bytes."""
    stored = _count(context, t.Completion, t.Completion.unexpired())
    most = context.settings.project_completions
    _check("stored chat completions", stored + 1, most, "Delete some, or leave out store")
    _check_stored(context, bytes)


def _check_stored(context: Context, bytes: int) -> None:
    with context.sessions() as session:
        stored = stored_bytes(session, context.caller.project)
    most = context.settings.project_stored_bytes
    _check("bytes of stored responses, chat completions and eval runs", stored + bytes, most, "Delete some")


def _count(context: Context, table: type[t.Base], *where: ColumnElement[bool]) -> int:
    """The project's rows of ``table``."""
    with context.sessions() as session:
        return session.scalar(select(func.count()).select_from(table).where(*context.owned(table), *where)) or 0


def _check(resource: str, would_be: int, most: int, instead: str) -> None:
    if would_be > most:
        message = f"This project would have {would_be} {resource}, and it may have {most}. {instead}."
        headers = {"x-should-retry": "false"}
        raise APIError(429, message, type="insufficient_quota", code="insufficient_quota", headers=headers)
