"""The Python example of docs/moving-from-openai.md, as it stands, against the real server, model and alignment job."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.contract.guide import MODEL, code
from tests.contract.strict import strictly
from tests.e2e.test_api_server import server, settings

__all__ = ["settings"]  # the fixture


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_openais_rft_script_aligns_the_real_model(settings, tmp_path):
    script = tmp_path / "rft.py"
    script.write_text(code("python", f"http://127.0.0.1:{settings.port}/v1"))
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with server(settings) as (_, client):
        done = subprocess.run(
            [sys.executable, script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=2000
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "The job has successfully completed" in done.stdout
        assert (tmp_path / "metrics.csv").read_text().startswith("step,")
        (job,) = client.fine_tuning.jobs.list().data  # graders by name are in OpenAI's pages, not in its client's types
        assert strictly(client.models.retrieve(job.fine_tuned_model)).id.startswith(f"ft:{MODEL}:iro:support:")
        events = strictly(client.fine_tuning.jobs.list_events(job.id, limit=100)).data
        first, *_, last = [event.data for event in reversed(events) if event.type == "metrics"]
        assert last["full_valid_mean_reward"] > first["full_valid_mean_reward"]
        for checkpoint in strictly(client.fine_tuning.jobs.checkpoints.list(job.id)).data:
            assert checkpoint.metrics.full_valid_mean_reward > 0
