"""/v1/uploads: a file that arrives in parts, each of them on the disk before it is acknowledged."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, File, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from iro_server import JsonObject
from iro_server.api import files as api
from iro_server.api.context import Context, Ctx
from iro_server.api.errors import APIError, bad_request
from iro_server.api.file_route import FileRoute
from iro_server.api.jsonl import lines_of
from iro_server.api.quotas import check_file
from iro_server.store import files
from iro_server.store import tables as t
from iro_server.store.row_files import PARQUET_MAGIC

router = APIRouter(prefix="/uploads", tags=["uploads"], route_class=FileRoute)
SECONDS = 3600  # from an upload's creation to its end
MAX_PART = 64 * 2**20
MAX_PARTS = 10_000


class UploadRequest(BaseModel):
    model_config = ConfigDict(extra="forbid")

    filename: str = Field(min_length=1)
    purpose: api.Purpose
    bytes: int = Field(ge=1)
    mime_type: str  # of whatever the client takes the file for
    expires_after: api.ExpiresAfter | None = None


class Completion(BaseModel):
    model_config = ConfigDict(extra="forbid")

    part_ids: list[Annotated[str, Field(max_length=64)]] = Field(min_length=1)
    md5: Annotated[str, Field(pattern="^[0-9a-fA-F]{32}$")] | None = None


@router.post("")
def create(body: UploadRequest, context: Ctx) -> JsonObject:
    """Begin an upload, which takes parts for an hour."""
    if body.bytes > context.settings.max_upload_bytes:
        raise bad_request(f"A file is at most {context.settings.max_upload_bytes} bytes.", "bytes")
    check_file(context, body.bytes)
    created = t.now()
    upload = t.Upload(
        id=t.new_id("upload_"),
        project=context.caller.project,
        filename=api.safe_name(body.filename),
        purpose=body.purpose,
        bytes=body.bytes,
        status="pending",
        created_at=created,
        expires_at=created + SECONDS,
        file_seconds=body.expires_after and body.expires_after.seconds,
    )
    with context.sessions.begin() as session:
        session.add(upload)
    return show(upload)


@router.post("/{id}/parts")
def add_part(id: str, data: Annotated[UploadFile, File()], context: Ctx) -> JsonObject:
    """Store a part. Parts may arrive in any order, several at once; one may be sent again."""
    upload = _pending(context, id)
    size = data.size or 0
    if size > MAX_PART:
        raise bad_request(f"A part is at most {MAX_PART} bytes.", "data", "part_too_large")
    _check_room(context, upload, size)
    part = t.Part(id=t.new_id("part_"), upload_id=id, bytes=size, created_at=t.now())
    path = _folder(context, id) / part.id
    try:
        files.write_whole(path, iter(lambda: data.file.read(2**20), b""))
    except FileNotFoundError:  # the upload ended while the part arrived, and its folder went
        _pending(context, id)
        raise
    with context.sessions.begin() as session:
        if not _move(session, id, "pending"):  # it ended while the part arrived
            path.unlink(missing_ok=True)
            raise _ended(context, id)
        session.add(part)
    return {"id": part.id, "object": "upload.part", "created_at": part.created_at, "upload_id": id}


def _check_room(context: Context, upload: t.Upload, size: int) -> None:
    """400 for a part of ``size`` bytes that the upload does not take."""
    if not size:
        raise bad_request("The part is empty.", "data", "empty_part")
    with context.sessions() as session:
        sizes = select(func.count(), func.coalesce(func.sum(t.Part.bytes), 0)).where(t.Part.upload_id == upload.id)
        count, before = session.execute(sizes).one()
    if count >= MAX_PARTS:
        raise bad_request(f"An upload has at most {MAX_PARTS} parts.", "data", "too_many_parts")
    if before + size > 2 * upload.bytes:  # room for parts that are sent again
        raise bad_request(f"The parts hold more than twice the {upload.bytes} bytes announced.", "data", "too_large")


@router.post("/{id}/complete")
def complete(id: str, body: Completion, context: Ctx) -> JsonObject:
    """Join the parts to a file, checked as one that is sent whole. An upload completed already is answered again."""
    upload = context.get(t.Upload, "upload", id)
    if _status(upload) == "pending":
        try:
            _join(upload, body, context)
        except (APIError, FileNotFoundError):
            if context.get(t.Upload, "upload", id).status == "pending":
                raise  # else another request has ended the upload meanwhile, and taken its parts
        upload = context.get(t.Upload, "upload", id)
    if upload.status != "completed":
        raise _ended(context, id)
    with context.sessions() as session:
        file = session.scalar(select(t.File).where(t.File.id == upload.file_id))  # None once it was deleted
    return show(upload, file)


def _join(upload: t.Upload, body: Completion, context: Context) -> None:
    """Make the upload's file, unless another request ends the upload first."""
    parts = _parts(context, upload, body.part_ids)
    with files.joined(parts) as start, files.joined(parts) as content:
        lines = _matching(lines_of(content), body.md5)
        head = start.read(len(PARQUET_MAGIC))
        received = api.Received(lines, head, upload.filename, upload.file_seconds, upload.bytes)
        row = api.stored(context, received, upload.purpose)
    with context.sessions.begin() as session:
        won = _move(session, upload.id, "completed", file_id=row.id)
        if won:
            session.add(row)
            session.execute(delete(t.Part).where(t.Part.upload_id == upload.id))
    if won:
        shutil.rmtree(_folder(context, upload.id), ignore_errors=True)  # else the sweep does it
    else:
        (context.settings.files_dir / row.id).unlink(missing_ok=True)


