"""`iro run bilevel.hyper_cleaning`: Fashion-MNIST by decentralized (arXiv:2411.14166) and compressed (arXiv:2405.18858)
algorithms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator
from torch.func import vmap
from torch.utils._pytree import tree_leaves, tree_map

from training.bilevel import topology
from training.bilevel.algorithms.method import ProblemSetup
from training.bilevel.algorithms.registry import METHODS
from training.bilevel.problem import Tree
from training.bilevel.problems import fashion_mnist
from training.bilevel.problems.fashion_mnist import Images
from training.bilevel.problems.hyper_cleaning import PROBLEM, Agents, Batch, accuracy, share_out, start, wrong_label_auc
from training.bilevel.studies.comparison import ByteCurve, bytes_ratio, check_points, run_method, steps_within
from training.bilevel.studies.hyper_cleaning_figure import draw
from training.fashion_mnist import CLASSES, FOLDER, SIDE, DataFolder
from training.intervals import band
from training.json_values import JsonObject
from training.run import Job, JobConfig, Run, check_names

COMPARED = (
    "D-SOBA",
    "ED",
    "ED/ATC-GT",
    "SOBA",
    "EF-SOBA, top-k",
    "C-SOBA, rand-k",
    "ATC-GT",
    "EF-SOBA, rand-k",
    "CM-SOBA, rand-k",
    "EXTRA",
    "single-level ED",
    "SLDBO",
    "MDBO",
    "MA-DSBO-GT",
)
TUNING_DRAW = 10**6  # the draw on which the scales of step sizes are chosen


class HyperCleaningConfig(JobConfig):
    """The draws of data, the methods, and how long each runs."""

    corruptions: tuple[float, ...] = Field((0.1, 0.2, 0.3), min_length=1, description="Shares of wrong labels.")
    repeats: int = Field(5, ge=1, description="Draws of data and batches, the same for every method.")
    agents: int = Field(10, ge=3, description="Agents on a ring.")
    self_weight: float = Field(
        0.5, gt=0, lt=1, description="Weight of an agent's own vector when it averages with its two neighbours."
    )
    images: int = Field(500, ge=1, description="Training images, and as many clean images, of each agent.")
    concentration: float = Field(
        0.1, gt=0, description="Of the Dirichlet shares of classes: smaller makes agents' data differ more."
    )
    pool: int = Field(1, ge=1, description="Side of the squares of pixels that are averaged.")
    batch: int = Field(50, ge=1, description="Images of a batch.")
    evaluations: int = Field(
        3000, ge=60, description="Gradients of f or g, and second-order products, of a batch, per agent."
    )
    points: int = Field(10, ge=2, description="Points of a curve.")
    methods: tuple[str, ...] = Field(COMPARED, min_length=1, description="The methods to compare.")
    alpha: float = Field(300.0, description="Step size of x.")
    beta: float = Field(0.25, description="Step size of y and z.")
    theta: float = Field(0.2, description="Weight of the newest u.")
    kept: float = Field(0.05, gt=0, le=1, description="Share of the coordinates that rand-k and top-k send.")
    scales: tuple[float, ...] = Field(
        (3.0, 1.0, 0.3, 0.1),
        min_length=1,
        description="Each method runs once with alpha and beta times each of these, on a separate draw at the middle "
        "corruption, and uses the scale with the best accuracy on training images that no agent of that draw has.",
    )
    data: DataFolder = Field(FOLDER, description="A folder with Fashion-MNIST.")

    @field_validator("corruptions")
    @classmethod
    def _distinct_shares(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= share <= 1 for share in value) or len({f"{share:g}" for share in value}) < len(value):
            raise ValueError(f"distinct shares from 0 to 1, not {list(value)}")
        return value

    @field_validator("methods")
    @classmethod
    def _available(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value, METHODS, "method")
        return value

    @model_validator(mode="after")
    def _enough_steps(self) -> HyperCleaningConfig:
        check_points(self.points, self.evaluations, {name: METHODS[name] for name in self.methods})
        return self


class CleaningCurve(ByteCurve):
    """Of one method and corruption. evaluations [points]; auc [runs]: of x as a detector of wrong labels; finite
    [runs]: whether all variables are at the end; ``scale`` of the step sizes."""

    evaluations: list[int]
    auc: list[float]
    finite: list[bool]
    scale: float


Curves = dict[str, dict[str, CleaningCurve]]  # by corruption and method
Summary = dict[str, dict[str, dict[str, JsonObject]]]  # by corruption, method and quantity


class CleaningData(NamedTuple):
    """The agents of all corruptions and repeats, stacked on a leading axis of runs, and the test images."""

    agents: Agents
    test: Images


class Tuning(NamedTuple):
    """A single draw on which a method's scale is chosen; the test images are training images of no agent."""

    config: HyperCleaningConfig
    data: CleaningData


