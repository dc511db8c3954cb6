"""Rows in a server's database as many and as hostile jobs would leave them."""

from __future__ import annotations

import math

from iro_server.settings import Settings
from iro_server.store.database import open_database
from iro_server.store.tables import Checkpoint, Event, Job

HOSTILE = "<img src=x onerror=alert(1)> ![m](https://evil.example/a.png) " + "x" * 3000
JOBS, EVENTS, ITERATIONS = 200, 1000, 8
STATUSES = ("succeeded", "failed", "cancelled", "paused", "succeeded")
PRICES = {
    "step": ITERATIONS,
    "chosen": "tilt",
    "prices": [
        {"name": "tilt", "rows": 1, "reward": 0.61, "error": 0.03, "perplexity": 21.5, "kl": 3.1}
        | {"half_width": 0.07},
        {"name": "tilt and search", "rows": 16, "reward": 0.66, "error": None, "perplexity": 24.0, "kl": None}
        | {"half_width": None},
    ],
}
STRENGTHS = {
    "step": ITERATIONS,
    "strengths": [
        {"name": f"tilt at strength {strength}", "rows": 1, "reward": reward, "error": 0.03, "perplexity": 21.5}
        | {"kl": kl, "kl_per_token": None if kl is None else kl / 12, "search": {"strength": strength}}
        for strength, reward, kl in [(0.25, 0.4, 1.2), (0.5, None, None), (1.0, 0.61, 3.1)]
    ],
}


TIMES = {"sampling": 60.0, "choosing": 10.0, "eval": 20.0}  # seconds
COOLED = {"kind": "none", "strength": 0.0, "sharpness": 1.0, "reward": 0.5, "error": 0.03, "kl": 5.6, "chosen": False}


def _tilts(
    *trials: tuple[str, float, float | None, float | None], chosen: int, penalty: float = 0.0
) -> dict[str, object]:
    """Of a round: kind, strength, reward and nats of each; of the chosen one also the repetition penalty."""
    return {
        "step": ITERATIONS,
        "tilts": [
            {"kind": kind, "strength": strength, "reward": reward, "error": 0.03, "kl": kl, "perplexity": 21.5}
            | {"chosen": place == chosen, "sharpness": 1.0 * (place == chosen)}
            | {"repetition_penalty": penalty * (place == chosen)}
            for place, (kind, strength, reward, kl) in enumerate(trials)
        ]
        + [COOLED],
    }


TILTS = _tilts(
    ("none", 0.0, 0.2, 0.0),
    ("words", 1.0, 0.4, 1.2),
    ("words", 2.0, 0.61, 3.1),
    ("bias", 4.0, 0.3, 2.4),
    ("bias", 8.0, None, None),
    chosen=2,
)
ADDED_TILTS = _tilts(("none", 0.0, 0.6, 3.1), ("states", 1.0, 0.75, 5.2), chosen=1, penalty=2.0)
LAST_TILTS = _tilts(*[(f"kind {place}", 1.0, 0.7, 5.5 + place) for place in range(3)], chosen=-1)
CORRELATION = {"step": ITERATIONS, "by_token": {"tokens": [4, 8, 12, 13], "correlation": [0.1, 0.3, 0.5, 0.6]}}
ALARM = {
    "code": "over_optimization",
    "measures": [{"measure": "length", "median": 64.0, "frozen_low": 3.0, "frozen_high": 20.0}],
}
CREATED = 1_760_000_000  # Unix time of the first job


def add_crowd(settings: Settings) -> str:
    """JOBS jobs; the newest, whose id is returned, has EVENTS events, ITERATIONS iterations and an error."""
    with open_database(settings).begin() as session:
        for number in range(JOBS):
            session.add(_job(number))
            session.flush()
        busy = f"ftjob-{JOBS - 1:024d}"
        for number in range(EVENTS):
            session.add(_event(busy, number))
            session.flush()
        for step in range(ITERATIONS + 1):
            session.add(_metrics(busy, step))
            session.flush()
        last = [
            _samples(0),
            _samples(ITERATIONS),
            CORRELATION,
            TILTS,
            ADDED_TILTS,
            LAST_TILTS,
            PRICES,
            STRENGTHS,
            ALARM,
        ]
        for number, data in enumerate(last):
            level = "warn" if "code" in data else "info"
            session.add(
                Event(id=f"ftevent-last-{number}", job_id=busy, type="message", level=level, message="", data=data)
            )
            session.flush()
        for step in (3, 5, 8):
            name = f"ft:bytes:iro:{'long-name-' * 6}:{step}:ckpt-step-{step}"
            metrics = {"full_valid_mean_reward": 0.3 + step / 20}
            session.add(
                Checkpoint(id=f"ftckpt-{step}", job_id=busy, step=step, model_name=name, path="", metrics=metrics)
            )
    return busy


def _job(number: int) -> Job:
    last = number == JOBS - 1
    status = "failed" if last else STATUSES[number % len(STATUSES)]
    grader = {"type": "string_check", "name": HOSTILE if last else f"rule {number}"}
    return Job(
        id=f"ftjob-{number:024d}",
        created_at=CREATED + 977 * number,
        finished_at=None if status == "paused" else CREATED + 977 * number + 60 * (1 + number % 50),
        status=status,
        model="bytes",
        model_name=f"ft:bytes:iro:run-{number}:{number:08d}",
        training_file="file-1",
        seed=1,
        config={},
        method={"type": "reinforcement", "reinforcement": {"grader": grader, "iro": {}}},
        error={"code": "grader_failed", "message": HOSTILE, "param": "grader"} if status == "failed" else None,
    )


def _event(job_id: str, number: int) -> Event:
    level = {0: "error", 1: "warn"}.get(number % 97, "info")
    message = HOSTILE if number % 97 == 0 else f"Rollouts of iteration {1 + number // 130}: {number % 130} of 130"
    return Event(id=f"ftevent-{number}", job_id=job_id, type="message", level=level, message=message, data={})


def _samples(step: int) -> dict[str, object]:
    sample = {"prompt": HOSTILE, "completion": HOSTILE if step else "", "reward": 0.1 * step}
    return {"step": step, "samples": [sample, sample | {"prompt": "say z", "completion": "z" * step}]}


def _metrics(job_id: str, step: int) -> Event:
    reward = 0.2 + 0.5 * (1 - math.exp(-step / 3))
    data = {
        "step": step,
        "total_steps": ITERATIONS,
        "train_mean_reward": reward + 0.02 * step if step else None,
        "full_valid_mean_reward": reward - 0.12 * (step == ITERATIONS),
        "full_valid_error": 0.03,
        "full_valid_half_width": 0.06,
        "valid_grader_pick": reward + 0.1,
        "stack_correlation": 0.5 + step / 40 if step else None,
        "completion_tokens_mean": 40.0 + step,
        "usage": {"base_tokens": 20_000 + 1000 * step, "graders": []},
        "errors": {"graders": [{"train_python_grader_runtime_error_count": step // 3}]},
        "timing": {"step": TIMES | {"training": 5.0 + step, "full_iteration": 95.0 + step}},
    }
    data |= {"best_of_n": 0.61} if step == 0 else {}
    id, message = f"ftevent-metrics-{step}", f"Step {step}/{ITERATIONS}"
    return Event(id=id, job_id=job_id, type="metrics", level="info", message=message, data=data)
