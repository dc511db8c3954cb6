"""`iro run bilevel.quadratic`: SPARKLE and compressed SOBA on quadratics whose solution is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from pydantic import Field, field_validator

from training.bilevel import quadratic, topology
from training.bilevel.quadratic_figures import draw
from training.bilevel.quadratic_studies import (
    COMPRESSED,
    D_SOBA,
    SIZE,
    compressed,
    decentralized,
    every_agent,
    mean_agent,
    topologies,
)
from training.bilevel.sparkle import STRATEGIES
from training.intervals import band
from training.run import Job, JobConfig, Run

PAIRS = [*("/".join(pair) for pair in product(STRATEGIES, STRATEGIES)), D_SOBA]
FEW = ["ED", "EXTRA", "ATC-GT", "ED/ATC-GT", "EXTRA/ATC-GT", D_SOBA]
EXACT = {"alpha": 0.1, "beta": 0.2, "gamma": 0.2, "theta": 0.5}
COMPRESSED_STEPS = {"alpha": 0.02, "beta": 0.05, "gamma": 0.05}
LEVELS = {"mild": 0.3, "severe": 2.0}  # heterogeneity
GOLDEN_STALL = 2.2577983102  # Σ‖x_i - x*‖² of D-SOBA's fixed point on the problem of seed 0, by a linear solve


class Config(JobConfig):
    """``repeats``: random problems of each study (seeds ``seed``, + 1, ...). ``agents``: of the topologies; a square.

    ``sizes``: n of the speed-up, with ``noise`` in its gradients and steps ``alpha``, 2 ``alpha``, 2 ``alpha`` of x, y,
    z. ``compressed_noises``: the noise in gradients of the compressed study, whose first is none.
    """

    repeats: int = Field(5, ge=1)
    pair_steps: int = Field(800, ge=10)
    agents: int = 16
    topology_steps: int = Field(1000, ge=10)
    topology_noise: float = 0.1
    sizes: tuple[int, ...] = (4, 8, 16, 32)
    speedup_repeats: int = Field(10, ge=1)
    speedup_steps: int = Field(2000, ge=10)
    noise: float = 1.0
    alpha: float = Field(0.02, gt=0)
    compressors: tuple[str, ...] = tuple(COMPRESSED)
    compressed_steps: int = Field(2400, ge=100)
    compressed_noises: tuple[float, ...] = (0.0, 0.3)

    @field_validator("agents")
    @classmethod
    def _square(cls, value: int) -> int:
        if value < 4 or round(value**0.5) ** 2 != value:
            raise ValueError(f"a torus of as many rows as columns needs 4, 9, 16, ... agents, not {value}")
        return value

    @field_validator("compressed_noises")
    @classmethod
    def _none_first(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] or min(value) < 0:
            raise ValueError(f"must begin with 0, and have none below, not {list(value)}")
        return value

    @field_validator("compressors")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [each for each in value if each not in COMPRESSED]
        if unknown:
            raise ValueError(f"no {', '.join(unknown)}; there are {', '.join(COMPRESSED)}")
        return value


def run(config: Config, run: Run) -> dict[str, Any]:
    run.planned_steps = _planned(config)
    run.emit("message", f"about {_minutes(config):.1f} minutes on a quiet core")
    studies = {
        "pairs": _pairs(config, run),
        "topologies": _topologies(config, run),
        "speedup": _speedup(config, run),
        "compressed": _compressed(config, run),
    }
    _check(config, studies, run)
    return studies


def _pairs(config: Config, run: Run) -> dict[str, Any]:
    """Exact gradients, a ring of 8: every pair of strategies, and D-SOBA."""

    def one(seed: int) -> list[list[float]]:
        problems = [quadratic.draw(8, x_size=3, y_size=4, heterogeneity=1.0, seed=seed)]
        steps = {"steps": config.pair_steps, "every": 10}
        ring = topology.ring(8, 0.5)
        found = decentralized(
            PAIRS, ring, problems, settings=EXACT, noise=0.0, measure=every_agent, seed=seed, **steps
        )[:, :, 0]
        ends = dict(zip(PAIRS, found[-1].tolist(), strict=True))
        run.metrics({"study": "pairs", "seed": seed, "error": ends}, f"pairs, seed {seed}: {_worst(ends)}")
        return found.tolist()

    seeds = range(config.seed, config.seed + config.repeats)
    return {"names": PAIRS, "every": 10, "errors": [run.step(f"pairs-{seed}", partial(one, seed)) for seed in seeds]}


def _topologies(config: Config, run: Run) -> dict[str, Any]:
    """Noisy gradients: the paper's three topologies, agents that differ a little and much. errors [time, pair]."""

    def one(level: str, name: str) -> list[list[list[float]]]:
        W = topologies(config.agents)[name]
        problems = [
            quadratic.draw(config.agents, x_size=3, y_size=4, heterogeneity=LEVELS[level], seed=config.seed + repeat)
            for repeat in range(config.repeats)
        ]
        found = decentralized(
            FEW,
            W,
            problems,
            settings=EXACT | {"theta": 0.2},
            noise=config.topology_noise,
            steps=config.topology_steps,
            every=10,
            measure=every_agent,
            seed=run.derive_seed(1),
        )
        tail = found[len(found) // 2 :].mean((0, 2)).tolist()
        row = dict(zip(FEW, tail, strict=True))
        run.metrics(
            {"study": "topologies", "topology": name, "level": level, "error": row}, f"{name}, {level}: {_listed(row)}"
        )
        return found.tolist()

    names = list(topologies(config.agents))
    return {
        "names": FEW,
        "every": 10,
        "gaps": {name: topology.spectral_gap(W) for name, W in topologies(config.agents).items()},
        "errors": {
            level: {name: run.step(f"topology-{level}-{name}", partial(one, level, name)) for name in names}
            for level in LEVELS
        },
    }


def _speedup(config: Config, run: Run) -> dict[str, Any]:
    """n · mean squared error of the agents' mean, over the second half of the steps, on a ring."""
    names = ["ED", "EXTRA", "ATC-GT", "ED/ATC-GT"]

    def one(n: int) -> list[list[float]]:
        problems = [
            quadratic.draw(n, x_size=3, y_size=4, heterogeneity=1.0, seed=config.seed + repeat)
            for repeat in range(config.speedup_repeats)
        ]
        a = config.alpha
        found = decentralized(
            names,
            topology.ring(n, 0.5),
            problems,
            settings={"alpha": a, "beta": 2 * a, "gamma": 2 * a, "theta": 0.2},
            noise=config.noise,
            steps=config.speedup_steps,
            every=5,
            measure=mean_agent,
            seed=run.derive_seed(2, n),
        )
        scaled = n * found[len(found) // 2 :].mean(0)
        means = dict(zip(names, scaled.mean(1).tolist(), strict=True))
        run.metrics({"study": "speedup", "agents": n, "scaled_error": means}, f"n = {n}: n · MSE {_listed(means)}")
        return scaled.tolist()

    found = {n: run.step(f"speedup-{n}", partial(one, n)) for n in config.sizes}
    return {
        "names": names,
        "sizes": list(config.sizes),
        "scaled": {name: band([found[n][at] for n in config.sizes], axis=-1) for at, name in enumerate(names)},
    }


def _compressed(config: Config, run: Run) -> dict[str, Any]:
    """8 workers: ‖∇Φ‖² against what a worker has sent, with exact and with noisy gradients."""

    def one(name: str, noise: float, seed: int) -> dict[str, Any]:
        problem = quadratic.draw(8, x_size=SIZE, y_size=SIZE, heterogeneity=1.0, seed=seed)
        found = compressed(
            name,
            problem,
            settings=COMPRESSED_STEPS,
            noise=noise,
            steps=config.compressed_steps,
            every=20,
            seed=run.derive_seed(3, seed),
        )
        floor = _floor(found["squares"])
        row = {"study": "compressed", "algorithm": name, "noise": noise, "seed": seed, "floor": floor}
        run.metrics(row, f"{name}, noise {noise:g}, seed {seed}: ‖∇Φ‖² {floor:.2g}")
        return found

    seeds = range(config.seed, config.seed + config.repeats)
    runs = {
        str(noise): {
            name: [run.step(f"compressed-{noise:g}-{at}-{seed}", partial(one, name, noise, seed)) for seed in seeds]
            for at, name in enumerate(config.compressors)
        }
        for noise in config.compressed_noises
    }
    floors = {
        noise: {name: band([_floor(each["squares"]) for each in found], axis=-1) for name, found in by_name.items()}
        for noise, by_name in runs.items()
    }
    return {"every": 20, "runs": runs, "floors": floors}


def _check(config: Config, studies: Mapping[str, Any], run: Run) -> None:
    ends = np.array([one[-1] for one in studies["pairs"]["errors"]])  # [repeats, pairs]
    worst = float(ends[:, :-1].max())
    run.check(
        "every SPARKLE pair solves heterogeneous quadratics", expected="<= 1e-18", got=worst, holds=worst <= 1e-18
    )
    stalled = float(ends[:, -1].min())
    run.check("D-SOBA does not", expected="> 0.1", got=stalled, holds=stalled > 0.1)
    if config.seed == 0:
        got = float(ends[0, -1])
        holds = abs(got - GOLDEN_STALL) < 1e-8
        run.check("where D-SOBA comes to rest, seed 0", expected=GOLDEN_STALL, got=got, holds=holds)
    for name, scaled in studies["speedup"]["scaled"].items():
        ratio = max(scaled["mean"]) / min(scaled["mean"])
        run.check(f"n · MSE is flat: {name}", expected="largest <= 2 x smallest", got=ratio, holds=ratio <= 2)
    exact = {
        name: [each["squares"][-1] for each in found] for name, found in studies["compressed"]["runs"]["0.0"].items()
    }
    if "EF" in exact:
        run.check("EF-SOBA has no floor", expected="<= 1e-24", got=max(exact["EF"]), holds=max(exact["EF"]) <= 1e-24)
    for name in {"C", "CM"} & set(exact):
        floor = min(_floor(each["squares"]) for each in studies["compressed"]["runs"]["0.0"][name])
        run.check(f"{name}-SOBA has one", expected="> 1e-3", got=floor, holds=floor > 1e-3)


def _floor(squares: Sequence[float]) -> float:
    """The mean over the last quarter."""
    return float(np.mean(squares[-(len(squares) // 4) :]))


def _listed(row: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in row.items())


def _worst(ends: Mapping[str, float]) -> str:
    sparkle = max(error for name, error in ends.items() if name != D_SOBA)
    return f"worst pair {sparkle:.1e}, D-SOBA {ends[D_SOBA]:.2f}"


def _planned(config: Config) -> int:
    return config.repeats * (1 + len(config.compressed_noises) * len(config.compressors)) + 2 * 3 + len(config.sizes)


def _minutes(config: Config) -> float:
    """Milliseconds a step as measured on one core of this project's two-core machine."""
    compressed_steps = (
        len(config.compressed_noises) * config.repeats * len(config.compressors) * config.compressed_steps
    )
    speedup_steps = config.speedup_steps * len(config.sizes)
    steps = 4 * config.pair_steps * config.repeats + 6 * 6 * config.topology_steps
    return (steps + 6 * speedup_steps + 2 * compressed_steps) / 60_000


JOB = Job(
    name="bilevel.quadratic",
    summary="Decentralized and compressed bilevel optimization where the solution is known: SPARKLE, C-/CM-/EF-SOBA",
    Config=Config,
    run=run,
    presets={
        "smoke": {
            "repeats": 1,
            "topology_steps": 100,
            "sizes": (4, 16),
            "speedup_repeats": 10,
            "speedup_steps": 800,
            "compressors": ("C", "CM", "EF"),
            "compressed_steps": 1600,
            "compressed_noises": (0.0,),
        },
        "two-cores": {
            "repeats": 2,
            "topology_steps": 400,
            "speedup_steps": 1000,
            "compressors": ("uncompressed", "C", "CM", "EF", "EF, MSC 3"),
            "compressed_steps": 1600,
        },
        "paper": {},
    },
    draw=draw,
)