def run(config: HyperCleaningConfig, run: Run) -> dict[str, object]:
    run.planned_steps = len(config.methods)
    run.emit("message", f"about {expected_minutes(config):.0f} minutes on one quiet core")
    images, test = (
        fashion_mnist.shrunk(fashion_mnist.load(config.data, train=train), config.pool) for train in (True, False)
    )
    data = CleaningData(prepare(config, images, run.rng), test)
    tuning = tuning_draw(config, images, run)
    curves: Curves = {f"{corruption:g}": {} for corruption in config.corruptions}
    for name in config.methods:
        measured = run.step(name.replace("/", "-"), partial(_measured, config, run, name, data, tuning))
        for label, curve in zip(curves, measured, strict=True):
            curves[label][name] = curve
    summary = summarise(curves)
    _check(summary, run)
    return {"curves": curves, "summary": summary}


def expected_minutes(config: HyperCleaningConfig) -> float:
    """From the measured core seconds of a step and of a test of one repeat."""
    tuned = len(config.scales) if len(config.scales) > 1 else 0
    runs = (len(config.corruptions) * config.repeats + tuned) * len(config.methods)
    pixels = (SIDE // config.pool) ** 2
    steps = config.evaluations / 3 * (1.1e-3 + 1.75e-7 * config.batch * pixels)
    return runs * (steps + config.points * 1e-4 * pixels) / 60


def prepare(config: HyperCleaningConfig, images: Images, rng: Callable[[int, int], np.random.Generator]) -> Agents:
    """The agents of all runs, leaves [corruptions · repeats, n, m, ...]; ``rng`` takes a corruption and a repeat."""
    agents = [
        share_out(
            images,
            config.agents,
            config.images,
            corruption=corruption,
            concentration=config.concentration,
            rng=rng(level, repeat),
        )
        for level, corruption in enumerate(config.corruptions)
        for repeat in range(config.repeats)
    ]
    return tree_map(lambda *leaves: torch.stack(leaves), *agents)


def tuning_draw(config: HyperCleaningConfig, images: Images, run: Run) -> Tuning:
    """A draw at the middle corruption from the first five sixths of the training images; tested on the others."""
    middle = config.corruptions[len(config.corruptions) // 2]
    tuning_config = config.model_copy(update={"corruptions": (middle,), "repeats": 1})
    first, last = fashion_mnist.split_for_tuning(images)
    agents = prepare(tuning_config, first, lambda level, repeat: run.rng(level, TUNING_DRAW))
    return Tuning(tuning_config, CleaningData(agents, last))


def best_scale(tuning: Tuning, run: Run, name: str) -> float:
    """The scale of the step sizes with the highest final accuracy on the tuning draw."""
    scales = tuning.config.scales
    if len(scales) == 1:
        return scales[0]
    accuracies = []
    for scale in scales:
        generators = [torch.Generator().manual_seed(run.derive_seed(TUNING_DRAW))]
        noise = torch.Generator().manual_seed(run.derive_seed(TUNING_DRAW, 1))
        (curve,) = learn(tuning.config, name, tuning.data, scale, generators, noise, run.stop_if_asked)
        accuracies.append(curve["accuracy"][-1][0] if all(curve["finite"]) else -np.inf)
    return scales[int(np.argmax(accuracies))]


def _measured(
    config: HyperCleaningConfig, run: Run, name: str, data: CleaningData, tuning: Tuning
) -> list[CleaningCurve]:
    """One curve per corruption, at the method's best scale of step sizes."""
    scale = best_scale(tuning, run, name)
    generators = [
        torch.Generator().manual_seed(run.derive_seed(level, repeat, 1))
        for level in range(len(config.corruptions))
        for repeat in range(config.repeats)
    ]
    noise = torch.Generator().manual_seed(run.derive_seed(2))
    curves = learn(config, name, data, scale, generators, noise, run.stop_if_asked)
    for corruption, curve in zip(config.corruptions, curves, strict=True):
        last = float(np.mean(curve["accuracy"][-1]))
        row = {"method": name, "corruption": corruption, "accuracy": last, "auc": float(np.mean(curve["auc"]))}
        text = f"{name}, {corruption:.0%} wrong labels: accuracy {last:.3f} at {scale:g} times the step sizes"
        run.metrics(row | {"scale": scale}, text)
    return curves


def learn(
    config: HyperCleaningConfig,
    name: str,
    data: CleaningData,
    scale: float,
    generators: list[torch.Generator],
    noise: torch.Generator,
    pause: Callable[[], None],
) -> list[CleaningCurve]:
    """One curve per corruption: test accuracy [points][repeats] by gradients and by bytes, per agent.

    All runs advance together, each on batches of its entry of ``generators``; ``noise`` is the compressors'.
    """
    agents, method, runs = data.agents, METHODS[name], len(generators)
    first_run = tree_map(lambda leaf: leaf[0], agents)
    W = topology.ring(config.agents, config.self_weight)
    alpha, beta = config.alpha * scale, config.beta * scale
    setup = ProblemSetup(PROBLEM, W, *start(first_run, CLASSES), alpha, beta, config.theta, config.kept)
    steps = steps_within(method, config.evaluations)
    recorded_steps = [steps * (point + 1) // config.points for point in range(config.points)]
    scores: list[torch.Tensor] = []

    def draw_batch() -> Batch:
        indices = torch.stack([first_run.draw(config.batch, generator) for generator in generators])
        return vmap(Agents.take)(agents, indices)

    def record(state: Tree) -> None:
        pause()
        scores.append(accuracy(method.variables(state)[1], data.test))

    state = run_method(method, [setup] * runs, first_run.everything(), draw_batch, noise, recorded_steps, record)
    by_level = torch.stack(scores).view(config.points, -1, config.repeats)
    variables = method.variables(state)
    x = variables[0].mean(1)
    aucs = [wrong_label_auc(x[i], tree_map(lambda leaf, i=i: leaf[i], agents)) for i in range(runs)]
    finite = [all(bool(leaf[i].isfinite().all()) for leaf in tree_leaves(variables)) for i in range(runs)]
    of_level = [slice(level * config.repeats, (level + 1) * config.repeats) for level in range(len(config.corruptions))]
    return [
        {
            "evaluations": [k * method.evaluations for k in recorded_steps],
            "bytes": [k * method.bytes_sent(setup) for k in recorded_steps],
            "accuracy": by_level[:, level].tolist(),
            "auc": aucs[repeats],
            "finite": finite[repeats],
            "scale": scale,
        }
        for level, repeats in enumerate(of_level)
    ]


def summarise(curves: Curves) -> Summary:
    """By corruption and method: final accuracy, its gain over D-SOBA, and bytes over those of uncompressed SOBA."""
    summary: Summary = {}
    for corruption, methods in curves.items():
        summary[corruption] = rows = {}
        for name, curve in methods.items():
            end, compressed = np.array(curve["accuracy"][-1]), METHODS[name].compressed
            rows[name] = {"accuracy": band(end), "auc": band(curve["auc"]), "scale": curve["scale"]}
            if "D-SOBA" in methods and not compressed:
                gains = end - methods["D-SOBA"]["accuracy"][-1]
                rows[name]["gain_over_d_soba"] = band(gains) | {"smallest": float(gains.min())}
            if "SOBA" in methods and compressed:
                rows[name]["bytes_over_soba"] = bytes_ratio(curve, methods["SOBA"])
    return summary


def _check(summary: Summary, run: Run) -> None:
    for corruption, rows in summary.items():
        label = f"{float(corruption):.0%} wrong labels"
        for name, row in rows.items():
            if "gain_over_d_soba" in row and METHODS[name].corrects_heterogeneity:
                smallest = row["gain_over_d_soba"]["smallest"]
                run.check(
                    f"{label}: {name} over D-SOBA, in each repeat", expected="> 0", got=smallest, holds=smallest > 0
                )
            if name != "SOBA" and "bytes_over_soba" in row:
                ratio = row["bytes_over_soba"]["ratio"]
                run.check(
                    f"{label}: {name}'s bytes over SOBA's for accuracy {row['bytes_over_soba']['accuracy']:.3f}",
                    expected="<= 0.1",
                    got=ratio,
                    holds=ratio <= 0.1,
                )


SMOKE = {
    "corruptions": (0.3,),
    "repeats": 2,
    "images": 100,
    "pool": 4,
    "batch": 25,
    "evaluations": 450,
    "points": 5,
    "beta": 1.0,
    "scales": (1.0,),
    "methods": ("D-SOBA", "ED", "ED/ATC-GT", "SOBA", "EF-SOBA, rand-k"),
}
TWO_CORES = {"pool": 2, "batch": 25, "evaluations": 600, "points": 5, "beta": 1.0}

JOB = Job(
    name="bilevel.hyper_cleaning",
    summary="Hyper-cleaning of Fashion-MNIST: SPARKLE and its baselines by gradients, compressed SOBA by bytes",
    Config=HyperCleaningConfig,
    run=run,
    presets={"smoke": SMOKE, "two-cores": TWO_CORES, "paper": {}},
    draw=draw,
)
