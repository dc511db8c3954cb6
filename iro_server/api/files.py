"""/v1/files. An upload is answered once its bytes are on the disk and its row is committed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Query, UploadFile
from fastapi.responses import FileResponse
from sqlalchemy import delete

from iro_server.api.context import Ctx, list_object
from iro_server.api.errors import not_found
from iro_server.api.jsonl import checked_lines
from iro_server.store import files
from iro_server.store import tables as t

router = APIRouter(prefix="/files", tags=["files"])


@router.post("")
def create(
    context: Ctx, file: Annotated[UploadFile, File()], purpose: Annotated[Literal["fine-tune"], Form()]
) -> dict[str, Any]:
    """Store a JSONL file of training rows. 400, with the line's number, where it is not one."""
    id = t.new_id("file-")
    size = files.write_whole(context.settings.files_dir / id, checked_lines(file.file))
    row = t.File(
        project=context.caller.project,
        id=id,
        filename=file.filename or "upload.jsonl",
        purpose=purpose,
        bytes=size,
        created_at=t.now(),
    )
    with context.sessions.begin() as session:
        session.add(row)
    return show(row)


@router.get("")
def list_files(
    context: Ctx,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    where = [t.File.purpose == purpose] if purpose else []
    return list_object(context, t.File, show, *where, limit=limit, after=after, ascending=order == "asc")


@router.get("/{id}")
def retrieve(id: str, context: Ctx) -> dict[str, Any]:
    return show(context.get(t.File, "file", id))


@router.get("/{id}/content")
def content(id: str, context: Ctx) -> FileResponse:
    row = context.get(t.File, "file", id)
    return FileResponse(context.settings.files_dir / row.id, filename=row.filename, media_type="application/jsonl")


@router.delete("/{id}")
def remove(id: str, context: Ctx) -> dict[str, Any]:
    """Delete a file. Jobs made from it keep what they need."""
    with context.sessions.begin() as session:
        if session.execute(delete(t.File).where(t.File.id == id).returning(t.File.id)).first() is None:
            raise not_found("file", id, "id")
    (context.settings.files_dir / id).unlink(missing_ok=True)
    return {"id": id, "object": "file", "deleted": True}


def show(row: t.File) -> dict[str, Any]:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
    }
