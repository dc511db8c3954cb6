"""What `iro run bilevel.quadratic` measures: SPARKLE and compressed SOBA where the solution is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.func import vmap

from training.bilevel import quadratic, topology
from training.bilevel.compressors import QSGD, Compressor, MultiStep, Natural, RandK, TopK
from training.bilevel.quadratic import PROBLEM, Quadratic
from training.bilevel.soba import EFSoba, Soba, bits_down, bits_up
from training.bilevel.sparkle import STRATEGIES, Sparkle, State, Strategy, diffusion

D_SOBA = "D-SOBA"
Steps = Mapping[str, Any]  # alpha, beta, gamma, theta
Measure = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # x [..., n, d], solution [..., d] -> [...]


def every_agent(x: torch.Tensor, solution: torch.Tensor) -> torch.Tensor:
    """Σ_i ‖x_i - x*‖²."""
    return (x - solution[..., None, :]).square().sum((-2, -1))


def mean_agent(x: torch.Tensor, solution: torch.Tensor) -> torch.Tensor:
    """‖mean_i x_i - x*‖²."""
    return (x.mean(-2) - solution).square().sum(-1)


def strategies(pair: str, W: torch.Tensor) -> tuple[Strategy, Strategy]:
    """ "L/U", lower and upper; "L" alone is both; D-SOBA corrects at neither."""
    known = STRATEGIES | {D_SOBA: diffusion}
    lower, upper = (pair.split("/") * 2)[:2]
    return known[lower](W), known[upper](W)


def decentralized(
    pairs: Sequence[str],
    W: torch.Tensor,
    problems: Sequence[Quadratic],
    *,
    settings: Steps,
    noise: float,
    steps: int,
    every: int,
    measure: Measure,
    seed: int,
) -> torch.Tensor:
    """[records, pairs, problems]: ``measure`` each ``every`` steps, all pairs and problems computed at once.

    All pairs see the same noise.
    """
    lower, upper = (
        Strategy(*map(torch.stack, zip(*level, strict=True)))
        for level in zip(*(strategies(pair, W) for pair in pairs), strict=True)
    )
    agents = Quadratic(*map(torch.stack, zip(*problems, strict=True)))
    solution = torch.stack([quadratic.solution(problem) for problem in problems])
    generator = torch.Generator().manual_seed(seed)

    def step(lower: Strategy, upper: Strategy, state: State, batch: Quadratic) -> State:
        return Sparkle(PROBLEM, lower, upper, **settings).step(state, batch)

    advance = vmap(vmap(step, in_dims=(None, None, 0, 0)), in_dims=(0, 0, 0, None))
    origin = torch.zeros_like(problems[0].e[0]), torch.zeros_like(problems[0].c[0])
    start = Sparkle(PROBLEM, *strategies(pairs[0], W), **settings).start(*origin, problems[0])
    state = State(*(leaf.expand(len(pairs), len(problems), *leaf.shape) for leaf in start))
    records = []
    for at in range(1, steps + 1):
        state = advance(lower, upper, state, quadratic.noisy(agents, noise, generator))
        if at % every == 0:
            records.append(measure(state.x, solution))
    return torch.stack(records)


SIZE = 10  # coordinates of each level in the compressed study

# Each by its name: the algorithm's class, its compressor, its theta.
COMPRESSED: dict[str, tuple[type[Soba] | type[EFSoba], Compressor, float]] = {
    "uncompressed": (Soba, RandK(SIZE, shared_seed=True), 1.0),  # all of it, and no indices
    "C": (Soba, RandK(1), 1.0),
    "CM": (Soba, RandK(1), 0.2),
    "EF": (EFSoba, RandK(1), 0.2),
    "EF, MSC 3": (EFSoba, MultiStep(RandK(1), 3), 0.2),
    "EF, QSGD 2": (EFSoba, QSGD(2), 0.2),
    "EF, natural": (EFSoba, Natural(), 0.2),
    "EF, top-1": (EFSoba, TopK(1), 0.2),
}


def compressed(
    name: str, problem: Quadratic, *, settings: Steps, noise: float, steps: int, every: int, seed: int
) -> dict[str, Any]:
    """``squares``: ‖∇Φ‖² each ``every`` steps; ``bits_up``, ``bits_down``: a worker's in a step, with 32-bit floats."""
    kind, compressor, theta = COMPRESSED[name]
    workers, origin = len(problem.e), torch.zeros_like(problem.e[0])
    algorithm = kind(PROBLEM, compressor, compressor, theta=theta, **settings)
    state: Any = (
        algorithm.start(origin, origin, workers) if isinstance(algorithm, EFSoba) else algorithm.start(origin, origin)
    )
    generator = torch.Generator().manual_seed(seed)
    squares = []
    for at in range(1, steps + 1):
        state = algorithm.step(state, quadratic.noisy(problem, noise, generator), generator)
        if at % every == 0:
            squares.append(float(quadratic.hypergradient(problem, state.x).square().sum()))
    return {
        "squares": squares,
        "bits_up": bits_up(algorithm, origin, origin),
        "bits_down": bits_down(origin, origin),
    }


def topologies(agents: int) -> dict[str, torch.Tensor]:
    """Those of the paper's synthetic experiment. ``agents``: a square.

    The torus is (I + W)/2: of W itself, with its negative eigenvalues, gradient tracking diverges at the run's steps.
    """
    side = round(agents**0.5)
    return {
        "fully connected": topology.fully_connected(agents),
        "2-D torus": (torch.eye(agents) + topology.torus(side, side)) / 2,
        "adjusted ring": topology.ring(agents, 0.5),
    }
