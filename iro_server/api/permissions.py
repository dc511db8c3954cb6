"""/v1/fine_tuning/checkpoints/{name}/permissions: other projects that may call a model or a checkpoint of one's own."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, select

from iro_server import JsonObject
from iro_server.api.context import Context, Ctx, list_object
from iro_server.api.errors import not_found
from iro_server.store import tables as t
from iro_server.store.named import find_named

router = APIRouter(prefix="/fine_tuning/checkpoints/{name:path}/permissions", tags=["fine tuning"])
ProjectId = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]


class Grants(BaseModel):
    model_config = ConfigDict(extra="forbid")

    project_ids: Annotated[list[ProjectId], Field(min_length=1, max_length=100)]


@router.post("")
def create(name: str, body: Grants, context: Ctx) -> JsonObject:
    """Let projects call the model; those that may already keep their permission."""
    _require_ownership(context, name)
    with context.sessions.begin() as session:
        held = select(t.Permission).where(t.Permission.model_name == name)
        permitted_projects = {permission.project_id for permission in session.scalars(held)}
        for project in dict.fromkeys(body.project_ids):
            if project not in permitted_projects:
                session.add(t.Permission(id=t.new_id("cp_"), model_name=name, project_id=project))
    granted = t.Permission.project_id.in_(body.project_ids)
    return list_object(context, t.Permission, _show, t.Permission.model_name == name, granted, limit=100)


@router.get("")
def list_permissions(
    name: str,
    context: Ctx,
    project_id: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 10,
    after: str | None = None,
    order: Literal["ascending", "descending"] = "descending",
) -> JsonObject:
    _require_ownership(context, name)
    where = [t.Permission.model_name == name]
    if project_id is not None:
        where.append(t.Permission.project_id == project_id)
    ascending = order == "ascending"
    return list_object(context, t.Permission, _show, *where, limit=limit, after=after, ascending=ascending)


@router.delete("/{id}")
def remove(name: str, id: str, context: Ctx) -> JsonObject:
    _require_ownership(context, name)
    with context.sessions.begin() as session:
        gone = delete(t.Permission).where(t.Permission.id == id, t.Permission.model_name == name)
        if session.execute(gone.returning(t.Permission.id)).first() is None:
            raise not_found("permission", id, "permission_id")
    return {"id": id, "object": "checkpoint.permission", "deleted": True}


def _require_ownership(context: Context, name: str) -> None:
    """404 unless the caller's own project has a model or a checkpoint of that name."""
    with context.sessions() as session:
        row_and_job = find_named(session, name, context.caller.project)
    if row_and_job is None or row_and_job[1].project != context.caller.project:
        raise not_found("checkpoint", name, "fine_tuned_model_checkpoint")


def _show(row: t.Permission) -> JsonObject:
    return {
        "id": row.id,
        "object": "checkpoint.permission",
        "created_at": row.created_at,
        "project_id": row.project_id,
    }
