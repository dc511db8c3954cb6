"""GET /v1/health, /v1/health/ready and /v1/health/live: for those who watch, for who sends requests here, for who
starts the server again."""

from __future__ import annotations

from fastapi import APIRouter, Response
from sqlalchemy import func, select

from iro_server import JsonObject
from iro_server.api.context import Ctx
from iro_server.store.tables import Job

router = APIRouter(tags=["health"])


@router.get("/health/live")
async def live() -> JsonObject:
    """Whether the server answers at all, though all its threads wait for a slow database."""
    return {"status": "ok"}


@router.get("/health/ready")
def ready(context: Ctx) -> JsonObject:
    """Whether requests may be sent here: the database answers. Files and jobs are served while no engine is up."""
    with context.sessions() as session:
        session.execute(select(1))
    return {"status": "ok"}


@router.get("/health")
def health(context: Ctx, response: Response) -> JsonObject:
    """Whether requests can be served: the base model is loaded, or some server of it answers, and so does the database.
    503 where no engine is up."""
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
