"""``iro backup`` and ``iro restore``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from iro_server.cli.keys import DatabaseUrl, DataDir, check_data_dir, settings_of

Folder = Annotated[Path, typer.Argument(help="The backup's folder.")]


def backup(out: Folder, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Write all rows and files, as of now, to a new folder. The server may run meanwhile."""
    from iro_server.store.backup import backup
    from iro_server.store.database import connect, reachable, sessions_on

    settings = settings_of(data_dir, database_url)
    check_data_dir(settings)  # of a server with a database elsewhere too: its files lie there
    with reachable(connect(settings)) as engine:
        counts = backup(settings, sessions_on(engine), out)
    _tell(f"Backed up to {out}", counts)


def restore(source: Folder, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Fill an empty, stopped server from a backup. Jobs that ran continue when it starts."""
    from iro_server.store.backup import restore

    settings = settings_of(data_dir, database_url)
    _tell(f"Restored to {settings.data_dir}", restore(settings, source))


def _tell(done: str, rows: dict[str, int]) -> None:
    counts = ", ".join(f"{rows[name]} {name}" for name in ("files", "jobs", "models", "api_keys"))
    typer.echo(f"{done}: {counts.replace('api_keys', 'keys')}")
