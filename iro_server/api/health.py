"""GET /v1/health, /v1/health/ready and /v1/health/live: for those who watch, for who sends requests here, for who
starts the server again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from fastapi import APIRouter, Request, Response
from sqlalchemy import func, select

from iro_server import JsonObject
from iro_server.api.context import Context
from iro_server.concurrency.executors import in_thread
from iro_server.store.tables import Job

router = APIRouter(tags=["health"])
THREADS = ThreadPoolExecutor(8, "health")  # which no request's own work takes


@router.get("/health/live")
async def live() -> JsonObject:
    """Whether the server answers at all, though all its threads wait for a slow database."""
    return {"status": "ok"}


@router.get("/health/ready")
async def ready(request: Request) -> JsonObject:
    """Whether requests may be sent here: the database answers. Files and jobs are served while no engine is up."""
    await in_thread(THREADS, _ask_database, _context(request))
    return {"status": "ok"}


def _context(request: Request) -> Context:
    """The server's: as a dependency it would wait for a thread of other requests."""
    context: Context = request.app.state.context
    return context


def _ask_database(context: Context) -> None:
    with context.sessions() as session:
        session.execute(select(1))


@router.get("/health")
async def health(request: Request, response: Response) -> JsonObject:
    """Whether requests can be served: the base model is loaded, or some server of it answers, and so does the database.
    503 where no engine is up."""
    return await in_thread(THREADS, _report, _context(request), response)


def _report(context: Context, response: Response) -> JsonObject:
    with context.sessions() as session:
        rows = session.execute(select(Job.status, func.count()).group_by(Job.status))
        counts = {status: count for status, count in rows}
    jobs = {status: counts.get(status, 0) for status in ("queued", "running")}
    report: JsonObject = {"status": "ok", "model": context.models.base, "jobs": jobs}
    engine = context.models.engine.health()
    if engine.replicas:
        report["engines"] = list(engine.replicas)
    if not engine.up:
        response.status_code, report["status"] = 503, "unavailable"
    return report
