"""/v1/evals/{id}/runs: an eval's runs, which go on in the background, and their output items."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse
from pydantic import ValidationError
from sqlalchemy import delete, insert, select, update

from iro_server import JsonObject
from iro_server.api import files
from iro_server.api.chat import ChatRequest
from iro_server.api.composition import served_model
from iro_server.api.context import Context, Ctx, Limit, Order
from iro_server.api.errors import APIError, api_error, bad_request, invalid, not_found
from iro_server.api.eval_fields import check_fields
from iro_server.api.eval_report import report_page
from iro_server.api.eval_requests import DataSource, RunRequest, SamplingParams, Source
from iro_server.api.evals import owned_eval
from iro_server.api.jsonl import lines_of
from iro_server.api.listing import list_response
from iro_server.api.quotas import check_eval_runs
from iro_server.api.registry import ModelMismatch, ModelNotFound, ModelUnreadable
from iro_server.api.response_schema import checked_schema
from iro_server.api.stored_completions import selected
from iro_server.api.stored_size import json_bytes
from iro_server.jobs.evals.criteria import criterion_names
from iro_server.jobs.evals.running import new_counts, new_criteria
from iro_server.jobs.evals.source import BadItem, Row, check_items, completion_row, row_of, rows_of_lines
from iro_server.store import tables as t

router = APIRouter(prefix="/evals/{id}/runs", tags=["evals"])
DEFAULT_SEED = 42  # OpenAI's
OPEN = ("queued", "in_progress")
RunStatus = Literal["queued", "in_progress", "completed", "canceled", "failed"]


@router.post("")
async def create(id: str, body: RunRequest, request: Request, context: Ctx) -> JsonObject:
    """Queue a run. Its items are stored with it: the file may be deleted."""
    return await run_in_threadpool(_create, id, body, request, context)


def _create(id: str, body: RunRequest, request: Request, context: Context) -> JsonObject:
    evaluation = owned_eval(context, id)
    model, rows = body.data_source.model, _rows(body, evaluation, context)
    data_source = _as_sent(body)
    check_fields(data_source.get("input_messages"), evaluation.testing_criteria, [item for item, _ in rows])
    sampling = {} if model is None else _sampling(model, body.data_source, context)
    size = sum(map(json_bytes, rows)) + json_bytes(data_source)
    check_eval_runs(context, len(rows), size)
    run = t.EvalRun(
        id=t.new_id("evalrun_"),
        project=context.caller.project,
        key_id=context.caller.key_id,
        eval_id=id,
        name=body.name or "",
        model=model,
        data_source=data_source,
        bytes=size,
        run_metadata=body.metadata or {},
        sampling=sampling,
        counts=new_counts(),
        criteria=new_criteria(criterion_names(evaluation.testing_criteria)),
        usage={},
    )
    items = [
        {"id": t.new_id("outputitem_"), "run_id": run.id, "position": position, "item": item, "sample": sample}
        for position, (item, sample) in enumerate(rows)
    ]
    with context.sessions.begin() as session:
        session.add(run)
        session.flush()
        session.execute(insert(t.EvalItem), items)
    return show(run, request)


def _as_sent(body: RunRequest) -> JsonObject:
    """The data source. 400 where it is nested too deep."""
    try:
        source = body.data_source.model_dump(mode="json", exclude_none=True)
    except ValueError as error:  # of the parameters: the items are checked
        raise bad_request("Invalid 'data_source': it is nested too deep", "data_source") from error
    for message in source.get("input_messages", {}).get("template", []):  # read as a list of texts, which are joined
        message["content"] = {"type": "input_text", "text": "".join(message["content"])}
    return source


def _sampling(name: str, source: DataSource, context: Context) -> JsonObject:
    """How the run samples. 400 or 404 where its model or its parameters would refuse a request."""
    params = source.sampling_params or SamplingParams()
    try:
        model = context.model(name)
    except (ModelMismatch, ModelNotFound, ModelUnreadable) as error:
        refusal = api_error(error)
        refusal.param = "data_source.model"
        raise refusal from error
    request = params.as_request()
    try:
        chat = ChatRequest.model_validate({"model": name, "messages": [{"role": "user", "content": "a"}]} | request)
    except ValidationError as error:
        raise _of_params(invalid(error, "data_source.sampling_params"), params) from error
    try:
        checked_schema(chat.response_format or {"type": "text"}, model)
    except APIError as error:
        error.param = f"data_source.sampling_params.{error.param}"
        raise _of_params(error, params) from error
    try:
        model = served_model(name, chat.search, context)
    except APIError as error:
        error.param = f"data_source.sampling_params.{error.param}"
        raise
    most = chat.max_completion_tokens or model.defaults.max_tokens or context.settings.default_max_tokens
    temperature = model.defaults.temperature if chat.temperature is None else chat.temperature
    seed = DEFAULT_SEED if params.seed is None else params.seed
    shown = {
        "max_completion_tokens": most,
        "temperature": float(temperature),
        "top_p": 1.0 if chat.top_p is None else chat.top_p,
    }
    return {"request": request, "shown": shown | {"seed": seed}}


def _of_params(error: Any, params: SamplingParams) -> Any:
    """The error at the field that was sent: a response's ``text`` is the chat's ``response_format``."""
    if params.text is not None and params.response_format is None:
        error.message = error.message.replace("response_format", "text.format")
        error.param = error.param and error.param.replace("response_format", "text.format")
    return error


def _rows(body: RunRequest, evaluation: t.Eval, context: Context) -> list[Row]:
    """The run's items, bounded and each as the eval's schema has it. 400 where one is not."""
    source = body.data_source.source
    param = {"file_content": "data_source.source.content", "file_id": "data_source.source.id"}.get(
        source.type, "data_source.source"
    )
    try:
        if source.type == "stored_completions":
            rows = _bounded(_completion_rows(source, evaluation, context), param, context)
        elif source.content:
            rows = _bounded((row_of(dict(row), str(n)) for n, row in enumerate(source.content)), param, context)
        else:
            rows = _file_rows(str(source.id), param, context)
        check_items(evaluation.data_source_config["item_schema"], [item for item, _ in rows])
    except BadItem as error:
        raise bad_request(f"Invalid '{param}': {error}", param, "invalid_item") from error
    if not rows:
        raise bad_request(f"Invalid '{param}': it has no items", param, "invalid_item")
    return rows


def _completion_rows(source: Source, evaluation: t.Eval, context: Context) -> Iterator[Row]:
    """The stored completions that eval and run select, the oldest first."""
    metadata = evaluation.data_source_config.get("metadata", {}) | (source.metadata or {})
    where = [*context.owned(t.Completion), *selected(metadata.items(), source.model)]
    where += [] if source.created_after is None else [t.Completion.created_at > source.created_after]
    where += [] if source.created_before is None else [t.Completion.created_at < source.created_before]
    query = select(t.Completion).where(*where).order_by(t.Completion.seq).limit(source.limit)
    with context.sessions() as session:
        for row in session.scalars(query.execution_options(yield_per=100)):
            yield completion_row(row.body, row.messages, row.completion_metadata)


def _file_rows(id: str, param: str, context: Context) -> list[Row]:
    row = files.unexpired_file(context, id, param)
    if row.bytes > context.settings.eval_bytes:
        raise _too_large(param, context)
    with files.opened(context, row) as file:
        rows = rows_of_lines(lines_of(file), training=row.purpose == "fine-tune")
        return _bounded(rows, param, context)


def _bounded(rows: Iterable[Row], param: str, context: Context) -> list[Row]:
    items: list[Row] = []
    size = 0
    for row in rows:
        size += len(json.dumps(row))
        items.append(row)
        if len(items) > context.settings.eval_items or size > context.settings.eval_bytes:
            raise _too_large(param, context)
    return items


def _too_large(param: str, context: Context) -> Exception:
    most, bytes = context.settings.eval_items, context.settings.eval_bytes
    message = f"Invalid '{param}': a run may have {most} items of {bytes} bytes in all; split it into several runs"
    return bad_request(message, param, "too_many_items")


@router.get("")
def list_runs(
    id: str,
    request: Request,
    context: Ctx,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "asc",
    status: RunStatus | None = None,
) -> Response:
    owned_eval(context, id)
    of_eval, filters = t.EvalRun.eval_id == id, [t.EvalRun.status == status] if status else []

    def show_run(run: t.EvalRun) -> JsonObject:
        return show(run, request)

    ascending = order == "asc"
    return list_response(
        context, t.EvalRun, show_run, of_eval, filters=filters, limit=limit, after=after, ascending=ascending
    )


@router.get("/{run_id}")
def retrieve(id: str, run_id: str, request: Request, context: Ctx) -> JsonObject:
    return show(_run(context, id, run_id), request)


@router.post("/{run_id}", include_in_schema=False)  # as clients before 2026 have it
@router.post("/{run_id}/cancel")
def cancel(id: str, run_id: str, request: Request, context: Ctx) -> JsonObject:
    """Cancel a run that has not ended. What is graded stays."""
    run = _run(context, id, run_id)
    change = update(t.EvalRun).where(t.EvalRun.id == run_id, t.EvalRun.status.in_(OPEN))
    with context.sessions.begin() as session:
        canceled = session.execute(change.values(status="canceled", finished_at=t.now()).returning(t.EvalRun.id))
        if canceled.first() is None:
            raise bad_request(f"{run_id} has ended: its status is {run.status}.", "run_id", "run_ended")
    return show(_run(context, id, run_id), request)


@router.delete("/{run_id}")
def remove(id: str, run_id: str, context: Ctx) -> JsonObject:
    """Delete a run with its output items; one under way stops."""
    _run(context, id, run_id)
    with context.sessions.begin() as session:
        session.execute(delete(t.EvalRun).where(t.EvalRun.id == run_id))
    return {"object": "eval.run.deleted", "deleted": True, "run_id": run_id}


@router.get("/{run_id}/output_items")
def list_output_items(
    id: str,
    run_id: str,
    context: Ctx,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "asc",
    status: Literal["pass", "fail"] | None = None,
) -> Response:
    """The items that are graded, in the order of the source. ``status`` "fail": also those with an error."""
    run = _run(context, id, run_id)
    statuses = {"pass": ["pass"], "fail": ["fail", "error"], None: ["pass", "fail", "error"]}[status]
    of_run, filters = t.EvalItem.run_id == run_id, (t.EvalItem.status.in_(statuses),)

    def show_item(item: t.EvalItem) -> JsonObject:
        return _show_item(item, run)

    ascending = order == "asc"
    return list_response(
        context, t.EvalItem, show_item, of_run, filters=filters, limit=limit, after=after, ascending=ascending
    )


@router.get("/{run_id}/output_items/{item_id}")
def retrieve_output_item(id: str, run_id: str, item_id: str, context: Ctx) -> JsonObject:
    run = _run(context, id, run_id)
    return _show_item(_graded_item(context, run_id, item_id), run)


@router.get("/{run_id}/report")
def report(id: str, run_id: str, request: Request, context: Ctx) -> HTMLResponse:
    """The run as a page: results by criterion, and its first failed items."""
    run = _run(context, id, run_id)
    failed = select(t.EvalItem).where(t.EvalItem.run_id == run_id, t.EvalItem.status.in_(("fail", "error")))
    with context.sessions() as session:
        items = list(session.scalars(failed.order_by(t.EvalItem.position).limit(50)))
    return HTMLResponse(report_page(show(run, request), [_show_item(item, run) for item in items]))


def _run(context: Context, id: str, run_id: str) -> t.EvalRun:
    return context.get(t.EvalRun, "eval run", run_id, "run_id", t.EvalRun.eval_id == id)


def _graded_item(context: Context, run_id: str, item_id: str) -> t.EvalItem:
    where = (t.EvalItem.id == item_id, t.EvalItem.run_id == run_id, t.EvalItem.status != "pending")
    with context.sessions() as session:
        item = session.scalar(select(t.EvalItem).where(*where))
    if item is None:
        raise not_found("output item", item_id, "output_item_id")
    return item


def show(run: t.EvalRun, request: Request) -> JsonObject:
    return {
        "object": "eval.run",
        "id": run.id,
        "eval_id": run.eval_id,
        "created_at": run.created_at,
        "name": run.name,
        "status": run.status,
        "model": run.model or "",
        "data_source": run.data_source,
        "metadata": run.run_metadata or {},
        "error": run.error,
        "result_counts": run.counts,
        "per_testing_criteria_results": [_show_criterion(criterion) for criterion in run.criteria],
        "per_model_usage": [_show_usage(model, usage) for model, usage in run.usage.items()],
        "report_url": f"{request.base_url}v1/evals/{run.eval_id}/runs/{run.id}/report",
    }


def _show_criterion(criterion: JsonObject) -> JsonObject:
    """``errored`` and ``mean_score`` are extensions."""
    counts = {name: criterion[name] for name in ("testing_criteria", "passed", "failed", "errored")}
    scores = criterion["passed"] + criterion["failed"]
    return counts | {"mean_score": criterion["score_sum"] / scores if scores else None}


def _show_usage(model: str, usage: JsonObject) -> JsonObject:
    names = ("invocation_count", "prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens")
    cost = {"cost": usage["cost"]} if "cost" in usage else {}  # an extension, of judges with a price
    return {"model_name": model} | {name: usage.get(name, 0) for name in names} | cost


def _show_item(item: t.EvalItem, run: t.EvalRun) -> JsonObject:
    return {
        "object": "eval.run.output_item",
        "id": item.id,
        "created_at": item.created_at,
        "run_id": run.id,
        "eval_id": run.eval_id,
        "status": item.status,
        "datasource_item_id": item.position,
        "datasource_item": item.item,
        "results": item.results or [],
        "sample": item.sample,
    }
