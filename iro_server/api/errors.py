"""Every error in OpenAI's envelope: ``{"error": {"message", "type", "param", "code"}}``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from sqlalchemy.exc import (
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    SQLAlchemyError,
    TimeoutError,
)
from sqlalchemy.orm.exc import StaleDataError
from starlette.exceptions import HTTPException
from starlette.routing import Match

from iro_server import JsonObject
from iro_server.access.rates import RateLimitExceeded
from iro_server.api.registry import ModelMismatch, ModelNotFound, ModelUnreadable
from iro_server.api.reinforcement_options import OPTIONS_BY_BLOCK, REINFORCEMENT_FIELDS
from iro_server.api.unsupported import UNSUPPORTED
from iro_server.concurrency.admission import RequestTooLarge, TooManyWaiting
from iro_server.concurrency.deadlines import DeadlineExceeded, ServerStopping
from iro_server.concurrency.disconnect import ClientGone
from iro_server.concurrency.fair_queue import QueueFull
from iro_server.decoding.base import SearchParams
from iro_server.engines.endpoints import EngineRefused, EngineUnavailable, SchemaViolated
from iro_server.engines.grammars import SchemaRefused
from iro_server.engines.memory import EngineOutOfMemory
from iro_server.graders.remote import GraderServiceUnavailable
from iro_server.telemetry.control_characters import escaped
from iro_server.telemetry.metrics import REFUSED

log = logging.getLogger("iro.api")
VERSION = "/v1"  # that paths of the API begin with
DATABASE_AWAY = (TimeoutError, InterfaceError, InternalError, OperationalError)  # InternalError: of a standby
# A step of pydantic's path that is no field: which member of a union refused the value.
MEMBER = re.compile(r"(str|int|float|bool|constrained-.*|(literal|list|dict)\[.*)")
NO_OBJECT = ("dict_type", "model_attributes_type", "model_type")  # pydantic's types of the error
SEARCH_FIELDS = (*SearchParams.model_fields, "rows", "values")
HINTS = {  # by field
    "method": "A job says how: {'type': 'reinforcement', 'reinforcement': {'grader': ...}}.",
}


class ErrorObject(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    error: ErrorObject


RESPONSES: dict[int | str, JsonObject] = {  # of every route, in the OpenAPI document
    "4XX": {"model": ErrorEnvelope, "description": "The request is refused"},
    "5XX": {"model": ErrorEnvelope, "description": "The server cannot answer now"},
}


class APIError(Exception):
    """An answer other than success. ``param`` is the field at fault, ``code`` a word for programs, ``type`` the
    envelope's, None for what OpenAI calls its status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        type: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers
        self.type = type or ("invalid_request_error" if status < 500 else "server_error")

    def envelope(self) -> JsonObject:
        return {
            "error": {
                "message": escaped(self.message, layout=True),
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(message: str, param: str | None = None, code: str | None = "invalid_value") -> APIError:
    return APIError(400, message, param=param, code=code)


def internal_error(error: Exception) -> APIError:
    """For an exception that nobody expected: its type, since its text may name machines."""
    return APIError(500, f"The server had an error: {type(error).__name__}", code="internal_error")


def not_found(kind: str, id: str, param: str) -> APIError:
    code = f"{kind.replace(' ', '_').replace('-', '_')}_not_found"
    return APIError(404, f"No such {kind}: {id}", param=param, code=code)


def _unavailable(code: str, message: str) -> Callable[[Exception], APIError]:
    """503 with a message that does not repeat the exception's, which may name machines: that one is logged."""

    def api_error(error: Exception) -> APIError:
        log.error("%s", error)
        return APIError(503, message, code=code, headers={"Retry-After": "5"})

    return api_error


def _violated_schema(error: SchemaViolated) -> APIError:
    log.error("%s", error)
    message = (
        "The model's server gave an answer that does not fit the schema. Its operator finds the reason in the log."
    )
    return APIError(502, message, code="schema_violated", headers={"x-should-retry": "false"})


def _refused_by_engine(error: EngineRefused) -> APIError:
    log.warning("%s", error)
    return bad_request(f"The model's server refuses the request: {error.reason}", code="engine_refused")


def _rate_limit(error: RateLimitExceeded) -> APIError:
    retries = error.retry_after is not None
    headers = {"Retry-After": str(error.retry_after)} if retries else {"x-should-retry": "false"}
    return APIError(429, str(error), type=error.unit, code="rate_limit_exceeded", headers=headers)


DOMAIN_ERRORS: dict[type[Exception], Callable[[Any], APIError]] = {
    DeadlineExceeded: lambda error: APIError(
        504, str(error), code="deadline_exceeded", headers={"x-should-retry": "false"}
    ),
    EngineOutOfMemory: _unavailable(
        "out_of_memory",
        "The model's memory does not hold this request now. Reduce the prompt, max_tokens, n or the search's rows.",
    ),
    EngineRefused: _refused_by_engine,
    EngineUnavailable: _unavailable("engine_unavailable", "The model cannot be reached now. Try again soon."),
    GraderServiceUnavailable: _unavailable(
        GraderServiceUnavailable.code, "Python graders cannot run now. Try again soon."
    ),
    ModelMismatch: lambda error: bad_request(str(error), "model", "model_mismatch"),
    ModelNotFound: lambda error: APIError(404, str(error), param="model", code="model_not_found"),
    ModelUnreadable: lambda error: APIError(500, str(error), code="model_unreadable"),
    QueueFull: lambda error: APIError(
        503,
        f"The server is overloaded: {error}. Try again soon.",
        code="overloaded",
        headers={"Retry-After": "5"},
    ),
    RateLimitExceeded: _rate_limit,
    RequestTooLarge: lambda error: bad_request(str(error), "max_tokens", "too_many_tokens"),
    SchemaViolated: _violated_schema,
    SchemaRefused: lambda error: bad_request(f"The schema of the answer: {error}", "response_format"),
    ServerStopping: lambda error: APIError(503, str(error), code="server_stopping", headers={"Retry-After": "2"}),
    TooManyWaiting: lambda error: APIError(503, str(error), code="overloaded", headers={"Retry-After": "2"}),
}
ANSWERED: tuple[type[Exception], ...] = (APIError, *DOMAIN_ERRORS)  # what ``api_error`` takes


def api_error(error: Exception) -> APIError:
    """The answer to an APIError, which is itself, or to an exception of DOMAIN_ERRORS."""
    if isinstance(error, APIError):
        return error
    answer_to = next(DOMAIN_ERRORS[kind] for kind in type(error).__mro__ if kind in DOMAIN_ERRORS)
    return answer_to(error)


def invalid(error: ValidationError, prefix: str) -> APIError:
    """The first mistake pydantic found in the object at ``prefix`` of the body."""
    return _first_mistake(error.errors(include_url=False), (prefix,))


def _first_mistake(errors: Sequence[JsonObject] | Sequence[ErrorDetails], prefix: tuple[str, ...] = ()) -> APIError:
    first = errors[0]
    path = [str(step) for step in (*prefix, *first["loc"]) if not MEMBER.fullmatch(str(step))]
    if path[0] in ("body", "query", "path"):
        path = path[1:]
    if first["type"] == "missing" and (field := first.get("ctx", {}).get("field")):  # of an object that is there
        path.append(field)
    param = ".".join(path) or None
    if first["type"] == "json_invalid":
        return bad_request("We could not parse the JSON body of your request.", code="invalid_json")
    if first["type"] == "extra_forbidden":
        message = f"Unrecognized request argument supplied: {param}{_intended(param or '')}"
        return bad_request(message, param, "unknown_parameter")
    if first["type"] == UNSUPPORTED:
        return bad_request(f"Unsupported parameter: '{param}' {first['msg']}.", param, UNSUPPORTED)
    if first["type"] == "missing" or first.get("input", "") is None:  # a null where none is allowed
        message = f"Missing required parameter: '{param}'." if param else "The request has no body; send one as JSON."
        return bad_request(
            " ".join(filter(None, (message, HINTS.get(param or "")))), param, "missing_required_parameter"
        )
    message = first["msg"].removeprefix("Value error, ")
    if param is None:
        return bad_request(_problem_of_body(first, message))
    return bad_request(f"Invalid '{param}': {message}", param)


def _problem_of_body(mistake: JsonObject | ErrorDetails, message: str) -> str:
    if isinstance(mistake.get("input"), bytes):  # which is not read as JSON
        return "Send the body as JSON with the header Content-Type: application/json."
    if mistake["type"] in NO_OBJECT:
        return "The body must be a JSON object."
    return f"Invalid request: {message}"


def _intended(param: str) -> str:
    """What an unknown field may be meant for: an option of a job, or a field of a search or of sampling parameters."""
    parent, _, name = param.rpartition(".")
    if parent.rpartition(".")[2] == "search":
        similar = get_close_matches(name, SEARCH_FIELDS, n=1)
        return f". Did you mean {similar[0]}?" if similar else ""
    if parent == "data_source.sampling_params" and name == "max_tokens":
        return ". Did you mean max_completion_tokens?"
    return _intended_option(parent, name)


def _intended_option(method: str, name: str) -> str:
    """``method``: the block of a job's request that has no option ``name``."""
    parent = method.rpartition(".")[0]
    blocks = {f"{parent}.{block}": fields for block, fields in OPTIONS_BY_BLOCK.items()}
    if parent != "method.reinforcement" or method not in blocks:
        return ""
    places = [block for block, fields in {parent: REINFORCEMENT_FIELDS, **blocks}.items() if name in fields]
    if places:
        return f". It belongs in {places[0]}."
    by_name = {field: block for block, fields in blocks.items() for field in fields}
    similar = get_close_matches(name, by_name, n=1)
    return f". Did you mean {by_name[similar[0]]}.{similar[0]}?" if similar else ""


def answer(error: APIError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    if error.status in (429, 503):
        REFUSED.labels(error.status, error.code).inc()
    return JSONResponse(error.envelope(), error.status, headers or error.headers)


def storage_failure(error: SQLAlchemyError) -> JSONResponse:
    """The response to a request that the database did not answer, one of ``DATABASE_AWAY``."""
    log.error("the database does not answer", exc_info=error)
    if "disk is full" in str(getattr(error, "orig", "")):
        return answer(APIError(507, "The server's disk is full; nothing was changed.", code="storage_full"))
    message = "The database does not answer now; nothing was changed. Try again soon."
    return answer(APIError(503, message, code="storage_unavailable"), {"Retry-After": "2"})


def _with_version(request: Request) -> str:
    """The route that a path without the API's version is meant for."""
    path = f"{VERSION}{request.url.path}"
    scope = {**request.scope, "path": path}
    is_route = any(route.matches(scope)[0] is Match.FULL for route in request.app.routes)
    return f"; did you mean {path}?" if is_route else ""


def install(app: FastAPI) -> None:
    """Make ``app`` answer every exception with the envelope."""

    async def raised(_: Request, error: Exception) -> JSONResponse:
        return answer(api_error(error))

    for kind in ANSWERED:
        app.add_exception_handler(kind, raised)

    async def unstored(_: Request, error: SQLAlchemyError) -> JSONResponse:
        return storage_failure(error)

    for away in DATABASE_AWAY:
        app.exception_handler(away)(unstored)

    @app.exception_handler(IntegrityError)
    @app.exception_handler(StaleDataError)
    async def overtaken(_: Request, error: SQLAlchemyError) -> JSONResponse:
        """Two requests at once: one deleted what the other changes or names, or both make the same. OpenAI's clients
        try a 409 again, and learn what holds by then."""
        log.warning("a request was overtaken by another", exc_info=error)
        message = "Another request changed or deleted the same at this moment; nothing was changed. Try again."
        return answer(APIError(409, message, code="conflict"))

    @app.exception_handler(DataError)
    async def unstorable(_: Request, error: DataError) -> JSONResponse:
        log.info("a request holds what the database does not take", exc_info=error)
        return answer(bad_request("The request holds a value that cannot be stored."))

    @app.exception_handler(UnicodeEncodeError)
    async def unwritable(_: Request, error: UnicodeEncodeError) -> JSONResponse:
        message = f"The request holds text that is no Unicode, such as half a surrogate pair: {error.reason}."
        return answer(bad_request(message))

    @app.exception_handler(ClientGone)
    async def gone(_: Request, _error: ClientGone) -> Response:
        return Response(status_code=499)  # for the access log

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_first_mistake(error.errors()))

    @app.exception_handler(HTTPException)
    async def refused(request: Request, error: HTTPException) -> JSONResponse:
        call = f"{request.method} {request.url.path}"
        message = {404: f"Unknown request URL: {call}{_with_version(request)}", 405: f"Not allowed: {call}"}.get(
            error.status_code, error.detail
        )
        code = {404: "unknown_url", 405: "method_not_allowed", 413: "request_too_large"}.get(error.status_code)
        return answer(APIError(error.status_code, message, code=code), error.headers)

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> JSONResponse:
        # The server logs the exception and drops the connection.
        return answer(internal_error(error), {"connection": "close"})
