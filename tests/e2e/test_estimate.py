"""An estimate by the real server on the real model, and what the job that it is of then gains."""

from __future__ import annotations

import pytest

from iro_server.engines.ports import free_port
from iro_server.settings import Settings
from tests.e2e.test_api_server import COUNT_LETTER, MODEL, ROWS, SMALL, server
from tests.iro_server.api.serving import upload, wait_for


def estimated(client, source: str) -> dict:
    grader = {"type": "python", "name": "letters", "source": source}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": SMALL}}
    body = {"model": MODEL, "training_file": upload(client, ROWS), "method": method, "seed": 1}
    made = client.post("/fine_tuning/jobs/estimate", body=body, cast_to=object)

    def look() -> dict | None:
        return client.get(f"/fine_tuning/jobs/estimate/{made['id']}", cast_to=object)["result"]

    return wait_for(look, seconds=300)


@pytest.mark.slow
def test_the_real_model_is_estimated_in_the_time_that_an_estimate_has(tmp_path):
    settings = Settings(data_dir=tmp_path, port=free_port(), estimate_seconds=30.0)
    with server(settings) as (_, client):
        useful = estimated(client, COUNT_LETTER)
        assert useful["verdict"] == "go" and useful["prompts"] >= 3, useful
        assert useful["expected_gain"]["low"] > 0 and useful["estimate_cost"]["seconds"] < 90
        assert all(sample["text"] for sample in useful["samples"])
        constant = estimated(client, "def grade(sample, item):\n    return float('\\x00' in sample['output_text'])\n")
        assert constant["verdict"] == "constant_reward"
        print(useful, constant)
