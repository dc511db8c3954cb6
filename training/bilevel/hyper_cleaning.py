"""Hyper-cleaning of Fashion-MNIST: decentralized (arXiv:2411.14166) and compressed algorithms (arXiv:2405.18858)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from torch.func import vmap
from torch.utils._pytree import tree_map

from training.bilevel import topology
from training.bilevel.hyper_cleaning_figure import draw
from training.bilevel.methods import METHODS, Compressed, Setting, bytes_ratio, follow
from training.bilevel.problems import fashion_mnist
from training.bilevel.problems.fashion_mnist import Images
from training.bilevel.problems.hyper_cleaning import PROBLEM, Agents, Batch, accuracy, found_wrong, share_out, start
from training.fashion_mnist import FOLDER, SIDE
from training.intervals import band
from training.run import Job, JobConfig, Run


class Config(JobConfig):
    """``corruptions``: shares of wrong labels. ``repeats``: draws of data and batches, the same for every method.

    ``images``: training and clean images of each agent. ``concentration``: of the Dirichlet shares of classes.
    ``pool``: squares of so many pixels become one. ``evaluations``: gradients, of f or g, and second-order products of
    a batch, for each agent. ``points`` of a curve. ``alpha`` and ``beta``: steps of x, and of y and z. ``theta``:
    weight of the newest u. ``kept``: share of coordinates that rand-k and top-k send. ``data``: a folder.
    """

    corruptions: tuple[float, ...] = Field((0.1, 0.2, 0.3), min_length=1)
    repeats: int = Field(5, ge=1)
    agents: int = Field(10, ge=3)
    self_weight: float = Field(0.5, gt=0, lt=1)
    images: int = Field(500, ge=1)
    concentration: float = Field(0.1, gt=0)
    pool: int = Field(1, ge=1)
    batch: int = Field(50, ge=1)
    evaluations: int = Field(3000, ge=60)
    points: int = Field(10, ge=2)
    methods: tuple[str, ...] = tuple(METHODS)
    alpha: float = 300.0
    beta: float = 0.25
    theta: float = 0.2
    kept: float = Field(0.05, gt=0, le=1)
    data: Path = FOLDER

    @field_validator("methods")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [each for each in value if each not in METHODS]
        if unknown or not value:
            raise ValueError(f"no method {', '.join(unknown)}; there are {', '.join(METHODS)}")
        return value


class Data(NamedTuple):
    """The agents of every corruption and repeat, stacked on a leading axis of runs, and the images to test on."""

    agents: Agents
    test: Images


def run(config: Config, run: Run) -> dict[str, Any]:
    run.planned_steps = len(config.methods)
    run.emit("message", f"about {expected_minutes(config):.0f} minutes of one quiet core")
    images, test = (
        fashion_mnist.shrunk(fashion_mnist.load(config.data, train=train), config.pool) for train in (True, False)
    )
    data = Data(prepare(config, images, run.rng), test)
    curves: dict[str, dict[str, Any]] = {f"{corruption:g}": {} for corruption in config.corruptions}
    for name in config.methods:
        found = run.step(name.replace("/", "-"), partial(_measured, config, run, name, data))
        for label, curve in zip(curves, found, strict=True):
            curves[label][name] = curve
    result = {"curves": curves, "summary": summary(curves)}
    _check(result["summary"], run)
    return result


def expected_minutes(config: Config) -> float:
    """From seconds of a core that a step and a test of one repeat took."""
    runs = len(config.corruptions) * config.repeats * len(config.methods)
    pixels = (SIDE // config.pool) ** 2
    steps = config.evaluations / 3 * (1.1e-3 + 1.75e-7 * config.batch * pixels)
    return runs * (steps + config.points * 1e-4 * pixels) / 60


def prepare(config: Config, images: Images, rng: Callable[[int, int], np.random.Generator]) -> Agents:
    """All runs' agents, leaves [corruptions · repeats, n, m, ...]; ``rng`` of a corruption and a repeat by number."""
    drawn = [
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
    return tree_map(lambda *leaves: torch.stack(leaves), *drawn)


def _measured(config: Config, run: Run, name: str, data: Data) -> list[dict[str, Any]]:
    """A curve for each corruption."""
    generators = [
        torch.Generator().manual_seed(run.derive_seed(level, repeat, 1))
        for level in range(len(config.corruptions))
        for repeat in range(config.repeats)
    ]
    noise = torch.Generator().manual_seed(run.derive_seed(2))
    curves = learn(config, name, data, generators, noise, run.stop_if_asked)
    for corruption, curve in zip(config.corruptions, curves, strict=True):
        last = float(np.mean(curve["accuracy"][-1]))
        row = {"method": name, "corruption": corruption, "accuracy": last, "found": float(np.mean(curve["found"]))}
        run.metrics(row, f"{name}, {corruption:.0%} wrong labels: accuracy {last:.3f}")
    return curves


def learn(
    config: Config,
    name: str,
    data: Data,
    generators: list[torch.Generator],
    noise: torch.Generator,
    pause: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """For each corruption, test accuracy [points][repeats] after so many gradients and bytes, each of one agent.

    All runs move at once, each on batches of its own of ``generators``; ``noise`` is the compressors'.
    """
    agents, method, runs = data.agents, METHODS[name], len(generators)
    one = tree_map(lambda leaf: leaf[0], agents)
    W = topology.ring(config.agents, config.self_weight)
    setting = Setting(PROBLEM, W, *start(one), config.alpha, config.beta, config.theta, config.kept)
    steps = max(config.points, config.evaluations // max(method.evaluations, 3))
    tested = [steps * (point + 1) // config.points for point in range(config.points)]
    scores: list[torch.Tensor] = []

    def batch() -> Batch:
        drawn = torch.stack([one.draw(config.batch, generator) for generator in generators])
        return vmap(Agents.take)(agents, drawn)

    def look(state: Any) -> None:
        pause()
        scores.append(accuracy(method.lower(state), data.test))

    state = follow(method, [setting] * runs, one.everything(), batch, noise, tested, look)
    by_level = torch.stack(scores).view(config.points, -1, config.repeats)
    weights = method.upper(state).mean(1)
    found = [found_wrong(weights[i], tree_map(lambda leaf, i=i: leaf[i], agents)) for i in range(runs)]
    return [
        {
            "evaluations": [k * method.evaluations for k in tested],
            "bytes": [k * method.sent(setting) for k in tested],
            "accuracy": by_level[:, level].tolist(),
            "found": found[level * config.repeats : (level + 1) * config.repeats],
        }
        for level in range(len(config.corruptions))
    ]


def summary(curves: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By corruption and method: accuracy at the end, how far above D-SOBA's, bytes against uncompressed SOBA's."""
    found: dict[str, Any] = {}
    for corruption, methods in curves.items():
        found[corruption] = rows = {}
        for name, curve in methods.items():
            end = np.array(curve["accuracy"][-1])
            rows[name] = {"accuracy": band(end), "found": band(curve["found"])}
            if "D-SOBA" in methods and not isinstance(METHODS[name], Compressed):
                gains = end - methods["D-SOBA"]["accuracy"][-1]
                rows[name]["over D-SOBA"] = band(gains) | {"least": float(gains.min())}
            if "SOBA" in methods and isinstance(METHODS[name], Compressed):
                rows[name]["bytes over SOBA"] = bytes_ratio(curve, methods["SOBA"])
    return found


def _check(summary: dict[str, Any], run: Run) -> None:
    for corruption, rows in summary.items():
        label = f"{float(corruption):.0%} wrong labels"
        for name, row in rows.items():
            if "over D-SOBA" in row and METHODS[name].corrects:
                least = row["over D-SOBA"]["least"]
                run.check(f"{label}: {name} over D-SOBA, in each repeat", expected="> 0", got=least, holds=least > 0)
            if name != "SOBA" and "bytes over SOBA" in row:
                ratio = row["bytes over SOBA"]["ratio"]
                run.check(
                    f"{label}: {name}'s bytes over SOBA's for accuracy {row['bytes over SOBA']['accuracy']:.3f}",
                    expected="<= 0.1",
                    got=ratio,
                    holds=ratio <= 0.1,
                )


SMOKE: dict[str, Any] = {
    "corruptions": (0.3,),
    "repeats": 2,
    "images": 100,
    "pool": 4,
    "batch": 25,
    "evaluations": 450,
    "points": 5,
    "beta": 1.0,
    "kept": 0.05,
    "methods": ("D-SOBA", "ED", "ED/ATC-GT", "SOBA", "EF-SOBA, rand-k"),
}
TWO_CORES: dict[str, Any] = {"pool": 2, "batch": 25, "evaluations": 600, "points": 5, "beta": 1.0}

JOB = Job(
    name="bilevel.hyper_cleaning",
    summary="Hyper-cleaning of Fashion-MNIST: SPARKLE and its baselines by gradients, compressed SOBA by bytes",
    Config=Config,
    run=run,
    presets={"smoke": SMOKE, "two-cores": TWO_CORES, "paper": {}},
    draw=draw,
)
