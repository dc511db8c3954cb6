import pytest

from iro_server.graders import pool


def all_started() -> None:
    """Warm sandboxes that were being started have been, and closed where there is no room for them."""
    pool.POOL._starter.submit(int).result()


@pytest.fixture
def no_warm_sandboxes(monkeypatch):
    """So that those that live are those at work. Those that earlier tests left are closed: the pool would keep one of
    the test's in their place."""
    monkeypatch.setattr(pool, "WARM", 0)
    all_started()
    with pool.POOL._lock:
        warm, pool.POOL._warm = pool.POOL._warm, []
    for sandbox in warm:
        sandbox.close()
    yield
    all_started()
