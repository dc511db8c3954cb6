"""/v1/evals: what models' answers are graded by. Their runs: eval_runs.py."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import delete

from iro_server import JsonObject
from iro_server.api.context import Context, Ctx, Limit, Order
from iro_server.api.errors import APIError, bad_request, not_found
from iro_server.api.eval_fields import check_schema_has_fields
from iro_server.api.eval_requests import DataSourceConfig, EvalRequest, EvalUpdate
from iro_server.api.graders import check_grader
from iro_server.api.listing import list_response
from iro_server.api.quotas import check_evals
from iro_server.api.stored_size import check_stored_size
from iro_server.graders.json_schema import check_schema
from iro_server.jobs.evals.criteria import grader_spec
from iro_server.store import tables as t
from iro_server.store.database import find

router = APIRouter(prefix="/evals", tags=["evals"])


@router.post("")
async def create(body: EvalRequest, context: Ctx) -> JsonObject:
    """Make an eval. Its criteria are checked as a job's grader is."""
    return await context.grading.run(context.caller.project, _create, body, context)


def _create(body: EvalRequest, context: Context) -> JsonObject:
    check_evals(context)
    limit = context.settings.max_definition_bytes
    check_stored_size(body.testing_criteria, "testing_criteria", limit)
    config = _stored_config(body.data_source_config)
    check_stored_size(config, "data_source_config", limit)
    try:
        check_schema(config["item_schema"])
    except ValueError as error:
        param = "data_source_config.item_schema"
        raise bad_request(f"Invalid '{param}': {error}", param) from error
    for number, criterion in enumerate(body.testing_criteria):
        check_criterion(criterion, f"testing_criteria.{number}", context)
    check_schema_has_fields(config["item_schema"], body.testing_criteria)
    evaluation = t.Eval(
        id=t.new_id("eval_"),
        project=context.caller.project,
        name=body.name or "",
        data_source_config=config,
        testing_criteria=body.testing_criteria,
        eval_metadata=body.metadata or {},
    )
    with context.sessions.begin() as session:
        session.add(evaluation)
    return show(evaluation)


def _stored_config(config: DataSourceConfig) -> JsonObject:
    try:
        return config.stored()
    except ValueError as error:
        param = "data_source_config"
        raise bad_request(f"Invalid '{param}': it is nested too deep", param) from error


def check_criterion(criterion: JsonObject, param: str, context: Context) -> None:
    """400 where a criterion is no grader, or has no threshold that can be used."""
    least = criterion.get("pass_threshold")
    if criterion.get("type") == "text_similarity" and least is None:
        message = f"Missing required parameter: '{param}.pass_threshold'."
        raise bad_request(message, f"{param}.pass_threshold", "missing_required_parameter")
    if least is not None and (isinstance(least, bool) or not isinstance(least, int | float)):
        message = f"Invalid '{param}.pass_threshold': Input should be a valid number"
        raise bad_request(message, f"{param}.pass_threshold")
    try:
        grader = check_grader(grader_spec(criterion), context)
        grader.close()
        if grader.compares:
            message = "a ranking compares completions of one prompt, and an eval's run has one answer to each item"
            raise bad_request(message, "grader.ranking" if "ranking" in criterion else "grader", "invalid_grader")
    except APIError as error:
        within = (error.param or "").removeprefix("grader").removeprefix(".")
        error.message = error.message.removeprefix(f"{error.param}: ")
        error.param = f"{param}.{within}" if within else param
        error.message = f"Invalid '{error.param}': {error.message}"
        raise


@router.get("")
def list_evals(
    context: Ctx,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "asc",
    order_by: Literal["created_at"] = "created_at",
) -> Response:
    return list_response(context, t.Eval, show, limit=limit, after=after, ascending=order == "asc")


@router.get("/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return show(owned_eval(context, id))


@router.post("/{id}")
def update(id: str, body: EvalUpdate, context: Ctx) -> JsonObject:
    """Rename an eval, or give it other metadata."""
    owned_eval(context, id)
    with context.sessions.begin() as session:
        evaluation = find(session, t.Eval, id)
        if evaluation is None:
            raise not_found("eval", id, "id")
        if body.name is not None:
            evaluation.name = body.name
        if body.metadata is not None:
            evaluation.eval_metadata = body.metadata
    return show(evaluation)


@router.delete("/{id}")
async def remove(id: str, context: Ctx) -> JsonObject:
    """Delete an eval with its runs; those under way stop."""
    return await run_in_threadpool(_remove, id, context)


def _remove(id: str, context: Context) -> JsonObject:
    gone = delete(t.Eval).where(t.Eval.id == id, *context.owned(t.Eval))
    with context.sessions.begin() as session:
        if session.execute(gone.returning(t.Eval.id)).first() is None:
            raise not_found("eval", id, "id")
    return {"object": "eval.deleted", "deleted": True, "eval_id": id}


def owned_eval(context: Context, id: str) -> t.Eval:
    return context.get(t.Eval, "eval", id)


def show(evaluation: t.Eval) -> JsonObject:
    config = evaluation.data_source_config
    properties, required = {"item": config["item_schema"]}, ["item"]
    if config["include_sample_schema"]:
        properties["sample"], required = {"type": "object"}, ["item", "sample"]
    schema = {"type": "object", "properties": properties, "required": required}
    return {
        "object": "eval",
        "id": evaluation.id,
        "created_at": evaluation.created_at,
        "name": evaluation.name,
        "data_source_config": {"type": config["type"], "schema": schema}
        | {name: config[name] for name in ("metadata",) if name in config},
        "testing_criteria": evaluation.testing_criteria,
        "metadata": evaluation.eval_metadata or {},
    }
