"""/v1/files. An upload is answered once its bytes are on the disk and its row is committed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO, Literal, get_args
from urllib.parse import quote

from fastapi import APIRouter, File, Form, Query, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import delete, or_

from iro_server import JsonObject
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import APIError, bad_request, invalid, not_found
from iro_server.api.file_route import FileRoute
from iro_server.api.jsonl import MAX_LINE, checked_lines, lines_of
from iro_server.api.listing import list_response
from iro_server.api.quotas import check_file, remaining_bytes
from iro_server.jobs.leftovers import discard_deleted_inputs
from iro_server.store import files
from iro_server.store import tables as t
from iro_server.store.conversions import SLOTS
from iro_server.store.row_files import PARQUET_MAGIC, BadRows, Format, converted, table_format

router = APIRouter(prefix="/files", tags=["files"], route_class=FileRoute)
Purpose = Literal["fine-tune", "evals", "batch"]  # of OpenAI's, those that something here reads
MEDIA_TYPES = {purpose: "application/jsonl" for purpose in (*get_args(Purpose), "batch_output")}
MEDIA_TYPES["fine-tune-results"] = "text/csv"


class ExpiresAfter(BaseModel):
    """How long a file is kept, an hour to 30 days."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=3600, le=2_592_000)


@router.post("")
def create(
    context: Ctx,
    file: Annotated[UploadFile, File()],
    purpose: Annotated[Purpose, Form()],
    expires_after: Annotated[str | None, Form(description="As JSON, or its fields in brackets")] = None,
    anchor: Annotated[str | None, Form(alias="expires_after[anchor]")] = None,
    seconds: Annotated[str | None, Form(alias="expires_after[seconds]")] = None,
) -> JsonObject:
    """Store a JSONL, Parquet or CSV file of training rows, of an eval's items or of a batch's requests, as JSONL. 400,
    with the number of a row that is none."""
    policy = _expires_after(expires_after, anchor, seconds)
    check_file(context, file.size or 0)
    head = file.file.read(len(PARQUET_MAGIC))
    file.file.seek(0)
    upload = Received(lines_of(file.file), head, safe_name(file.filename or ""), policy.seconds if policy else None)
    row = stored(context, upload, purpose)
    with context.sessions.begin() as session:  # a commit that fails may have happened: the sweep finds out
        session.add(row)
    return show(row)


def _expires_after(text: str | None, anchor: str | None, seconds: str | None) -> ExpiresAfter | None:
    try:
        if text is not None:
            return ExpiresAfter.model_validate_json(text)
        fields = {"anchor": anchor, "seconds": seconds}
        present_fields = {name: value for name, value in fields.items() if value is not None}
        return ExpiresAfter.model_validate(present_fields) if present_fields else None
    except ValidationError as error:
        raise invalid(error, "expires_after") from error


@dataclass(frozen=True)
class Received:
    """A file as it was sent. ``head``: its first bytes; ``seconds``: how long it is kept; ``announced``: bytes that the
    project's quota counts for it already."""

    blocks: Iterable[bytes]
    head: bytes
    name: str
    seconds: int | None
    announced: int = 0


def stored(context: Context, upload: Received, purpose: str) -> t.File:
    """The row of a file whose training rows are now on the disk as JSONL, for the caller to commit."""
    id, created = t.new_id("file-"), t.now()
    path, name = context.settings.files_dir / id, upload.name
    if (format := table_format(upload.name, upload.head)) is None:
        size, sha256 = files.write_whole(path, checked_lines(upload.blocks, purpose))
    else:
        size, sha256 = _convert(context, upload, format, path, purpose)
        name = f"{Path(upload.name).stem}.jsonl"
    return t.File(
        project=context.caller.project,
        id=id,
        filename=name,
        purpose=purpose,
        bytes=size,
        sha256=sha256,
        created_at=created,
        expires_at=None if upload.seconds is None else created + upload.seconds,
    )


