"""``iro keys``: who may call a server."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from iro_server import JsonObject
from iro_server.access.scopes import Scope
from iro_server.cli.options import settings_of_environment
from iro_server.cli.times import local_time

if TYPE_CHECKING:
    from logging import Logger

    from iro_server.settings import Settings
    from iro_server.store.tables import ApiKey

app = typer.Typer(no_args_is_help=True, help="API keys. Once one exists, the server requires a key.")

DataDir = Annotated[Path | None, typer.Option(help="The server's data directory.")]
DatabaseUrl = Annotated[str | None, typer.Option(help="The server's database; SQLite in data_dir by default.")]
MOST = 2**31 - 1  # of a limit
MOST_DAYS = 36_500
PerMinute = Annotated[int | None, typer.Option(min=1, max=MOST)]
Scopes = Annotated[
    list[Scope] | None,
    typer.Option(
        "--scope", help="A scope of the key; repeat for several. Default: everything but starting batch jobs."
    ),
]
Days = Annotated[float | None, typer.Option(min=0, max=MOST_DAYS, help="Days until the key expires; more than 0.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Its name in lists and logs.")],
    project: Annotated[str | None, typer.Option(help="Keys of one project share files, jobs and models.")] = None,
    requests_per_minute: PerMinute = None,
    tokens_per_minute: PerMinute = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=MOST, help="Maximum number of concurrent requests.")
    ] = None,
    scopes: Scopes = None,
    expires_in_days: Days = None,
    data_dir: DataDir = None,
    database_url: DatabaseUrl = None,
) -> None:
    """Create a key and print it, only this once. Without --project it gets a new project."""
    from iro_server.access.audit import audit_log
    from iro_server.store import keys
    from iro_server.store.database import open_database
    from iro_server.store.tables import DEFAULT_PROJECT

    limits: JsonObject = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
    limits |= {"concurrency": concurrency, "scopes": [scope.value for scope in scopes] if scopes else None}
    if expires_in_days == 0:
        raise ValueError("expires-in-days: a key of 0 days has expired; give more, or leave it out for no end")
    if expires_in_days is not None:
        limits["expires_at"] = int(time.time() + 86_400 * expires_in_days)
    if not name.strip():
        raise ValueError("name: give the key a name, by which lists and logs call it")
    settings = settings_of(data_dir, database_url)
    if not settings.data_dir.is_dir():
        typer.echo(f"This makes a new data directory: {settings.data_dir}", err=True)
    sessions = open_database(settings, migrate=False)
    before = keys.every(sessions)
    for key in before:
        if (key.name, key.project) == (name, project) and _is_active(key):
            raise ValueError(
                f"{name} is the name of the active key {key.id} of the project {project}: give another name, or revoke "
                f"that key first (iro keys revoke {key.id})"
            )
    is_new = project not in {DEFAULT_PROJECT, *(key.project for key in before)}
    audit = audit_log(settings)  # before there is a key: where it fails, the secret would be lost
    key, secret = keys.create(sessions, name, project, **limits)
    _note(audit, "key_created", key)
    typer.echo(f"Key {key.id} of the {'new ' if is_new else ''}project {key.project}:", err=True)
    typer.echo(secret)
    if not before and project != DEFAULT_PROJECT:
        typer.echo(
            "The server requires a key from now on. What was made without one is of the project "
            f"'{DEFAULT_PROJECT}': a key with --project {DEFAULT_PROJECT} sees it.",
            err=True,
        )


@app.command("list")
def list_keys(data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """List all keys with their limits, without their secrets."""
    from iro_server.store import keys
    from iro_server.store.database import open_database

    settings = existing_settings(data_dir, database_url)
    every = keys.every(open_database(settings, migrate=False))
    if not every:
        typer.echo(f"No keys for the server of {settings.data_dir}.", err=True)
    for key in every:
        state = _state(key)
        limits = {name: getattr(key, name) for name in ("requests_per_minute", "tokens_per_minute", "concurrency")}
        key_limits = ", ".join(f"{name} {limit}" for name, limit in limits.items() if limit is not None)
        key_limits += f"  may {', '.join(key.scopes)}" if key.scopes else ""
        line = f"{key.id}  …{key.hint}  {local_time(key.created_at)}  {key.name}  (project {key.project})  {state}"
        typer.echo(f"{line}  {key_limits}".rstrip())


@app.command()
def revoke(id: str, data_dir: DataDir = None, database_url: DatabaseUrl = None) -> None:
    """Revoke a key. Data of its project remains."""
    from iro_server.access.audit import audit_log
    from iro_server.store import keys
    from iro_server.store.database import open_database

    settings = existing_settings(data_dir, database_url)
    sessions, audit = open_database(settings, migrate=False), audit_log(settings)
    revoked = keys.revoke(sessions, id)
    _note(audit, "key_revoked", revoked)
    typer.echo(f"Revoked {revoked.name}.")


def settings_of(data_dir: Path | None, database_url: str | None) -> Settings:
    from iro_server.settings import Settings

    return settings_of_environment(Settings, data_dir=data_dir, database_url=database_url)


def existing_settings(data_dir: Path | None, database_url: str | None) -> Settings:
    """Settings whose database somebody has made: ValueError where it would lie in a folder that does not exist."""
    settings = settings_of(data_dir, database_url)
    if settings.database_url is None:
        check_data_dir(settings)
    return settings


def check_data_dir(settings: Settings) -> None:
    if not settings.data_dir.is_dir():
        raise ValueError(f"there is no server data at {settings.data_dir}; name its directory: --data-dir")


def _note(audit: Logger, event: str, key: ApiKey) -> None:
    """A line in the audit log."""
    line = {"time": round(time.time(), 3), "event": event, "key": key.id, "name": key.name, "project": key.project}
    audit.info(json.dumps(line))


def _state(key: ApiKey) -> str:
    if key.revoked_at:
        return f"revoked {local_time(key.revoked_at)}"
    if key.expires_at:
        return f"{'active until' if _is_active(key) else 'expired'} {local_time(key.expires_at)}"
    return "active"


def _is_active(key: ApiKey) -> bool:
    return not key.revoked_at and (key.expires_at is None or key.expires_at > time.time())
