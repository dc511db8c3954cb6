"""`iro run bilevel.problems`: the ready problems, each with the methods that its paper compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NotRequired, TypedDict

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch.utils._pytree import tree_map

from training.bilevel.algorithms.registry import METHODS
from training.bilevel.problem import Tree
from training.bilevel.studies.comparison import ByteCurve, bytes_ratio, check_points, run_method, steps_within
from training.bilevel.studies.problems_figure import draw
from training.bilevel.studies.ready_problems import STUDIES
from training.fashion_mnist import FOLDER, DataFolder
from training.intervals import band
from training.run import Job, JobConfig, Run, check_names

TUNING_DRAW = 10**6  # the draw on which the scales of step sizes are chosen


class ReadyProblemsConfig(JobConfig):
    """The draws of data, and how long each method runs."""

    studies: tuple[str, ...] = Field(
        tuple(STUDIES), min_length=1, description="Any of policy, meta, representation, ridges."
    )
    repeats: int = Field(5, ge=1, description="Draws of data, starts and batches, the same for every method.")
    agents: int = Field(10, ge=3, description="Agents on a ring, or workers of a server.")
    evaluations: int = Field(
        1500, ge=60, description="Gradients of f or g, and second-order products, of a batch, per agent."
    )
    points: int = Field(10, ge=2, description="Points of a curve.")
    scales: tuple[float, ...] = Field(
        (3.0, 1.0, 0.3, 0.1),
        min_length=1,
        description="Each method runs once with the step sizes of its study times each of these, on a separate draw, "
        "and uses the scale with the best final score; accuracies of that draw are on training images that none of its "
        "agents has.",
    )
    data: DataFolder = Field(FOLDER, description="A folder with Fashion-MNIST.")

    @field_validator("studies")
    @classmethod
    def _available(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value, STUDIES, "study")
        return value

    @model_validator(mode="after")
    def _enough_steps(self) -> ReadyProblemsConfig:
        for study in self.studies:
            check_points(self.points, self.evaluations, STUDIES[study].methods)
        return self


class ScoreCurve(TypedDict):
    """Scores [points + 1][repeats], by gradients and by bytes of one agent; ``scale`` of the step sizes."""

    evaluations: list[int]
    bytes: list[float]
    accuracy: NotRequired[list[list[float]]]
    error: NotRequired[list[list[float]]]
    scale: NotRequired[float]


Curves = dict[str, dict[str, ScoreCurve]]  # by study and method
Summary = dict[str, dict[str, dict[str, dict[str, float]]]]  # by study, method and quantity


def run(config: ReadyProblemsConfig, run: Run) -> dict[str, object]:
    pairs = [(study, method) for study in config.studies for method in STUDIES[study].methods]
    run.planned_steps = len(pairs)
    run.emit("message", f"about {_minutes(config):.1f} minutes on one core")
    curves: Curves = {study: {} for study in config.studies}
    for study, name in pairs:
        step = f"{study}-{name}".replace("/", "-")
        curves[study][name] = run.step(step, partial(_tuned_curve, config, run, study, name))
    summary = {study: _summarise(study, methods) for study, methods in curves.items()}
    _check(curves, summary, run)
    return {"curves": curves, "summary": summary}


def _tuned_curve(config: ReadyProblemsConfig, run: Run, name: str, method: str) -> ScoreCurve:
    """The curve at the scale with the best score on a separate draw."""
    study = STUDIES[name]
    candidates = [_curve(config, run, name, method, scale, [TUNING_DRAW]) for scale in config.scales]
    ends = [float(np.nan_to_num(curve[study.score][-1][0], nan=np.inf)) for curve in candidates]
    best = int(np.argmin(ends) if study.score == "error" else np.argmax(ends))
    scale = config.scales[best]
    curve = _curve(config, run, name, method, scale, range(config.repeats))
    mean = float(np.mean(curve[study.score][-1]))
    row = {"study": name, "method": method, "scale": scale, study.score: mean}
    run.metrics(row, f"{study.title}, {method}: {study.score} {mean:.4g} at {scale:g} times the step sizes")
    return {**curve, "scale": scale}


def _curve(
    config: ReadyProblemsConfig, run: Run, name: str, method_name: str, scale: float, repeats: Sequence[int]
) -> ScoreCurve:
    study, method, number = STUDIES[name], STUDIES[name].methods[method_name], list(STUDIES).index(name)
    seeds = [run.derive_seed(number, repeat) for repeat in repeats]
    tuning = TUNING_DRAW in repeats
    prepared = study.prepare(config.data, config.agents, seeds, study.steps.times(scale), tuning)
    steps = steps_within(method, config.evaluations)
    recorded_steps = [steps * point // config.points for point in range(config.points + 1)]
    scores: list[list[float]] = []

    def record(state: Tree) -> None:
        run.stop_if_asked()
        variables = method.variables(state)
        per_run = [tree_map(lambda leaf, i=i: leaf[i], variables) for i in range(len(repeats))]
        scores.append([score(x, y) for score, (x, y) in zip(prepared.scores, per_run, strict=True)])

    noise = torch.Generator().manual_seed(run.derive_seed(number, repeats[0], 1))
    like = tree_map(lambda leaf: leaf[0], prepared.draw_batch())
    run_method(method, prepared.setups, like, prepared.draw_batch, noise, recorded_steps, record)
    curve: ScoreCurve = {
        "evaluations": [k * method.evaluations for k in recorded_steps],
        "bytes": [k * method.bytes_sent(prepared.setups[0]) for k in recorded_steps],
    }
    curve[study.score] = scores
    return curve


def _summarise(study: str, curves: Mapping[str, ScoreCurve]) -> dict[str, dict[str, dict[str, float]]]:
    """By method: the final score, its difference from D-SOBA's, and bytes over SOBA's for the same accuracy."""
    score = STUDIES[study].score
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for name, curve in curves.items():
        end = np.array(curve[score][-1])
        rows[name] = {score: band(end)}
        if name != "D-SOBA" and "D-SOBA" in curves:
            rows[name]["difference_from_d_soba"] = band(end - curves["D-SOBA"][score][-1])
        if name != "SOBA" and "SOBA" in curves:
            rows[name]["bytes_over_soba"] = bytes_ratio(_after_start(curve), _after_start(curves["SOBA"]))
    return rows


def _after_start(curve: ScoreCurve) -> ByteCurve:
    """Without the first point, at which nothing has been sent."""
    return {"bytes": curve["bytes"][1:], "accuracy": curve["accuracy"][1:]}


def _check(curves: Curves, summary: Summary, run: Run) -> None:
    for study, rows in summary.items():
        for name, row in rows.items():
            if study == "policy" and METHODS[name].corrects_heterogeneity:
                gap = row["difference_from_d_soba"]["mean"]
                run.check(f"policy: {name}'s error less D-SOBA's", expected="< 0", got=gap, holds=gap < 0)
            if "bytes_over_soba" in row and name.startswith("EF"):
                ratio = row["bytes_over_soba"]["ratio"]
                run.check(f"{study}: {name}'s bytes over SOBA's", expected="<= 0.1", got=ratio, holds=ratio <= 0.1)
        if study == "meta":
            accuracies = [curve["accuracy"] for curve in curves["meta"].values()]
            gain = min(float(np.mean(accuracy[-1]) - np.mean(accuracy[0])) for accuracy in accuracies)
            run.check("meta: every method's features beat random ones", expected="> 0", got=gain, holds=gain > 0)


def _minutes(config: ReadyProblemsConfig) -> float:
    seconds = sum(CORE_SECONDS[study] * len(STUDIES[study].methods) for study in config.studies)
    return (config.repeats + len(config.scales)) * config.evaluations / 1000 * seconds / 60


CORE_SECONDS = {"policy": 0.8, "meta": 4.6, "representation": 2.2, "ridges": 1.8}  # per 1,000 evaluations of a run

JOB = Job(
    name="bilevel.problems",
    summary="Policy evaluation, few-shot learning, hyper-representation, ridges: decentralized and compressed methods",
    Config=ReadyProblemsConfig,
    run=run,
    presets={"smoke": {"repeats": 2, "evaluations": 300, "points": 3, "scales": (1.0,)}, "two-cores": {}},
    draw=draw,
)
