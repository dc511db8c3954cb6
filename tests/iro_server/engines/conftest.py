"""An engine over fake endpoints of vLLM."""

from __future__ import annotations

import pytest

from iro_server.engines.endpoints import Endpoints
from iro_server.engines.opening import open_engine
from iro_server.engines.text import TextEngine
from tests.iro_server.api.serving import wait_for
from tests.iro_server.engines.fake_endpoint import FakeEndpoint, write_byte_model
from tests.iro_server.engines.quick_engine import Quick


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def served(model_dir):
    """Starts an engine over fake endpoints. On a busy machine one that is well may seem silent at first."""
    closing = []

    def start(*fakes: FakeEndpoint, patience: float = 5.0, **options):
        closing.extend(fakes)
        urls = tuple(fake.url for fake in fakes)
        engine = Quick(model_dir, Endpoints(urls, patience=patience, **options))
        closing.insert(0, engine)
        well = [replica for replica, fake in zip(engine.replicas.all, fakes, strict=True) if fake.mode == "ok"]
        wait_for(lambda: all(replica.up for replica in well))
        for fake in fakes:
            fake.bodies.clear()
        return engine

    yield start
    for each in closing:
        each.close()


@pytest.fixture
def fake():
    """An endpoint of text alone."""
    fake = FakeEndpoint(ids=False)
    yield fake
    fake.close()


@pytest.fixture
def engine(model_dir, fake):
    """Over the endpoint of text."""
    with open_engine(model_dir, "bytes", Endpoints((fake.url,), kind="text", patience=0.5)) as engine:
        assert isinstance(engine, TextEngine)
        fake.bodies.clear()
        yield engine
