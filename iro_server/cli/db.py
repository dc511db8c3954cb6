"""``iro db``: the database's tables. A server brings them up to date itself when it starts."""

from __future__ import annotations

import typer

from iro_server.cli.keys import DatabaseUrl, DataDir, existing_settings

app = typer.Typer(no_args_is_help=True, help="Database migrations; a server also runs them when it starts.")


@app.command()
def upgrade(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Migrate the tables to this version; all rows are kept."""
    from iro_server.store.database import open_database

    open_database(existing_settings(data_dir, database_url))
    current(data_dir, database_url)


@app.command()
def current(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Print the revision of the tables, and that of this version if it differs."""
    from iro_server.store.database import connect, reachable
    from iro_server.store.upgrade import revisions

    with reachable(connect(existing_settings(data_dir, database_url))) as engine:
        revision, head = revisions(engine)
    behind = "" if revision == head else f" (this version of Iro has {head}; `iro db upgrade` goes there)"
    typer.echo(f"{revision or 'none'}{behind}")
