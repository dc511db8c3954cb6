"""GET /v1/health."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import func, select

from iro_server.api.context import Ctx
from iro_server.store.tables import Job

router = APIRouter(tags=["health"])


@router.get("/health")
def health(context: Ctx) -> dict[str, Any]:
    """Whether requests can be served: the base model is loaded and the database answers."""
    with context.sessions() as session:
        rows = session.execute(select(Job.status, func.count()).group_by(Job.status))
        counts = {status: count for status, count in rows}
    jobs = {status: counts.get(status, 0) for status in ("queued", "running")}
    return {"status": "ok", "model": context.models.base, "jobs": jobs}
