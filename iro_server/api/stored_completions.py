"""/v1/chat/completions/{id}: chat completions that requests with ``store`` left here, for a while."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable

from fastapi import APIRouter, Request, Response
from sqlalchemy import ColumnElement, delete

from iro_server import JsonObject
from iro_server.api.closed_model import ClosedModel
from iro_server.api.context import Context, Ctx, Limit, Order, list_page
from iro_server.api.errors import bad_request, not_found
from iro_server.api.job_request import MAX_TAGS, Tags
from iro_server.api.listing import list_response
from iro_server.api.stored_size import json_bytes
from iro_server.store import tables as t
from iro_server.store.database import find

router = APIRouter(prefix="/chat/completions", tags=["chat"])
FILTER = re.compile(r"metadata\[(.*)\]", re.DOTALL)
BARE: JsonObject = {"content": None, "refusal": None, "content_parts": None}  # what a stored message has in any case
METADATA_FILTER = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "schema": {"type": "object", "additionalProperties": {"type": "string"}, "maxProperties": MAX_TAGS},
}


def tag_of(key: str, value: str) -> str:
    """A key of metadata with its value, as it stands in ``Completion.tags``: safe in each database's text and LIKE."""
    return f" {hashlib.sha256(json.dumps([key, value]).encode()).hexdigest()[:32]} "


def tags_of(metadata: dict[str, str]) -> str:
    return "".join(tag_of(*pair) for pair in metadata.items())


class UpdateRequest(ClosedModel):
    metadata: Tags | None


def store(completion: JsonObject, messages: list[JsonObject], metadata: dict[str, str], context: Context) -> None:
    """Keep an answer of the chat route with its request's messages and metadata."""
    row = t.Completion(
        id=completion["id"],
        created_at=completion["created"],
        project=context.caller.project,
        model=completion["model"],
        messages=messages,
        body=completion,
        bytes=json_bytes(messages) + json_bytes(completion),
        completion_metadata=metadata,
        tags=tags_of(metadata),
        expires_at=completion["created"] + round(context.settings.completion_seconds),
    )
    with context.sessions.begin() as session:
        session.add(row)


@router.get("", openapi_extra={"parameters": [METADATA_FILTER]})
def list_completions(
    request: Request,
    context: Ctx,
    limit: Limit = 20,
    after: str | None = None,
    order: Order = "asc",
    model: str | None = None,
) -> Response:
    """The stored completions, of a model, and with all of ``metadata[key]=value``."""
    wanted = [
        (match[1], value) for name, value in request.query_params.multi_items() if (match := FILTER.fullmatch(name))
    ]
    if len(wanted) > MAX_TAGS:
        raise bad_request(f"Invalid 'metadata': more than {MAX_TAGS} keys to filter by", "metadata")
    filters, ascending = selected(wanted, model), order == "asc"
    return list_response(context, t.Completion, show, filters=filters, limit=limit, after=after, ascending=ascending)


def selected(metadata: Iterable[tuple[str, str]], model: str | None) -> list[ColumnElement[bool]]:
    """Where a completion is still stored, has all the metadata, and is of the model."""
    where = [t.Completion.unexpired(), *(t.Completion.tags.contains(tag_of(*pair)) for pair in metadata)]
    return where if model is None else [*where, t.Completion.model == model]


@router.get("/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return show(_stored(context, id))


@router.post("/{id}")
def update(id: str, body: UpdateRequest, context: Ctx) -> JsonObject:
    """Give a completion other metadata."""
    _stored(context, id)
    metadata = body.metadata or {}
    with context.sessions.begin() as session:
        row = find(session, t.Completion, id)
        if row is None:
            raise not_found("completion", id, "id")
        row.completion_metadata, row.tags = metadata, tags_of(metadata)
    return show(row)


@router.delete("/{id}")
def remove(id: str, context: Ctx) -> JsonObject:
    gone = delete(t.Completion).where(t.Completion.id == id, *context.owned(t.Completion), t.Completion.unexpired())
    with context.sessions.begin() as session:
        if session.execute(gone.returning(t.Completion.id)).first() is None:
            raise not_found("completion", id, "id")
    return {"id": id, "object": "chat.completion.deleted", "deleted": True}


@router.get("/{id}/messages")
def messages(id: str, context: Ctx, limit: Limit = 20, after: str | None = None, order: Order = "asc") -> JsonObject:
    """The messages that the completion answers."""
    rows = _stored(context, id).messages
    shown: list[JsonObject] = [{"id": f"{id}-{place}"} | BARE | message for place, message in enumerate(rows)]
    return list_page(shown, "message", limit=limit, after=after, ascending=order == "asc")


def show(row: t.Completion) -> JsonObject:
    """``metadata`` is a field of OpenAI's answer, and of the client's type it is none."""
    return row.body | {"metadata": row.completion_metadata}


def _stored(context: Context, id: str) -> t.Completion:
    return context.get(t.Completion, "completion", id, "id", t.Completion.unexpired())
