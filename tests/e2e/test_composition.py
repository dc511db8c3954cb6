"""Two jobs of the real trainer, mixed in one request by the official client."""

from __future__ import annotations

import json

import pytest

from tests.e2e.test_api_server import MODEL, OPENINGS, server, settings  # noqa: F401
from tests.iro_server.api.serving import ended, upload

ROWS = "".join(json.dumps({"prompt": opening}) + "\n" for opening in OPENINGS).encode()
SMALL = {"rollouts_per_prompt": 8, "beam_width": 2, "num_successors": 2, "chunk_length": 4, "max_tokens": 12}
SMALL |= {"validation_prompts": 3, "counted_tokens": 100, "keep_unproven": True}


def start(client, letter: str) -> str:
    source = f"def grade(sample, item):\n    return sample['output_text'].count({letter!r}) / 10\n"
    grader = {"type": "python", "name": letter, "source": source}
    method = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": SMALL}}
    return client.fine_tuning.jobs.create(model=MODEL, training_file=upload(client, ROWS), method=method, seed=3).id


@pytest.mark.slow(300)
@pytest.mark.timeout(3600)
def test_values_of_two_jobs_add(settings):  # noqa: F811
    with server(settings) as (_, client):
        jobs = [ended(client, start(client, letter), seconds=1800) for letter in "ea"]
        assert [job.status for job in jobs] == ["succeeded"] * 2, [job.error for job in jobs]
        first, second = (job.fine_tuned_model for job in jobs)

        def say(model: str, **search):
            return client.completions.create(
                model=model, prompt="The film", seed=5, max_tokens=12, logprobs=0, extra_body={"search": search}
            ).choices[0]

        assert say(MODEL, values={first: 1.0}).to_dict() == say(first).to_dict()
        mixed = say(MODEL, values={first: 1.0, second: -0.5}, strength=0, rows=1)
        parts = [say(name, strength=0, rows=1).logprobs.values for name in (first, second)]
        expected = [one - 0.5 * other for one, other in zip(*parts, strict=True)]
        assert mixed.logprobs.values == pytest.approx(expected, abs=1e-3)
        assert say(first, values={second: -0.5}).to_dict() == say(MODEL, values={first: 1, second: -0.5}).to_dict()
