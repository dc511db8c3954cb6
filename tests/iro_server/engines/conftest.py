"""An engine over fake endpoints of vLLM."""

from __future__ import annotations

import pytest

from iro_server.engines.endpoints import Endpoints
from tests.iro_server.engines.fake_endpoint import FakeEndpoint, write_byte_model
from tests.iro_server.engines.quick_engine import Quick


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def served(model_dir):
    """Starts so many fake endpoints and an engine over them."""
    closing = []

    def start(*fakes: FakeEndpoint, patience: float = 5.0, **options):
        closing.extend(fakes)
        urls = tuple(fake.url for fake in fakes)
        engine = Quick(model_dir, Endpoints(urls, patience=patience, **options))
        closing.insert(0, engine)
        for fake in fakes:
            fake.bodies.clear()
        return engine

    yield start
    for each in closing:
        each.close()
