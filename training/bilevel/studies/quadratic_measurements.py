"""Measurements of `iro run bilevel.quadratic`: SPARKLE and compressed SOBA on problems with a known solution."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypedDict

import torch
from torch.func import vmap

from training.bilevel import topology
from training.bilevel.algorithms.method import Algorithm
from training.bilevel.algorithms.soba import EFSoba, Soba, bits_down, bits_up
from training.bilevel.algorithms.sparkle import STRATEGIES, Sparkle, SparkleState, Strategy, diffusion
from training.bilevel.distributed.compressors import QSGD, Compressor, MultiStep, Natural, RandK, TopK
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM, Quadratic

D_SOBA = "D-SOBA"
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x [..., n, d], solution [..., d] -> [...]


class StepSizes(TypedDict):
    """Of x, y and z."""

    alpha: float
    beta: float
    gamma: float


def every_agent(x: torch.Tensor, solution: torch.Tensor) -> torch.Tensor:
    """Σ_i ‖x_i - x*‖²."""
    return (x - solution[..., None, :]).square().sum((-2, -1))


def mean_agent(x: torch.Tensor, solution: torch.Tensor) -> torch.Tensor:
    """‖mean_i x_i - x*‖²."""
    return (x.mean(-2) - solution).square().sum(-1)


def strategies(pair: str, W: torch.Tensor) -> tuple[Strategy, Strategy]:
    """Of "L/U", lower and upper; "L" alone is both levels; D-SOBA corrects at neither."""
    available = STRATEGIES | {D_SOBA: diffusion}
    lower, upper = (pair.split("/") * 2)[:2]
    return available[lower](W), available[upper](W)


def decentralized(
    pairs: Sequence[str],
    W: torch.Tensor,
    problems: Sequence[Quadratic],
    *,
    step_sizes: StepSizes,
    theta: float,
    noise: float,
    steps: int,
    every: int,
    measure: Measure,
    seed: int,
) -> torch.Tensor:
    """[records, pairs, problems]: ``measure`` after each ``every`` steps, all pairs and problems computed at once.

    All pairs have the same noise.
    """
    lower, upper = (
        Strategy(*map(torch.stack, zip(*level, strict=True)))
        for level in zip(*(strategies(pair, W) for pair in pairs), strict=True)
    )
    agents = Quadratic(*map(torch.stack, zip(*problems, strict=True)))
    solution = torch.stack([quadratic.solution(problem) for problem in problems])
    generator = torch.Generator().manual_seed(seed)

    # The strategies are an axis of the computation: each slice of it is an algorithm.
    def step(lower: Strategy, upper: Strategy, state: SparkleState, batch: Quadratic) -> SparkleState:
        return Sparkle(PROBLEM, lower, upper, **step_sizes, theta=theta).step(state, batch)

    advance = vmap(vmap(step, in_dims=(None, None, 0, 0)), in_dims=(0, 0, 0, None))
    origin = torch.zeros_like(problems[0].e[0]), torch.zeros_like(problems[0].c[0])
    start = Sparkle(PROBLEM, *strategies(pairs[0], W), **step_sizes, theta=theta).start(*origin, problems[0])
    state = SparkleState(*(leaf.expand(len(pairs), len(problems), *leaf.shape) for leaf in start))
    records = []
    for k in range(1, steps + 1):
        state = advance(lower, upper, state, quadratic.noisy(agents, noise, generator))
        if k % every == 0:
            records.append(measure(state.x, solution))
    return torch.stack(records)


SIZE = 10  # coordinates of each level in the compressed study


class CompressedVariant(NamedTuple):
    algorithm: type[Soba] | type[EFSoba]
    compressor: Compressor
    theta: float


COMPRESSED = {
    "uncompressed": CompressedVariant(Soba, RandK(SIZE, shared_seed=True), 1.0),  # all coordinates, no indices
    "C": CompressedVariant(Soba, RandK(1), 1.0),
    "CM": CompressedVariant(Soba, RandK(1), 0.2),
    "EF": CompressedVariant(EFSoba, RandK(1), 0.2),
    "EF, MSC 3": CompressedVariant(EFSoba, MultiStep(RandK(1), 3), 0.2),
    "EF, QSGD 2": CompressedVariant(EFSoba, QSGD(2), 0.2),
    "EF, natural": CompressedVariant(EFSoba, Natural(), 0.2),
    "EF, top-1": CompressedVariant(EFSoba, TopK(1), 0.2),
}


class CompressedRun(TypedDict):
    """``squares``: ‖∇Φ‖² of each record. ``bits_up``, ``bits_down``: of one worker per step, with 32-bit floats."""

    squares: list[float]
    bits_up: int
    bits_down: int


def compressed(
    name: str, problem: Quadratic, *, step_sizes: StepSizes, noise: float, steps: int, every: int, seed: int
) -> CompressedRun:
    """A run of a variant of COMPRESSED, recorded after each ``every`` steps."""
    variant, origin = COMPRESSED[name], torch.zeros_like(problem.e[0])
    soba = variant.algorithm(PROBLEM, variant.compressor, variant.compressor, **step_sizes, theta=variant.theta)
    algorithm: Algorithm = soba
    state = algorithm.start(origin, origin, problem)
    generator = torch.Generator().manual_seed(seed)
    squares = []
    for k in range(1, steps + 1):
        state = algorithm.step(state, quadratic.noisy(problem, noise, generator), generator)
        if k % every == 0:
            squares.append(float(quadratic.hypergradient(problem, state.x).square().sum()))
    return {
        "squares": squares,
        "bits_up": bits_up(soba, origin, origin),
        "bits_down": bits_down(origin, origin),
    }


def problem_seeds(seed: int, repeats: int) -> range:
    """Seeds of the random problems of a run: those of runs with other seeds are others, up to a million problems."""
    first = seed * 10**6
    return range(first, first + repeats)


def topologies(agents: int) -> dict[str, torch.Tensor]:
    """The topologies of the paper's synthetic experiment. ``agents``: a square.

    The torus is (I + W)/2: W itself has negative eigenvalues, with which gradient tracking diverges at these steps.
    """
    side = round(agents**0.5)
    return {
        "fully connected": topology.fully_connected(agents),
        "2-D torus": (torch.eye(agents) + topology.torus(side, side)) / 2,
        "adjusted ring": topology.ring(agents, 0.5),
    }


class PairStudy(TypedDict):
    """errors [repeats, records, pairs]: Σ‖x_i - x*‖² after each ``every`` steps."""

    names: list[str]
    every: int
    errors: list[list[list[float]]]


class TopologyStudy(TypedDict):
    """gaps: spectral gap by topology. errors, by level and topology: [records, pairs, repeats]."""

    names: list[str]
    every: int
    gaps: dict[str, float]
    errors: dict[str, dict[str, list[list[list[float]]]]]


class SpeedupStudy(TypedDict):
    """scaled, by pair: the band of n · MSE, one value per size."""

    names: list[str]
    sizes: list[int]
    scaled: dict[str, dict[str, list[float]]]


class CompressedStudy(TypedDict):
    """runs, by noise and variant: one per repeat. floors: bands of the final ‖∇Φ‖²."""

    every: int
    runs: dict[str, dict[str, list[CompressedRun]]]
    floors: dict[str, dict[str, dict[str, float]]]


class QuadraticStudies(TypedDict):
    pairs: PairStudy
    topologies: TopologyStudy
    speedup: SpeedupStudy
    compressed: CompressedStudy
