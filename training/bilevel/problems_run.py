"""`iro run bilevel.problems`: the ready problems at work, each as its paper uses it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch.utils._pytree import tree_map

from training.bilevel.methods import METHODS, bytes_ratio, follow
from training.bilevel.problem_studies import STUDIES
from training.bilevel.problems_figure import draw
from training.fashion_mnist import FOLDER
from training.intervals import band
from training.run import Job, JobConfig, Run


class Config(JobConfig):
    """``studies``: any of policy, meta, representation, ridges. ``repeats``: draws of data, starts and batches, those
    of every method. ``agents``: on a ring, or workers of a server. ``evaluations``: gradients, of f or g, and
    second-order products of a batch, for each agent. ``points`` of a curve. ``data``: a folder with Fashion-MNIST.

    ``scales``: each method tries its study's steps times each of these once, on a draw that is not used again, and
    keeps what ends best there.
    """

    studies: tuple[str, ...] = Field(tuple(STUDIES), min_length=1)
    repeats: int = Field(5, ge=1)
    agents: int = Field(10, ge=3)
    evaluations: int = Field(1500, ge=60)
    points: int = Field(10, ge=2)
    scales: tuple[float, ...] = Field((3.0, 1.0, 0.3, 0.1), min_length=1)
    data: Path = FOLDER

    @field_validator("studies")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [each for each in value if each not in STUDIES]
        if unknown:
            raise ValueError(f"no study {', '.join(unknown)}; there are {', '.join(STUDIES)}")
        return value


def run(config: Config, run: Run) -> dict[str, Any]:
    jobs = [(study, method) for study in config.studies for method in STUDIES[study].methods]
    run.planned_steps = len(jobs)
    run.emit("message", f"about {_minutes(config):.1f} minutes of a core")
    curves: dict[str, dict[str, Any]] = {study: {} for study in config.studies}
    for study, name in jobs:
        step = f"{study}-{name}".replace("/", "-")
        curves[study][name] = run.step(step, partial(_curve, config, run, study, name))
    result = {"curves": curves, "summary": {study: _summary(study, found) for study, found in curves.items()}}
    _check(result, run)
    return result


def _curve(config: Config, run: Run, study: str, name: str) -> dict[str, Any]:
    """At the scale that is best on a draw of its own."""
    at = STUDIES[study]
    tries = [(scale, _followed(config, run, study, name, scale, [_TUNING])) for scale in config.scales]
    ends = [float(np.nan_to_num(curve[at.score][-1][0], nan=np.inf)) for _, curve in tries]
    best = int(np.argmin(ends) if at.score == "error" else np.argmax(ends))
    scale = config.scales[best]
    curve = _followed(config, run, study, name, scale, range(config.repeats))
    mean = float(np.mean(curve[at.score][-1]))
    row = {"study": study, "method": name, "scale": scale, at.score: mean}
    run.metrics(row, f"{at.title}, {name}: {at.score} {mean:.4g} at {scale:g} times the steps")
    return curve | {"scale": scale}


_TUNING = 10**6  # the number of the draw that scales are chosen on


def _followed(config: Config, run: Run, study: str, name: str, scale: float, repeats: Sequence[int]) -> dict[str, Any]:
    """Scores [points + 1][repeats] after so many gradients, and bytes, of one agent."""
    at, method, number = STUDIES[study], STUDIES[study].methods[name], list(STUDIES).index(study)
    seeds = [run.derive_seed(number, repeat) for repeat in repeats]
    prepared = at.make(config.data, config.agents, seeds, at.steps.times(scale))
    steps = max(config.points, config.evaluations // max(method.evaluations, 3))
    tested = [steps * point // config.points for point in range(config.points + 1)]
    scores: list[list[float]] = []

    def look(state: Any) -> None:
        run.stop_if_asked()
        both = method.upper(state), method.lower(state)
        found = [tree_map(lambda leaf, i=i: leaf[i], both) for i in range(len(repeats))]
        scores.append([score(*each) for score, each in zip(prepared.scores, found, strict=True)])

    noise = torch.Generator().manual_seed(run.derive_seed(number, repeats[0], 1))
    like = tree_map(lambda leaf: leaf[0], prepared.draw())
    follow(method, prepared.settings, like, prepared.draw, noise, tested, look)
    return {
        "evaluations": [k * method.evaluations for k in tested],
        "bytes": [k * method.sent(prepared.settings[0]) for k in tested],
        at.score: scores,
    }


def _summary(study: str, curves: dict[str, Any]) -> dict[str, Any]:
    """By method: the score at the end, less D-SOBA's where that is, and bytes over SOBA's for the same accuracy."""
    score, found = STUDIES[study].score, {}
    for name, curve in curves.items():
        end = np.array(curve[score][-1])
        found[name] = {score: band(end)}
        if name != "D-SOBA" and "D-SOBA" in curves:
            found[name]["less D-SOBA"] = band(end - curves["D-SOBA"][score][-1])
        if name != "SOBA" and "SOBA" in curves:
            found[name]["bytes over SOBA"] = bytes_ratio(_later(curve), _later(curves["SOBA"]))
    return found


def _later(curve: dict[str, Any]) -> dict[str, Any]:
    """Without the start, where nothing has been sent."""
    return {key: curve[key][1:] for key in ("bytes", "accuracy")}


def _check(result: dict[str, Any], run: Run) -> None:
    for study, rows in result["summary"].items():
        for name, row in rows.items():
            if study == "policy" and METHODS[name].corrects:
                gap = row["less D-SOBA"]["mean"]
                run.check(f"policy: {name}'s error less D-SOBA's", expected="< 0", got=gap, holds=gap < 0)
            if "bytes over SOBA" in row and name.startswith("EF"):
                ratio = row["bytes over SOBA"]["ratio"]
                run.check(f"{study}: {name}'s bytes over SOBA's", expected="<= 0.1", got=ratio, holds=ratio <= 0.1)
        if study == "meta":
            curves = result["curves"]["meta"]
            gain = min(
                float(np.mean(curve["accuracy"][-1]) - np.mean(curve["accuracy"][0])) for curve in curves.values()
            )
            run.check("meta: every method's features beat random ones", expected="> 0", got=gain, holds=gain > 0)


def _minutes(config: Config) -> float:
    seconds = sum(SECONDS[study] * len(STUDIES[study].methods) for study in config.studies)
    return (config.repeats + len(config.scales)) * config.evaluations / 1000 * seconds / 60


SECONDS = {"policy": 0.8, "meta": 4.6, "representation": 2.2, "ridges": 1.8}  # of a core: 1,000 evaluations of a run

JOB = Job(
    name="bilevel.problems",
    summary="Policy evaluation, few-shot learning, hyper-representation, ridges: decentralized and compressed methods",
    Config=Config,
    run=run,
    presets={"smoke": {"repeats": 2, "evaluations": 300, "points": 3, "scales": (1.0,)}, "paper": {}},
    draw=draw,
)
