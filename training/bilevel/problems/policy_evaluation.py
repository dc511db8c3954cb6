"""Policy evaluation: linear values of a Markov reward process that each agent observes in part.

Minimise ½ mean_s (φ_s·x - y*_s)², y*_s = mean over agents of Σ_t P_i(s, t) (r_i(s, t) + discount φ_t·x): the upper
level fits values to their own Bellman backup, which the lower level averages over agents (arXiv:2411.14166).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from training.bilevel.problem import BilevelProblem

DISCOUNT = 0.9


class Observations(NamedTuple):
    """Of one agent, or of n with a leading axis: features [S, d], P [S, S], mean rewards of a state [S]."""

    features: torch.Tensor
    transitions: torch.Tensor
    rewards: torch.Tensor


def backup(x: torch.Tensor, observed: Observations) -> torch.Tensor:
    """Σ_t P(s, t) (r(s, t) + discount φ_t·x), [S]."""
    return observed.rewards + DISCOUNT * observed.transitions @ (observed.features @ x)


def backup_loss(x: torch.Tensor, y: torch.Tensor, observed: Observations) -> torch.Tensor:
    return (y - backup(x, observed)).square().mean() / 2


def bellman_loss(x: torch.Tensor, y: torch.Tensor, observed: Observations) -> torch.Tensor:
    return (observed.features @ x - y).square().mean() / 2


PROBLEM = BilevelProblem(bellman_loss, backup_loss)


def draw(agents: int, *, states: int, size: int, seed: int) -> Observations:
    """One process with ``size`` features per state, and the P and r that each agent observes, float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    mass = uniform(states, states) + uniform(agents, states, states)
    return Observations(
        features=uniform(states, size).expand(agents, states, size),
        transitions=mass / mass.sum(-1, keepdim=True),
        rewards=uniform(states) + uniform(agents, states) / 2,
    )


def solution(agents: Observations) -> torch.Tensor:
    """x* [d], which minimises the mean squared Bellman error of the agents' mean backup: least squares."""
    mean = Observations(*(leaf.mean(0) for leaf in agents))
    design = mean.features - DISCOUNT * mean.transitions @ mean.features
    q, r = torch.linalg.qr(design)  # lstsq's last bits differ from call to call
    return torch.linalg.solve_triangular(r, (q.T @ mean.rewards)[:, None], upper=True)[:, 0]