def _convert(context: Context, upload: Received, format: Format, path: Path, purpose: str) -> files.Written:
    """Write the rows of a Parquet or CSV file to ``path`` as JSONL. Raises QueueFull."""
    table = path.with_suffix(".table")  # which the sweep removes after a crash
    try:
        files.write_whole(table, upload.blocks)
        with SLOTS.hold(context.caller.project):
            lines = _bounded(context, upload, converted(table, format, MAX_LINE + 1))
            return files.write_whole(path, checked_lines(lines, purpose, "row"))
    except BadRows as error:
        raise bad_request(f"Invalid file: {error}.", "file", "invalid_file") from error
    finally:
        table.unlink(missing_ok=True)


def _bounded(context: Context, upload: Received, lines: Iterable[bytes]) -> Iterator[bytes]:
    """Pass ``lines`` on, up to the largest file and to what the project has room for."""
    limit, room = context.settings.max_upload_bytes, remaining_bytes(context) + upload.announced
    size = 0
    for line in lines:
        size += len(line)
        if size > limit:
            raise bad_request(f"The file's rows take more than {limit} bytes as JSONL.", "file", "file_too_large")
        if size > room:
            check_file(context, size - upload.announced)
            room = size  # there is more by now
        yield line


def safe_name(name: str) -> str:
    """The last part of a path, printable and of bounded length."""
    last = re.split(r"[/\\]", name)[-1]
    return "".join(char for char in last if char.isprintable())[:255].strip(". ") or "upload.jsonl"


def unexpired_file(context: Context, id: str, param: str = "id") -> t.File:
    """The caller's file named ``id``; 404 without one, or once it has expired."""
    return context.get(t.File, "file", id, param, t.File.unexpired())


def opened(context: Context, row: t.File) -> BinaryIO:
    """The file's bytes, checked. 500 where the disk has lost or changed them."""
    try:
        return files.verified(context.settings.files_dir / row.id, row.sha256)
    except (files.FileCorrupt, FileNotFoundError) as error:
        unexpired_file(context, row.id)  # 404 where it was deleted this instant
        raise APIError(500, f"The stored bytes of {row.id} are damaged.", code="file_corrupt") from error


@router.get("")
def list_files(
    context: Ctx,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: str | None = None,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Response:
    filters = [t.File.unexpired()] + ([t.File.purpose == purpose] if purpose else [])
    return list_response(context, t.File, show, filters=filters, limit=limit, after=after, ascending=order == "asc")


@router.get("/{id}")
def retrieve(id: str, context: Ctx) -> JsonObject:
    return show(unexpired_file(context, id))


@router.get("/{id}/content")
def content(id: str, context: Ctx) -> StreamingResponse:
    row = unexpired_file(context, id)
    headers = {
        "content-length": str(row.bytes),
        "content-disposition": f"attachment; filename*=utf-8''{quote(row.filename)}",
    }
    return StreamingResponse(_blocks(opened(context, row)), headers=headers, media_type=MEDIA_TYPES[row.purpose])


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from iter(partial(file.read, 2**20), b"")


@router.delete("/{id}")
def remove(id: str, context: Ctx) -> JsonObject:
    """Delete a file. Jobs and batches that have not ended keep what they need."""
    gone = delete(t.File).where(t.File.id == id, *context.owned(t.File), t.File.unexpired())
    with context.sessions.begin() as session:
        if session.execute(gone.returning(t.File.id)).first() is None:
            raise not_found("file", id, "id")
    (context.settings.files_dir / id).unlink(missing_ok=True)
    of_file = or_(t.Job.training_file == id, t.Job.validation_file == id)
    discard_deleted_inputs(context.settings, context.sessions, of_file)
    return {"id": id, "object": "file", "deleted": True}


def show(row: t.File) -> JsonObject:
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": row.created_at,
        "expires_at": row.expires_at,
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }
