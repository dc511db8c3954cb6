from __future__ import annotations

from types import SimpleNamespace

import pytest

from iro_server.access import key_requirement
from iro_server.api import access
from tests.conftest import DATABASES
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import ended, serving, settings_for, start_job


def pytest_generate_tests(metafunc):
    """A module that says ON_EACH_DATABASE is tested on a server with each kind."""
    if "served" in metafunc.fixturenames and getattr(metafunc.module, "ON_EACH_DATABASE", False):
        metafunc.parametrize("served", DATABASES, indirect=True, scope="session")


@pytest.fixture
def brief_keys(monkeypatch):
    """What a server has read of the keys holds for a moment only, so that no test waits long for a new key to count."""
    for module in (access, key_requirement):
        monkeypatch.setattr(module, "KEY_SECONDS", 0.2)


@pytest.fixture(scope="session")
def served(request, tmp_path_factory, new_database):
    """A server with the byte engine: its client, engine and settings. Its database is SQLite unless asked otherwise."""
    engine, database_url = ByteEngine(), new_database(getattr(request, "param", "sqlite"))
    settings = settings_for(tmp_path_factory.mktemp("data"), max_body_bytes=100_000, database_url=database_url)
    with serving(settings, engine) as client:
        yield SimpleNamespace(client=client, engine=engine, settings=settings)


@pytest.fixture(scope="session")
def client(served):
    return served.client


@pytest.fixture(scope="session")
def job(client):
    """An alignment job that has succeeded: its model likes the letter z."""
    return ended(client, start_job(client))