@router.post("/{id}/cancel")
def cancel(id: str, context: Ctx) -> JsonObject:
    """End an upload. Its parts are removed."""
    _pending(context, id)
    with context.sessions.begin() as session:
        if not _move(session, id, "cancelled"):
            raise _ended(context, id)
        session.execute(delete(t.Part).where(t.Part.upload_id == id))
    shutil.rmtree(_folder(context, id), ignore_errors=True)
    return show(context.get(t.Upload, "upload", id))


def _folder(context: Context, id: str) -> Path:
    return context.settings.parts_dir / id


def _pending(context: Context, id: str) -> t.Upload:
    """The caller's upload; 400 where it has ended."""
    upload = context.get(t.Upload, "upload", id)
    if _status(upload) != "pending":
        raise _ended(context, id)
    return upload


def _status(upload: t.Upload) -> str:
    return "expired" if upload.status == "pending" and upload.expires_at <= t.now() else upload.status


def _ended(context: Context, id: str) -> APIError:
    status = _status(context.get(t.Upload, "upload", id))
    return bad_request(f"The upload {id} is {status}.", "upload_id", f"upload_{status}")


def _move(session: Session, id: str, status: str, **values: object) -> bool:
    """Take an upload from "pending" to ``status``, and hold its row till the commit; False where it has ended."""
    change = update(t.Upload).where(t.Upload.id == id, t.Upload.status == "pending").values(status=status, **values)
    return session.execute(change.returning(t.Upload.id)).first() is not None


def _parts(context: Context, upload: t.Upload, ids: list[str]) -> list[Path]:
    """The parts' places, in the order of ``ids``; 400 where these are not parts of the upload that make it whole."""
    with context.sessions() as session:
        rows = session.execute(select(t.Part.id, t.Part.bytes).where(t.Part.upload_id == upload.id))
        sizes = {part: size for part, size in rows}
    if unknown := [id for id in ids if id not in sizes]:
        raise bad_request(f"{unknown[0]} is no part of {upload.id}.", "part_ids", "invalid_part")
    if len(set(ids)) < len(ids):
        raise bad_request("A part is named twice.", "part_ids", "invalid_part")
    total = sum(sizes[id] for id in ids)
    if total != upload.bytes:
        message = f"The parts hold {total} bytes, not the {upload.bytes} announced."
        raise bad_request(message, "part_ids", "invalid_upload_size")
    return [_folder(context, upload.id) / id for id in ids]


def _matching(blocks: Iterable[bytes], md5: str | None) -> Iterator[bytes]:
    """Pass ``blocks`` on; 400 after the last where they have another hash."""
    digest = hashlib.md5(usedforsecurity=False)
    for block in blocks:
        digest.update(block)
        yield block
    if md5 is not None and digest.hexdigest() != md5.lower():
        raise bad_request(f"The parts have the MD5 hash {digest.hexdigest()}, not {md5}.", "md5", "md5_mismatch")


def show(upload: t.Upload, file: t.File | None = None) -> JsonObject:
    fields = ("id", "bytes", "created_at", "expires_at", "filename", "purpose")
    shown = {name: getattr(upload, name) for name in fields}
    return {"object": "upload", "status": _status(upload), "file": api.show(file) if file else None} | shown
