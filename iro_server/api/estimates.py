"""/v1/fine_tuning/jobs/estimate: what a job may gain and cost, before it is created."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.concurrency import run_in_threadpool

from iro_server import JsonObject
from iro_server.api import files
from iro_server.api.context import Context, Ctx
from iro_server.api.fine_tuning import check_request, job_seed
from iro_server.api.job_request import JobRequest
from iro_server.api.jsonl import lines_of
from iro_server.api.quotas import check_estimates
from iro_server.jobs.estimates.running import drawn_rows, num_rows
from iro_server.store import tables as t

router = APIRouter(prefix="/fine_tuning/jobs/estimate", tags=["fine tuning"])


@router.post("")
async def create(body: JobRequest, context: Ctx) -> JsonObject:
    """Estimate a job of the same body, in about ``estimate_seconds``: poll it by GET until its status is completed."""
    return await run_in_threadpool(_create, body, context)


def _create(body: JobRequest, context: Context) -> JsonObject:
    check_estimates(context)
    check_request(body, context)
    seed = job_seed(body)
    row = files.unexpired_file(context, body.training_file, "training_file")
    with files.opened(context, row) as file:
        prompts, rows = drawn_rows(lines_of(file), context.settings.estimate_prompts, seed)
    validation_rows = None
    if body.validation_file is not None:
        with files.opened(context, files.unexpired_file(context, body.validation_file, "validation_file")) as file:
            validation_rows = num_rows(lines_of(file))
    options = {"seed": seed, "validation_rows": validation_rows} | body.method.reinforcement.options()
    estimate = t.Estimate(
        id=t.new_id("ftest-"),
        project=context.caller.project,
        key_id=context.caller.key_id,
        model=body.model,
        training_file=body.training_file,
        rows=rows,
        config={"grader": body.method.reinforcement.grader} | options,
        prompts=prompts,
    )
    with context.sessions.begin() as session:
        session.add(estimate)
    return show(estimate)


@router.get("/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return show(context.get(t.Estimate, "estimate", id))


def show(estimate: t.Estimate) -> JsonObject:
    names = ("id", "created_at", "finished_at", "status", "model", "training_file", "job_id", "error", "result")
    return {"object": "fine_tuning.job.estimate"} | {name: getattr(estimate, name) for name in names}
