"""Every property test: no deadline, as machines differ, and the same examples every time. And the databases that a
server may keep its rows in."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from zlib import crc32

import httpx
import pytest
from hypothesis import settings
from sqlalchemy import create_engine, text

from benchmarks.postgres import MISSING, Postgres, postgres, programs

if TYPE_CHECKING:
    from iro_server.engines.embedded import EmbeddedEngine

pytest_plugins = ["tests.loggers", "tests.rotation"]
if "PYTEST_XDIST_WORKER" in os.environ:  # before torch is imported, here and in the processes that tests start
    os.environ.setdefault("OMP_NUM_THREADS", "1")

httpx._config.DEFAULT_TIMEOUT_CONFIG.read = 120  # of httpx.get and the like: a loaded machine exceeds 5 s

settings.register_profile("iro", deadline=None, derandomize=True)
settings.load_profile("iro")

DATABASES = ("sqlite", "postgresql")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini("allowed_skips", "how many tests --count-skips lets be skipped", default="0")
    parser.addoption("--count-skips", action="store_true", help="fail if more tests are skipped than allowed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.getoption("--count-skips") and (skipped := len(terminalreporter.stats.get("skipped", []))):
        allowed = int(config.getini("allowed_skips"))
        terminalreporter.section(f"{skipped} tests were skipped; pyproject.toml allows {allowed}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_databases: runs on each kind of database every time")


@pytest.hookimpl(wrapper=True)  # before slow tests are selected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """A test that takes a database of each kind runs on one of them, half of these tests on each; on the other it is a
    slow test."""
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        kind = parameters.get("database_url") or parameters.get("served")
        if kind in DATABASES and not item.get_closest_marker("both_databases"):
            name = item.nodeid.replace(kind, "")
            if DATABASES[crc32(name.encode()) % len(DATABASES)] != kind:
                item.add_marker(pytest.mark.slow(3))
    return (yield)


def pytest_collection_finish() -> None:
    """A collection of garbage looks at what tests make, not at the half a million objects of what they import."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if session.config.getoption("--count-skips") and reporter:
        too_many = len(reporter.stats.get("skipped", [])) > int(session.config.getini("allowed_skips"))
        session.exitstatus = session.exitstatus or int(too_many)


@pytest.fixture(scope="session")
def isolation() -> None:
    """Python graders are isolated on this host; without it the test is skipped, and fails in CI."""
    from iro_server.graders.sandbox import isolation_problem

    problem = isolation_problem()
    if problem and "CI" not in os.environ:
        pytest.skip(f"this host does not isolate: {problem}")
    assert problem is None


@pytest.fixture(scope="session")
def small_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.iro_server.engines.tiny import save_small_model

    return save_small_model(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture(scope="session")
def small_engine(small_model: Path) -> Iterator[EmbeddedEngine]:
    """An engine with random weights and a real tokenizer, of the name that test servers use."""
    from iro_server.engines.embedded import EmbeddedEngine

    with EmbeddedEngine(small_model, name="bytes") as engine:
        yield engine


@pytest.fixture(scope="session")
def postgresql() -> Iterator[Postgres]:
    """One PostgreSQL server for all tests that need one."""
    if (bin := programs()) is None:
        pytest.skip(MISSING)
    with postgres(bin, "-c fsync=off -c max_connections=200") as server:
        yield server


@pytest.fixture(scope="session")
def new_database(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Makes an empty database of the kind, one of DATABASES, and gives its URL."""
    numbers = count()

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path_factory.mktemp('database') / 'iro.db'}"
        server, name = request.getfixturevalue("postgresql"), f"test_{next(numbers)}"
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        engine.dispose()
        return server.database(name)

    return make


@pytest.fixture(params=DATABASES)
def database_url(request: pytest.FixtureRequest, new_database: Callable[[str], str]) -> str:
    """An empty database; see ``pytest_collection_modifyitems`` for its kind."""
    return new_database(request.param)
