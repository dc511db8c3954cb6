"""/v1/fine_tuning/alpha/graders: try a grader on one sample, or only check it."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Callable
from typing import Any, get_args

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict

from iro_server import JsonObject
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import api_error, bad_request
from iro_server.api.registry import ModelMismatch, ModelNotFound, ModelUnreadable
from iro_server.concurrency.disconnect import unless_gone
from iro_server.graders.base import Flag, Grade, Grader, GraderError, Sample, TextTooLong, check_length
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import as_sent, parse_grader, parse_grader_of_job
from iro_server.telemetry.control_characters import escaped
from iro_server.telemetry.grading import graded

router = APIRouter(prefix="/fine_tuning/alpha/graders", tags=["graders"])

# Where OpenAI's response tells more about an error than that there was one.
DETAILS: dict[Flag, str] = {
    "model_grader_server_error": "model_grader_server_error_details",
    "python_grader_runtime_error": "python_grader_runtime_error_details",
    "python_grader_server_error": "python_grader_server_error_type",
}


class ValidateRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    grader: JsonObject


class RunRequest(ValidateRequest):
    """``reference_answer`` is how clients before 2025-06 gave what is ``item.reference_answer`` now."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model_sample: str
    item: JsonObject | None = None
    reference_answer: Any = None

    @property
    def pair(self) -> tuple[Sample, JsonObject]:
        older = {} if self.reference_answer is None else {"reference_answer": self.reference_answer}
        return Sample(self.model_sample), older | (self.item or {})


@router.post("/validate")
async def validate(body: ValidateRequest, context: Ctx) -> Response:
    """The grader as it was sent, where a job would accept it."""
    await context.grading.run(context.caller.project, check_grader_of_job, body.grader, context)
    return _json({"grader": body.grader})


@router.post("/run")
async def run(body: RunRequest, request: Request, context: Ctx) -> Response:
    """Grade one sample. A grader that fails gives the reward 0 and says why; ``iro.error`` has its message."""
    deadline = asyncio.get_running_loop().time() + context.settings.request_timeout
    grader = await context.grading.run(context.caller.project, check_grader, body.grader, context)
    try:
        # Not in the threads that other routes share: a grader may wait for this server's own answer to a chat request.
        grading = context.grading.run(context.caller.project, _run, grader, body, context)
        async with context.deadlines.until(deadline):
            return _json(await unless_gone(request.receive, grading))
    finally:
        await run_in_threadpool(grader.close)  # which ends a call that nobody waits for any more


def check_grader_of_job(spec: JsonObject, context: Context) -> None:
    """As ``check_grader``; 400 too where a job could not learn from the grader."""
    check_grader(spec, context, parse_grader_of_job).close()


def check_grader(
    spec: JsonObject, context: Context, parse: Callable[[JsonObject, GraderEnvironment], Grader] = parse_grader
) -> Grader:
    """The caller's grader, to be closed. 400 where it is wrong, or asks a model that the caller does not have."""
    grader_environment = context.grader_environment.model_copy(update={"project": context.caller.project})
    try:
        grader = parse(spec, grader_environment)
    except GraderError as error:
        raise bad_request(error.message, error.param, "invalid_grader") from error
    for field, model in grader.served_models().items():
        try:
            context.model(model)
        except (ModelMismatch, ModelNotFound, ModelUnreadable) as error:
            grader.close()
            raise bad_request(str(error), as_sent(spec, field.split(".")), api_error(error).code) from error
    return grader


def _run(grader: Grader, body: RunRequest, context: Context) -> JsonObject:
    sample, item = body.pair
    _check_texts(grader, sample, item, context.grader_environment.max_text_bytes)
    started = time.monotonic()
    with graded(grader.type):
        grade = grader.grade(sample, item)
    return _show(grader, grade, time.monotonic() - started)


def _check_texts(grader: Grader, sample: Sample, item: JsonObject, limit: int) -> None:
    """400 where the sample, or a text that the grader fills in, is too long."""
    param: str | None = "model_sample"
    try:
        check_length(sample.output_text, limit)
        param = None  # several fields may go into a text
        grader.check_texts(sample, item)
    except TextTooLong as error:
        raise bad_request(f"Too long: {error}.", param, "text_too_long") from error


def _json(content: JsonObject) -> Response:
    """In ASCII: what users or models wrote may hold half a surrogate pair, which only an escape can spell."""
    return Response(json.dumps(content, allow_nan=False), media_type="application/json")


def _show(grader: Grader, grade: Grade, seconds: float) -> JsonObject:
    sub_rewards = {name: _number(reward) for name, reward in grade.sub_rewards.items()}
    metadata = {
        "name": grader.name,
        "type": grader.type,
        "errors": _errors(grade),
        "execution_time": seconds,
        "scores": sub_rewards,
        "token_usage": sum(grade.tokens.values()) if grade.tokens else None,
        "sampled_model_name": getattr(grader, "model", None),
    }
    return {
        "reward": _number(grade.reward),
        "sub_rewards": sub_rewards,
        "metadata": metadata,
        "model_grader_token_usage_per_model": _usage_by_model(grade),
        "iro": {"error": _error(grade)},
    }


def _usage_by_model(grade: Grade) -> JsonObject:
    """``cost``, an extension: of models whose prices the server was given."""
    costs = {model: {"cost": cost} for model, cost in grade.costs.items()}
    return {model: {"total_tokens": tokens} | costs.get(model, {}) for model, tokens in grade.tokens.items()}


def _errors(grade: Grade) -> JsonObject:
    errors: JsonObject = {flag: grade.error is not None and flag == grade.flag for flag in get_args(Flag)}
    return errors | {name: _error(grade) if errors[flag] else None for flag, name in DETAILS.items()}


def _error(grade: Grade) -> str | None:
    return None if grade.error is None else escaped(grade.error, layout=True)


def _number(reward: float) -> float:
    """OpenAI's reward where there is none: 0."""
    return reward if math.isfinite(reward) else 0.0
