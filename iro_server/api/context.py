"""What every route reaches: settings, database, models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from sqlalchemy import ColumnElement

from iro_server.api.errors import not_found
from iro_server.api.registry import ModelRegistry
from iro_server.settings import Settings
from iro_server.store.database import Sessions, find, page
from iro_server.store.tables import Base

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class Context:
    settings: Settings
    sessions: Sessions
    models: ModelRegistry

    def get(self, table: type[Row], what: str, id: str, param: str = "id") -> Row:
        """The row named ``id``; 404 without one."""
        with self.sessions() as session:
            row = find(session, table, id)
        if row is None:
            raise not_found(what, id, param)
        return row


def _context(request: Request) -> Context:
    return request.app.state.context


Ctx = Annotated[Context, Depends(_context)]


def list_object(
    context: Context,
    table: type[Row],
    show: Any,
    *where: ColumnElement[bool],
    limit: int,
    after: str | None = None,
    ascending: bool = False,
) -> dict[str, Any]:
    """One page in OpenAI's list shape. 404 where ``after`` names no row."""
    last = None if after is None else context.get(table, table.__name__.lower(), after, "after")
    with context.sessions() as session:
        rows, more = page(session, table, where, limit, last, ascending)
    data = [show(row) for row in rows]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": more}
