"""API keys: made, found by what the caller sends, revoked. Only a key's hash is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import tempfile
from pathlib import Path

from sqlalchemy import func, or_, select

from iro_server.store.database import Sessions
from iro_server.store.tables import ApiKey, new_id, now

PREFIX = "sk-iro-"


def create(sessions: Sessions, name: str, project: str | None = None, **limits: object) -> tuple[ApiKey, str]:
    """A new key and, this once, its secret. Without a project it gets one of its own: nobody else's sees its things.

    ``limits``: requests_per_minute, tokens_per_minute, concurrency; scopes (None: all); expires_at, in Unix time.
    """
    secret = PREFIX + secrets.token_urlsafe(32)
    id = new_id("key_")
    project = project or f"proj_{id[4:]}"
    key = ApiKey(id=id, name=name, project=project, hash=_hash(secret), hint=secret[-4:], **limits)
    with sessions.begin() as session:
        session.add(key)
    return key, secret


def by_secret(sessions: Sessions, secret: str) -> ApiKey | None:
    """The key that has this secret, and is neither revoked nor expired."""
    valid = (ApiKey.revoked_at.is_(None), or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > now()))
    with sessions() as session:
        return session.scalar(select(ApiKey).where(ApiKey.hash == _hash(secret), *valid))


def every(sessions: Sessions) -> list[ApiKey]:
    """All keys, the revoked ones too, oldest first."""
    with sessions() as session:
        return list(session.scalars(select(ApiKey).order_by(ApiKey.seq)))


def exist(sessions: Sessions) -> bool:
    """Whether there ever was a key: a server whose last one is revoked does not thereby open to everyone."""
    with sessions() as session:
        return bool(session.scalar(select(func.count()).select_from(ApiKey)))


def revoke(sessions: Sessions, id: str) -> ApiKey:
    """Revoke the key named ``id``; one revoked before stays as it is. ValueError where there is none."""
    with sessions.begin() as session:
        key = session.scalar(select(ApiKey).where(ApiKey.id == id))
        if key is None:
            raise ValueError(f"no key {id}; `iro keys list` shows them")
        key.revoked_at = key.revoked_at or now()
        return key


def internal(data_dir: Path) -> str:
    """The server's own key, with which its graders call it; made the first time, readable by its user alone."""
    path = data_dir / "internal.key"
    if not path.exists():
        handle, temporary_path = tempfile.mkstemp(dir=data_dir)  # mode 600
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_urlsafe(32))
        with contextlib.suppress(FileExistsError):  # another server was first
            os.link(temporary_path, path)
        os.unlink(temporary_path)
    return path.read_text()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()  # unsalted: a secret of 256 random bits cannot be guessed
