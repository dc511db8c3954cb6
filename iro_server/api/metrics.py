"""GET /metrics: what the process has counted, and what the server is doing now, in Prometheus' text format."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry
from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from iro_server.api.context import Context, Ctx
from iro_server.api.errors import DATABASE_AWAY
from iro_server.store.tables import JOB_STATUSES, Delivery, Event, Job
from iro_server.telemetry.metrics import REGISTRY

router = APIRouter(include_in_schema=False)
log = logging.getLogger("iro.api")
ENDED = 300  # seconds for which an ended job's gradings are still told: longer than between two scrapes


@router.get("/metrics")
def metrics(context: Ctx) -> Response:
    now = CollectorRegistry()
    now.register(_Now(context))
    return Response(generate_latest(REGISTRY) + generate_latest(now), media_type=CONTENT_TYPE_LATEST)


class _Now(Collector):
    """Queue, rows and jobs at this moment. Without its database a server still tells the rest."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def collect(self) -> Iterator[Metric]:
        admission, engine = self.context.admission, self.context.models.engine
        waiting = sum(map(len, admission.waiting.values()))
        yield _gauge("iro_waiting_requests", "Generation requests that wait for their turn", waiting)
        yield _gauge("iro_admitted_rows", "Rows of the requests that generate now", admission.active)
        yield _gauge("iro_max_active_rows", "The most that may generate at once", admission.max_rows)
        if admission.max_cache_tokens is not None:
            tokens = "Tokens whose keys and values the requests that generate now may hold"
            yield _gauge("iro_admitted_cache_tokens", tokens, admission.active_cache_tokens)
            yield _gauge("iro_max_cache_tokens", "The most that may be held at once", admission.max_cache_tokens)
        if (live_rows := engine.health().live_rows) is not None:
            yield _gauge("iro_live_rows", "Rows in the engine's batch", live_rows)
        job_metrics: list[Metric] = []
        try:
            with self.context.sessions() as session:
                job_metrics += [
                    *_jobs(session),
                    _grading(session),
                    _gauge("iro_webhooks_pending", "Webhooks to be sent", _pending(session)),
                ]
        except DATABASE_AWAY as error:
            log.warning("no job metrics: the database does not answer: %s", error)
        yield _gauge("iro_database_up", "Whether the database answers", bool(job_metrics))
        yield from job_metrics

    def describe(self) -> list[Metric]:
        return []  # registering it asks the database nothing


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)


def _jobs(session: Session) -> Iterator[Metric]:
    rows = session.execute(select(Job.status, func.count()).group_by(Job.status))
    counts = {status: count for status, count in rows}
    by_status = GaugeMetricFamily("iro_jobs", "Jobs by status", labels=["status"])
    for status in JOB_STATUSES:
        by_status.add_metric([status], counts.get(status, 0))
    step = GaugeMetricFamily("iro_job_step", "The last step that a running job has finished", labels=["job"])
    steps = GaugeMetricFamily("iro_job_steps", "How many steps a running job has", labels=["job"])
    seconds_left = GaugeMetricFamily("iro_job_seconds_left", "When a running job may be done", labels=["job"])
    stages = GaugeMetricFamily("iro_job_stage", "1 for what a running job is doing", labels=["job", "stage"])
    running = select(Job.id, Job.estimated_finish, Job.stage).where(Job.status == "running")
    for id, finish, stage in session.execute(running):
        last = select(Event.data).where(Event.job_id == id, Event.type == "metrics").order_by(Event.seq.desc())
        data = session.scalar(last.limit(1)) or {}
        step.add_metric([id], data.get("step") or 0)
        if total := data.get("total_steps"):
            steps.add_metric([id], total)
        if finish is not None:
            seconds_left.add_metric([id], max(0.0, finish - time.time()))
        if stage is not None:
            stages.add_metric([id, stage], 1)
    yield from (by_status, step, steps, seconds_left, stages)


def _grading(session: Session) -> Metric:
    """As the workers of running jobs, and of those that have just ended, told with their last heartbeats."""
    histogram = HistogramMetricFamily("iro_job_grading_seconds", "One call of a job's grader", labels=["job", "type"])
    lately = or_(Job.status == "running", Job.finished_at > time.time() - ENDED)
    for id, grading in session.execute(select(Job.id, Job.grading).where(lately)):
        for type, calls in (grading or {}).items():
            histogram.add_metric([id, type], calls["buckets"], calls["sum"])
    return histogram


def _pending(session: Session) -> int:
    return session.scalar(select(func.count()).select_from(Delivery).where(Delivery.due.is_not(None))) or 0
