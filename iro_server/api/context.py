"""What every route reaches: settings, database, models, and who calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Literal, TypeVar

from fastapi import Depends, Query, Request
from sqlalchemy import ColumnElement, select

from iro_server import JsonObject
from iro_server.access.key_requirement import KeyRequirement
from iro_server.api.errors import APIError, not_found
from iro_server.api.registry import ModelRegistry, ServedModel
from iro_server.concurrency.admission import Admission
from iro_server.concurrency.deadlines import Deadlines
from iro_server.concurrency.fair_executor import FairExecutor
from iro_server.graders.environment import GraderEnvironment
from iro_server.settings import Settings
from iro_server.store.database import Sessions, page
from iro_server.store.tables import DEFAULT_PROJECT, Base, Owned

Row = TypeVar("Row", bound=Base)


@dataclass(frozen=True)
class Caller:
    """Whose request it is. ``key_id`` None: nobody in particular, on a server that needs no keys. ``scopes``: of
    ``scopes.Scope``, what the key may do; None: everything."""

    project: str = DEFAULT_PROJECT
    key_id: str | None = None
    scopes: list[str] | None = None


@dataclass(frozen=True)
class Context:
    settings: Settings
    sessions: Sessions
    models: ModelRegistry
    grader_environment: GraderEnvironment
    admission: Admission
    deadlines: Deadlines
    keys_required: KeyRequirement
    grading: FairExecutor
    lookups: FairExecutor
    schemas: FairExecutor
    embedding: FairExecutor
    caller: Caller = Caller()

    def owned(self, table: type[Base]) -> list[ColumnElement[bool]]:
        """What the caller may see of ``table``."""
        return [table.project == self.caller.project] if issubclass(table, Owned) else []

    def get(self, table: type[Row], kind: str, id: str, param: str = "id", *where: ColumnElement[bool]) -> Row:
        """The caller's row named ``id``; 404 without one."""
        with self.sessions() as session:
            row = session.scalar(select(table).where(table.id == id, *self.owned(table), *where))
        if row is None:
            raise not_found(kind, id, param)
        return row

    def model(self, name: str) -> ServedModel:
        """The model that the caller names so."""
        return self.models.resolve(name, self.caller.project)


async def _context(request: Request) -> Context:  # a plain function would wait for a thread
    return replace(request.app.state.context, caller=getattr(request.state, "caller", Caller()))


Ctx = Annotated[Context, Depends(_context)]
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Literal["asc", "desc"]
DELETED_SINCE = (
    "It may have been deleted since the page that ended with it was read: to delete what a list shows, read the whole "
    "list first, such as [*client.files.list()]."
)


def list_object(
    context: Context,
    table: type[Row],
    show: Callable[[Row], JsonObject],
    *where: ColumnElement[bool],
    filters: Sequence[ColumnElement[bool]] = (),
    limit: int,
    after: str | None = None,
    ascending: bool = False,
) -> JsonObject:
    """One page of what the caller may see, in OpenAI's list shape, of bounded size. 404 where ``after`` names no row
    that satisfies ``where``. It need not pass ``filters``: it may have changed or expired since its page."""
    last = None if after is None else _row_after(context, table, after, where)
    with context.sessions() as session:
        items, more = page(session, table, show, (*context.owned(table), *where, *filters), limit, last, ascending)
    return _page(items, more)


def _row_after(context: Context, table: type[Row], id: str, where: Sequence[ColumnElement[bool]]) -> Row:
    kind = re.sub(r"\B(?=[A-Z])", " ", table.__name__).lower()  # EvalRun: eval run
    try:
        return context.get(table, kind, id, "after", *where)
    except APIError as error:
        error.message += f". {DELETED_SINCE}"
        raise


def list_page(
    items: Sequence[JsonObject], kind: str, limit: int, after: str | None = None, ascending: bool = False
) -> JsonObject:
    """One page of ``items``, the oldest first, in the same shape."""
    items = items if ascending else items[::-1]
    if after is not None:
        places = [place for place, item in enumerate(items) if item["id"] == after]
        if not places:
            raise not_found(kind, after, "after")
        items = items[places[0] + 1 :]
    return _page(items[:limit], len(items) > limit)


def _page(data: Sequence[JsonObject], more: bool) -> JsonObject:
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, **ends, "has_more": more}
