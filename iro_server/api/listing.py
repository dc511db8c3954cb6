"""Lists whose rows may be large, encoded by the thread that reads them: a page of megabytes would hold up the event
loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from fastapi import Response
from sqlalchemy import ColumnElement

from iro_server import JsonObject
from iro_server.api.context import Context, list_object
from iro_server.api.respond import AsciiJSON
from iro_server.store.tables import Base

Row = TypeVar("Row", bound=Base)


def list_response(
    context: Context,
    table: type[Row],
    show: Callable[[Row], JsonObject],
    *where: ColumnElement[bool],
    filters: Sequence[ColumnElement[bool]] = (),
    limit: int,
    after: str | None = None,
    ascending: bool = False,
) -> Response:
    """``list_object`` as a response."""
    rows = list_object(context, table, show, *where, filters=filters, limit=limit, after=after, ascending=ascending)
    return AsciiJSON(rows)
