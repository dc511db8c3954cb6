"""The clock of leases: the database's, so that it is the same for all servers."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Double
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class UnixTime(FunctionElement[float]):
    """Unix time in seconds when the statement runs, on PostgreSQL's clock; with SQLite, on this machine's."""

    type = Double()
    inherit_cache = True


@compiles(UnixTime, "postgresql")
def _postgresql(element: UnixTime, compiler: Any, **_: Any) -> str:
    return "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)"


@compiles(UnixTime, "sqlite")
def _sqlite(element: UnixTime, compiler: Any, **_: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"
