from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import ended, serving, settings_for, start_job


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """A server with the byte engine: its client, engine and settings."""
    engine = ByteEngine()
    settings = settings_for(tmp_path_factory.mktemp("data"), max_body_bytes=100_000)
    with serving(settings, engine) as client:
        yield SimpleNamespace(client=client, engine=engine, settings=settings)


@pytest.fixture(scope="session")
def client(served):
    return served.client


@pytest.fixture(scope="session")
def job(client):
    """An alignment job that has succeeded: its model likes the letter z."""
    return ended(client, start_job(client))
