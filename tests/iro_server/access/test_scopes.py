"""Which scopes a request takes."""

from __future__ import annotations

import pytest

from iro_server.access.scopes import Scope, sufficient


def test_a_monitor_reads_the_metrics_and_nothing_else():
    assert Scope.metrics in sufficient("GET", "/metrics") and Scope.admin in sufficient("GET", "/metrics")
    for method in ("GET", "POST", "DELETE"):
        for path in ("/v1/models", "/v1/files", "/v1/fine_tuning/jobs", "/v1/iro/job_runs", "/v1/webhook_endpoints"):
            assert Scope.metrics not in sufficient(method, path)


@pytest.mark.parametrize("path", ["/v1/fine_tuning/checkpoints/ft:1/permissions", "/v1/webhook_endpoints"])
def test_sharing_and_webhooks_take_admin(path):
    assert sufficient("GET", path) == (Scope.admin,)
