"""`iro run bilevel.quadratic`: SPARKLE and compressed SOBA on quadratics with a known solution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product

import numpy as np
from pydantic import Field, field_validator

from training.bilevel import topology
from training.bilevel.algorithms.sparkle import STRATEGIES
from training.bilevel.problems import quadratic
from training.bilevel.studies.quadratic_figures import draw
from training.bilevel.studies.quadratic_measurements import (
    COMPRESSED,
    D_SOBA,
    SIZE,
    CompressedRun,
    CompressedStudy,
    PairStudy,
    QuadraticStudies,
    SpeedupStudy,
    StepSizes,
    TopologyStudy,
    compressed,
    decentralized,
    every_agent,
    mean_agent,
    problem_seeds,
    topologies,
)
from training.intervals import band
from training.run import Job, JobConfig, Run, check_names

PAIRS = [*("/".join(pair) for pair in product(STRATEGIES, STRATEGIES)), D_SOBA]
TOPOLOGY_PAIRS = ["ED", "EXTRA", "ATC-GT", "ED/ATC-GT", "EXTRA/ATC-GT", D_SOBA]
EXACT_STEPS: StepSizes = {"alpha": 0.1, "beta": 0.2, "gamma": 0.2}
COMPRESSED_STEPS: StepSizes = {"alpha": 0.02, "beta": 0.05, "gamma": 0.05}
LEVELS = {"mild": 0.3, "severe": 2.0}  # heterogeneity
FIXED_POINT_ERROR = 2.2577983102  # Σ‖x_i - x*‖² of D-SOBA on the problem of seed 0, by a linear solve


class QuadraticConfig(JobConfig):
    """The studies of pairs, of topologies, of the speed-up, and of compressors."""

    repeats: int = Field(5, ge=1, description="Random problems of each study.")
    pair_steps: int = Field(800, ge=10, description="Steps of the study that compares pairs of strategies.")
    agents: int = Field(16, description="Agents of the topologies, a square number.")
    topology_steps: int = Field(1000, ge=10, description="Steps of the study of topologies.")
    topology_noise: float = Field(0.1, description="Noise in the gradients of the study of topologies.")
    sizes: tuple[int, ...] = Field((4, 8, 16, 32), description="Numbers of agents n of the speed-up study.")
    speedup_repeats: int = Field(10, ge=1, description="Random problems of the speed-up study.")
    speedup_steps: int = Field(2000, ge=10, description="Steps of the speed-up study.")
    noise: float = Field(1.0, description="Noise in the gradients of the speed-up study.")
    alpha: float = Field(
        0.02, gt=0, description="Step size of x in the speed-up study; those of y and z are twice that."
    )
    compressors: tuple[str, ...] = Field(tuple(COMPRESSED), description="Compressed methods to compare.")
    compressed_steps: int = Field(2400, ge=100, description="Steps of the study of compressors.")
    compressed_noises: tuple[float, ...] = Field(
        (0.0, 0.3), description="Noise in the gradients of the study of compressors, each tried; the first is 0."
    )

    @field_validator("agents")
    @classmethod
    def _square(cls, value: int) -> int:
        if value < 4 or round(value**0.5) ** 2 != value:
            raise ValueError(f"a square torus needs 4, 9, 16, ... agents, not {value}")
        return value

    @field_validator("sizes")
    @classmethod
    def _positive(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 1:
            raise ValueError(f"one or more numbers of agents, each 1 or more, not {list(value)}")
        return value

    @field_validator("compressed_noises")
    @classmethod
    def _zero_first(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or value[0] or min(value) < 0:
            raise ValueError(f"must begin with 0 and have no negative value, not {list(value)}")
        return value

    @field_validator("compressors")
    @classmethod
    def _available(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value, COMPRESSED, "compressor")
        return value


def run(config: QuadraticConfig, run: Run) -> dict[str, object]:
    run.planned_steps = _planned(config)
    run.emit("message", f"about {_minutes(config):.1f} minutes on one quiet core")
    studies: QuadraticStudies = {
        "pairs": _pairs(config, run),
        "topologies": _topologies(config, run),
        "speedup": _speedup(config, run),
        "compressed": _compressed(config, run),
    }
    _check(config, studies, run)
    return {**studies}


def _pairs(config: QuadraticConfig, run: Run) -> PairStudy:
    """Exact gradients on a ring of 8: every pair of strategies, and D-SOBA."""

    def errors_of(seed: int) -> list[list[float]]:
        problems = [quadratic.draw(8, x_size=3, y_size=4, heterogeneity=1.0, seed=seed)]
        errors = decentralized(
            PAIRS,
            topology.ring(8, 0.5),
            problems,
            step_sizes=EXACT_STEPS,
            theta=0.5,
            noise=0.0,
            steps=config.pair_steps,
            every=10,
            measure=every_agent,
            seed=seed,
        )[:, :, 0]
        ends = dict(zip(PAIRS, errors[-1].tolist(), strict=True))
        run.metrics({"study": "pairs", "seed": seed, "error": ends}, f"pairs, seed {seed}: {_worst(ends)}")
        return errors.tolist()

    seeds = problem_seeds(config.seed, config.repeats)
    errors = [run.step(f"pairs-{seed}", partial(errors_of, seed)) for seed in seeds]
    return {"names": PAIRS, "every": 10, "errors": errors}


def _topologies(config: QuadraticConfig, run: Run) -> TopologyStudy:
    """Noisy gradients: the paper's three topologies, mild and severe heterogeneity."""

    def errors_of(level: str, name: str) -> list[list[list[float]]]:
        W = topologies(config.agents)[name]
        problems = [
            quadratic.draw(config.agents, x_size=3, y_size=4, heterogeneity=LEVELS[level], seed=seed)
            for seed in problem_seeds(config.seed, config.repeats)
        ]
        errors = decentralized(
            TOPOLOGY_PAIRS,
            W,
            problems,
            step_sizes=EXACT_STEPS,
            theta=0.2,
            noise=config.topology_noise,
            steps=config.topology_steps,
            every=10,
            measure=every_agent,
            seed=run.derive_seed(1),
        )
        tail = errors[len(errors) // 2 :].mean((0, 2)).tolist()
        row = dict(zip(TOPOLOGY_PAIRS, tail, strict=True))
        run.metrics(
            {"study": "topologies", "topology": name, "level": level, "error": row}, f"{name}, {level}: {_listed(row)}"
        )
        return errors.tolist()

    names = list(topologies(config.agents))
    return {
        "names": TOPOLOGY_PAIRS,
        "every": 10,
        "gaps": {name: topology.spectral_gap(W) for name, W in topologies(config.agents).items()},
        "errors": {
            level: {name: run.step(f"topology-{level}-{name}", partial(errors_of, level, name)) for name in names}
            for level in LEVELS
        },
    }


def _speedup(config: QuadraticConfig, run: Run) -> SpeedupStudy:
    """n · mean squared error of the agents' mean, over the second half of the steps, on a ring."""
    names = ["ED", "EXTRA", "ATC-GT", "ED/ATC-GT"]

    def scaled_errors(n: int) -> list[list[float]]:
        problems = [
            quadratic.draw(n, x_size=3, y_size=4, heterogeneity=1.0, seed=seed)
            for seed in problem_seeds(config.seed, config.speedup_repeats)
        ]
        a = config.alpha
        errors = decentralized(
            names,
            topology.ring(n, 0.5),
            problems,
            step_sizes={"alpha": a, "beta": 2 * a, "gamma": 2 * a},
            theta=0.2,
            noise=config.noise,
            steps=config.speedup_steps,
            every=5,
            measure=mean_agent,
            seed=run.derive_seed(2, n),
        )
        scaled = n * errors[len(errors) // 2 :].mean(0)
        means = dict(zip(names, scaled.mean(1).tolist(), strict=True))
        run.metrics({"study": "speedup", "agents": n, "scaled_error": means}, f"n = {n}: n · MSE {_listed(means)}")
        return scaled.tolist()

    by_size = {n: run.step(f"speedup-{n}", partial(scaled_errors, n)) for n in config.sizes}
    return {
        "names": names,
        "sizes": list(config.sizes),
        "scaled": {name: band([by_size[n][i] for n in config.sizes], axis=-1) for i, name in enumerate(names)},
    }


def _compressed(config: QuadraticConfig, run: Run) -> CompressedStudy:
    """8 workers: ‖∇Φ‖² against the bits that a worker has sent, with exact and with noisy gradients."""

    def run_of(name: str, noise: float, seed: int) -> CompressedRun:
        problem = quadratic.draw(8, x_size=SIZE, y_size=SIZE, heterogeneity=1.0, seed=seed)
        measured = compressed(
            name,
            problem,
            step_sizes=COMPRESSED_STEPS,
            noise=noise,
            steps=config.compressed_steps,
            every=20,
            seed=run.derive_seed(3, seed),
        )
        floor = _floor(measured["squares"])
        row = {"study": "compressed", "algorithm": name, "noise": noise, "seed": seed, "floor": floor}
        run.metrics(row, f"{name}, noise {noise:g}, seed {seed}: ‖∇Φ‖² {floor:.2g}")
        return measured

    seeds = problem_seeds(config.seed, config.repeats)
    runs = {
        str(noise): {
            name: [run.step(f"compressed-{noise:g}-{i}-{seed}", partial(run_of, name, noise, seed)) for seed in seeds]
            for i, name in enumerate(config.compressors)
        }
        for noise in config.compressed_noises
    }
    floors = {
        noise: {name: band([_floor(repeat["squares"]) for repeat in repeats]) for name, repeats in by_name.items()}
        for noise, by_name in runs.items()
    }
    return {"every": 20, "runs": runs, "floors": floors}


def _check(config: QuadraticConfig, studies: QuadraticStudies, run: Run) -> None:
    ends = np.array([errors[-1] for errors in studies["pairs"]["errors"]])  # [repeats, pairs]
    worst = float(ends[:, :-1].max())
    run.check(
        "every SPARKLE pair solves heterogeneous quadratics", expected="<= 1e-18", got=worst, holds=worst <= 1e-18
    )
    stalled = float(ends[:, -1].min())
    run.check("D-SOBA does not", expected="> 0.1", got=stalled, holds=stalled > 0.1)
    if config.seed == 0:
        error = float(ends[0, -1])
        holds = abs(error - FIXED_POINT_ERROR) < 1e-8
        run.check("where D-SOBA comes to rest, seed 0", expected=FIXED_POINT_ERROR, got=error, holds=holds)
    for name, scaled in studies["speedup"]["scaled"].items():
        ratio = max(scaled["mean"]) / min(scaled["mean"])
        run.check(f"n · MSE is flat: {name}", expected="largest <= 2 x smallest", got=ratio, holds=ratio <= 2)
    noiseless = studies["compressed"]["runs"]["0.0"]
    exact = {name: [repeat["squares"][-1] for repeat in repeats] for name, repeats in noiseless.items()}
    if "EF" in exact:
        run.check("EF-SOBA has no floor", expected="<= 1e-24", got=max(exact["EF"]), holds=max(exact["EF"]) <= 1e-24)
    for name in [name for name in ("C", "CM") if name in exact]:
        floor = min(_floor(repeat["squares"]) for repeat in noiseless[name])
        run.check(f"{name}-SOBA has one", expected="> 1e-3", got=floor, holds=floor > 1e-3)


def _floor(squares: Sequence[float]) -> float:
    """The mean over the last quarter."""
    return float(np.mean(squares[-(len(squares) // 4) :]))


def _listed(row: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in row.items())


def _worst(ends: Mapping[str, float]) -> str:
    sparkle = max(error for name, error in ends.items() if name != D_SOBA)
    return f"worst pair {sparkle:.1e}, D-SOBA {ends[D_SOBA]:.2f}"


def _planned(config: QuadraticConfig) -> int:
    return config.repeats * (1 + len(config.compressed_noises) * len(config.compressors)) + 2 * 3 + len(config.sizes)


def _minutes(config: QuadraticConfig) -> float:
    """From milliseconds per step on one core."""
    compressed_steps = (
        len(config.compressed_noises) * config.repeats * len(config.compressors) * config.compressed_steps
    )
    speedup_steps = config.speedup_steps * len(config.sizes)
    steps = 4 * config.pair_steps * config.repeats + 6 * 6 * config.topology_steps
    return (steps + 6 * speedup_steps + 2 * compressed_steps) / 60_000


JOB = Job(
    name="bilevel.quadratic",
    summary="Decentralized and compressed bilevel optimization where the solution is known: SPARKLE, C-/CM-/EF-SOBA",
    Config=QuadraticConfig,
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
