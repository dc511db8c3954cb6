"""/v1/models: the base model, aligned models, and the checkpoints of jobs by name."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import delete, select

from iro_server import JsonObject
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import APIError, bad_request, not_found
from iro_server.graders import local_models
from iro_server.store.named import find_named
from iro_server.store.tables import Model

router = APIRouter(prefix="/models", tags=["models"])


@router.get("")
def list_models(context: Ctx) -> JsonObject:
    with context.sessions() as session:
        aligned = list(session.scalars(select(Model).where(*context.owned(Model)).order_by(Model.seq)))
    return {"object": "list", "data": [_base(context), *(_aligned(context, model) for model in aligned)]}


@router.get("/{name:path}")
def retrieve(name: str, context: Ctx) -> JsonObject:
    if name == context.models.base:
        return _base(context)
    if name == _embedding_model(context):
        return _object(name, context.models.created, context.settings.organization)
    with context.sessions() as session:
        row_and_job = find_named(session, name, context.caller.project)
    if row_and_job is None:
        raise not_found("model", name, "model")
    row, _ = row_and_job
    if isinstance(row, Model):
        return _aligned(context, row)
    return _object(name, row.created_at, context.settings.organization)


@router.delete("/{name:path}")
def remove(name: str, context: Ctx) -> JsonObject:
    """Stop serving an aligned model. Its job, and the job's checkpoints, remain."""
    if name == context.models.base:
        raise bad_request("The base model cannot be deleted.", "model", "base_model")
    deletion = delete(Model).where(Model.id == name, *context.owned(Model)).returning(Model.path, Model.job_id)
    with context.sessions.begin() as session:
        deleted = session.execute(deletion).first()
    if deleted is None:
        raise _not_deletable(name, context)
    context.models.drop(*deleted)
    return {"id": name, "object": "model", "deleted": True}


def _not_deletable(name: str, context: Context) -> APIError:
    with context.sessions() as session:
        row_and_job = find_named(session, name, context.caller.project)
    if row_and_job is None or row_and_job[1].project != context.caller.project:
        return not_found("model", name, "model")
    message = f"{name} is a checkpoint, which cannot be deleted by itself: it is a part of the job {row_and_job[1].id}."
    return bad_request(message, "model", "checkpoint")


def _embedding_model(context: Context) -> str | None:
    """The name of the model that ``embeddings`` takes, which lists leave out: it answers no chat."""
    model = context.settings.served_embedding_model
    return model[0] if model is not None and local_models.is_model(model[1]) else None


def _base(context: Context) -> JsonObject:
    return _object(context.models.base, context.models.created, context.settings.organization)


def _aligned(context: Context, model: Model) -> JsonObject:
    extension = {"iro": {"base": model.base, "job": model.job_id} | model.search}
    return _object(model.id, model.created_at, context.settings.organization) | extension


def _object(name: str, created: int, owner: str) -> JsonObject:
    return {"id": name, "object": "model", "created": created, "owned_by": owner}
