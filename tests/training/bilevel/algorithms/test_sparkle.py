"""Every strategy against its explicit recursion, and convergence where D-SOBA stalls."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest
import torch

from training.bilevel import topology
from training.bilevel.algorithms.sparkle import (
    STRATEGIES,
    Sparkle,
    SparkleState,
    Strategy,
    consensus_error,
    diffusion,
)
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import PROBLEM, Quadratic
from training.bilevel.studies.quadratic import FIXED_POINT_ERROR

AGENTS = 8
RING = topology.ring(AGENTS, self_weight=0.5)  # semidefinite, so that ED and EXTRA take it as it is
PAIRS = list(itertools.product(STRATEGIES, STRATEGIES))
STEPS = 800
ORIGIN = torch.zeros(3, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)


@pytest.fixture(scope="module")
def agents() -> Quadratic:
    return quadratic.draw(AGENTS, x_size=3, y_size=4, heterogeneity=1.0, seed=0)


def sparkle(lower: Strategy, upper: Strategy, theta: float = 0.5) -> Sparkle:
    return Sparkle(PROBLEM, lower, upper, alpha=0.1, beta=0.2, gamma=0.2, theta=theta)


def states(algorithm: Sparkle, agents: Quadratic, steps: int) -> Iterator[SparkleState]:
    state = algorithm.start(*ORIGIN, agents)
    for _ in range(steps):
        state = algorithm.step(state, agents)
        yield state


def squared_error(x: torch.Tensor, agents: Quadratic) -> float:
    """The sum over agents of the squared distance to the solution."""
    return float((x - quadratic.solution(agents)).square().sum())


def run_together(
    pairs: Sequence[tuple[Strategy, Strategy]], agents: Quadratic, steps: int
) -> list[tuple[SparkleState, SparkleState]]:
    """The last two states of each (lower, upper), all pairs computed at once."""
    lower, upper = (Strategy(*map(torch.stack, zip(*level, strict=True))) for level in zip(*pairs, strict=True))
    start = sparkle(*pairs[0]).start(*ORIGIN, agents)
    state = SparkleState(*(leaf.expand(len(pairs), *leaf.shape) for leaf in start))
    step = torch.func.vmap(lambda lower, upper, state: sparkle(lower, upper).step(state, agents))
    for _ in range(steps):
        before, state = state, step(lower, upper, state)
    return [
        (SparkleState(*(leaf[i] for leaf in before)), SparkleState(*(leaf[i] for leaf in state)))
        for i in range(len(pairs))
    ]


Recursion = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def recursions(W: np.ndarray) -> dict[str, tuple[np.ndarray, Recursion]]:
    """What the first step does with -step * direction, and s'' from s', s and their two steps * directions.

    ED and EXTRA as in their papers; gradient tracking with its tracker eliminated.
    """
    return {
        "ED": (W, lambda new, old, h, g: W @ (2 * new - old - (h - g))),
        "EXTRA": (np.eye(len(W)), lambda new, old, h, g: 2 * W @ new - W @ old - (h - g)),
        "ATC-GT": (W @ W, lambda new, old, h, g: 2 * W @ new - W @ W @ (old + h - g)),
        "semi-ATC-GT": (W, lambda new, old, h, g: 2 * W @ new - W @ W @ old - W @ (h - g)),
        "non-ATC-GT": (np.eye(len(W)), lambda new, old, h, g: 2 * W @ new - W @ W @ old - (h - g)),
    }


def explicit(lower: str, upper: str, agents: Quadratic, steps: int) -> list[list[np.ndarray]]:
    """x, y and z [n, .] after each step, in NumPy, by two-step recursions without dual variables; theta = 0.5."""
    H, A, b, c, e, _ = (leaf.numpy() for leaf in agents)
    by_strategy = recursions(RING.numpy())
    rules = [by_strategy[upper], by_strategy[lower], by_strategy[lower]]
    now = [np.zeros((AGENTS, size)) for size in (3, 4, 4)]
    before, moved_before, r = None, None, np.zeros((AGENTS, 3))
    trajectory = []
    for _ in range(steps):
        x, y, z = now
        r = 0.5 * r + 0.5 * (x - e + np.einsum("nij,ni->nj", A, z))
        v = np.einsum("nij,nj->ni", H, y) - np.einsum("nij,nj->ni", A, x) - b
        p = np.einsum("nij,nj->ni", H, z) - (y - c)
        moved = [0.1 * r, 0.2 * v, 0.2 * p]
        if before is None or moved_before is None:
            after = [-first @ move for (first, _), move in zip(rules, moved, strict=True)]
        else:
            after = [rule(*four) for (_, rule), *four in zip(rules, now, before, moved, moved_before, strict=True)]
        before, moved_before, now = now, moved, after
        trajectory.append(now)
    return trajectory


@pytest.mark.parametrize(("lower", "upper"), PAIRS)
def test_every_pair_is_its_explicit_recursion(lower: str, upper: str, agents: Quadratic) -> None:
    algorithm = sparkle(STRATEGIES[lower](RING), STRATEGIES[upper](RING))
    for state, expected in zip(states(algorithm, agents, 15), explicit(lower, upper, agents, 15), strict=True):
        for ours, theirs in zip((state.x, state.y, state.z), expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.slow(6)
def test_every_pair_solves_heterogeneous_quadratics(agents: Quadratic) -> None:
    pairs = [(STRATEGIES[lower](RING), STRATEGIES[upper](RING)) for lower, upper in PAIRS]
    ends = run_together(pairs, agents, STEPS)
    errors = {pair: squared_error(last.x, agents) for pair, (_, last) in zip(PAIRS, ends, strict=True)}
    assert max(errors.values()) <= 1e-18, errors
    assert max(consensus_error((last.x, last.y)) for _, last in ends) <= 1e-18


def test_d_soba_stalls_where_agents_differ(agents: Quadratic) -> None:
    [(before, last)] = run_together([(diffusion(RING), diffusion(RING))], agents, 300)
    assert squared_error(last.x, agents) == pytest.approx(FIXED_POINT_ERROR, abs=1e-8)
    assert float((last.x - before.x).square().sum()) < 1e-18  # and it has come to rest there


def test_d_soba_solves_what_all_agents_share() -> None:
    alike = quadratic.draw(1, x_size=3, y_size=4, heterogeneity=0.0, seed=0)
    alike = Quadratic(*(leaf.expand(AGENTS, *leaf.shape[1:]) for leaf in alike))
    [(_, last)] = run_together([(diffusion(RING), diffusion(RING))], alike, 300)
    assert squared_error(last.x, alike) <= 1e-18


def test_w_is_made_semidefinite_only_where_it_is_not() -> None:
    indefinite = topology.ring(AGENTS, self_weight=1 / 3)
    identity = torch.eye(AGENTS, dtype=torch.float64)
    assert STRATEGIES["ED"](RING).A is RING
    torch.testing.assert_close(STRATEGIES["ED"](indefinite).A, (identity + indefinite) / 2)
    torch.testing.assert_close(STRATEGIES["EXTRA"](indefinite).C, (identity + indefinite) / 2)


def test_bad_input_is_one_line(agents: Quadratic) -> None:
    ring, small = STRATEGIES["ED"](RING), STRATEGIES["ED"](topology.ring(4))
    with pytest.raises(ValueError, match=r"^the lower level has 8 agents, the upper 4: make them equal$"):
        sparkle(ring, small).start(*ORIGIN, agents)
    with pytest.raises(ValueError, match=r"^batch, \.H: has shape \[8, 4, 4\]; its leading axis must be 4 agents$"):
        sparkle(small, small).start(*ORIGIN, agents)
    directed = topology.checked(torch.tensor([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]], dtype=torch.float64))
    with pytest.raises(ValueError, match="must be symmetric"):
        STRATEGIES["ATC-GT"](directed)
