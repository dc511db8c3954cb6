"""A job that trains nothing: it sleeps, reports, and saves value functions that like the letter z.

The grader's name says how it goes: "quick", "slow" (half a second a step), "stubborn" (never asks whether to stop),
"raises", "dies" (kills its own process at step 2), "dies-once", "engine-away-once" and "graders-away-once" (at step 2),
"waits" (takes two steps, then waits to be stopped), "unproven" (its gain has an interval that includes 0),
"served-otherwise" (its model with two rows), "overdone" (its text leaves the frozen model's range).
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ConfigDict
from safetensors.numpy import save

from iro_server.alignment.definition import Alignment
from iro_server.engines.endpoints import EngineUnavailable
from iro_server.graders.remote import GraderServiceUnavailable

MEASURED = 20  # what it takes for max_tokens "auto"


class Config(Alignment):
    model_config = ConfigDict(extra="ignore")

    iterations: int = 2
    num_successors: int = 3
    max_tokens: int | Literal["auto"] = 64


class Cancelled(Exception):
    pass


class GraderFailed(ValueError):
    code, param = "grader_failed", "grader"


class JOB:
    Config = Config

    @staticmethod
    def validate(config: Config, model: Any, grader: Any) -> list[str]:
        return []

    @staticmethod
    def discard(folder: Path) -> None:
        (folder / "states").unlink(missing_ok=True)

    @staticmethod
    def execute(config: Config, out: Path, *, on_event, should_stop) -> dict[str, Any]:
        out.mkdir(parents=True, exist_ok=True)
        behaviour = config.grader["name"]
        assert config.training_file.read_text().strip()
        max_tokens = MEASURED if config.max_tokens == "auto" else config.max_tokens
        on_event({"type": "defaults", "data": {"max_tokens": max_tokens}})
        steps = [step for step in range(1, config.iterations + 1) if not (out / f"step-{step}").exists()]
        for number, step in enumerate(steps):
            bundle = out / f"step-{step}"
            while behaviour == "waits" and number == 2 and not should_stop():
                time.sleep(0.05)
            if should_stop() and behaviour != "stubborn":
                raise Cancelled
            misbehave(behaviour, step, out)
            if behaviour in ("slow", "stubborn"):
                time.sleep(0.5)
            save_values(bundle, step)
            metrics = {"step": step, "total_steps": config.iterations, "full_valid_mean_reward": 0.1 * step}
            on_event({"type": "metrics", "level": "info", "message": f"Step {step}", "data": metrics})
            on_event({"type": "checkpoint", "data": {"step": step, "path": str(bundle), "metrics": metrics}})
        outcome = {
            "best_iteration": config.iterations,
            "best_checkpoint": str(out / f"step-{config.iterations}"),
            "max_tokens": max_tokens,
        }
        served = {"search": {"num_successors": 2}} if behaviour == "served-otherwise" else {}
        overdone = {"measure": "length", "median": 64.0, "frozen_low": 3.0, "frozen_high": 20.0}
        outcome["over_optimization"] = [overdone] if behaviour == "overdone" else []
        return outcome | {"improved": behaviour != "unproven"} | served


def save_values(folder: Path, iterations: int) -> None:
    """A bundle of ``iterations`` value functions that like the letter z.

    As ``save_bundle`` writes it, but without torch, whose import would be most of what a worker of this job computes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i}.weight": np.array([1, 0], np.float32) for i in range(iterations)}
    tensors |= {f"{i}.bias": np.zeros(1) for i in range(iterations)}
    content = save(tensors)
    (folder / "value.safetensors").write_bytes(content)
    spec = {"summed": [0], "position": False}
    manifest = {
        "format_version": 7,
        "kind": "heads",
        "model_hash": "model-hash",
        "template_hash": "template-hash",
        "tensors_sha256": hashlib.sha256(content).hexdigest(),
        "metrics": {},
        "heads": [{"iteration": i + 1, "kind": "linear", "beta": 1.0, "spec": spec} for i in range(iterations)],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def misbehave(behaviour: str, step: int, out: Path) -> None:
    if behaviour == "raises":
        raise GraderFailed("the grader gave NaN for row 1")
    once = out / "died"
    if step == 2 and behaviour == "engine-away-once" and not once.exists():
        once.touch()
        raise EngineUnavailable("no engine answers: http://10.0.0.1 is away")
    if step == 2 and behaviour == "graders-away-once" and not once.exists():
        once.touch()
        raise GraderServiceUnavailable("http://10.0.0.1: ConnectError")
    if step == 2 and (behaviour == "dies" or (behaviour == "dies-once" and not once.exists())):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
