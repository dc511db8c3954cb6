"""Exact moments of SPARKLE on quadratics: an iteration is an affine map of all agents' state, plus Gaussian noise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.func import jacfwd

from training.bilevel.algorithms.sparkle import Sparkle, SparkleState
from training.bilevel.problems import quadratic
from training.bilevel.problems.quadratic import Quadratic


class AffineRecursion(NamedTuple):
    """s⁺ = transition s + offset + noise ξ, ξ standard normal: [k, k], [k], [k, j]. s: ``SparkleState``, x first."""

    transition: torch.Tensor
    offset: torch.Tensor
    noise: torch.Tensor


class Moments(NamedTuple):
    """Of the state after some iterations from 0: mean [k], covariance [k, k]."""

    mean: torch.Tensor
    covariance: torch.Tensor


def recursion(algorithm: Sparkle, agents: Quadratic, noise: float) -> AffineRecursion:
    """One iteration of ``algorithm`` with the errors of ``quadratic.noisy``.

    The corrections sum to 0 over agents. That is enforced: over 2^30 iterations rounding would add up.
    """
    start = algorithm.start(torch.zeros_like(agents.e[0]), torch.zeros_like(agents.c[0]), agents)
    exact = (agents.b, agents.c, agents.e)

    def advance(state: torch.Tensor, errors: torch.Tensor) -> torch.Tensor:
        b, c, e = (leaf + noise * error for leaf, error in zip(exact, _parts(errors, exact), strict=True))
        moved = algorithm.step(SparkleState(*_parts(state, start)), agents._replace(b=b, c=c, e=e))
        centred = (q - q.mean(0) for q in (moved.qx, moved.qy, moved.qz))
        return _flat((moved.x, moved.y, moved.z, moved.r, *centred))

    origin, no_errors = torch.zeros_like(_flat(start)), torch.zeros_like(_flat(exact))
    transition, by_error = jacfwd(advance, argnums=(0, 1))(origin, no_errors)
    return AffineRecursion(transition, advance(origin, no_errors), by_error)


def moments(step: AffineRecursion, doublings: int) -> Moments:
    """After 2^``doublings`` iterations from 0: those of the second half continue from the first half's state."""
    power, mean = step.transition, step.offset
    covariance = step.noise @ step.noise.T
    for _ in range(doublings):
        mean = power @ mean + mean
        covariance = power @ covariance @ power.T + covariance
        power = power @ power
    return Moments(mean, covariance)


class SquaredGradients(NamedTuple):
    """E‖∇Φ‖² at the agents' x_i, on average over agents, and at their mean."""

    every_agent: float
    mean_agent: float


def squared_gradients(after: Moments, agents: Quadratic) -> SquaredGradients:
    """∇Φ is affine: its second moment follows from the moments of x."""
    n, d = agents.e.shape
    offset = quadratic.hypergradient(agents, torch.zeros_like(agents.e[0]))
    columns = [quadratic.hypergradient(agents, unit) - offset for unit in torch.eye(d, dtype=offset.dtype)]
    slope = torch.stack(columns, dim=1)
    means = after.mean[: n * d].view(n, d) @ slope.T + offset
    covariance = after.covariance[: n * d, : n * d].view(n, d, n, d)
    within = torch.einsum("idie->de", covariance) / n
    of_mean = covariance.sum((0, 2)) / n**2
    return SquaredGradients(
        every_agent=float(means.square().sum() / n + (slope @ within @ slope.T).trace()),
        mean_agent=float(means.mean(0).square().sum() + (slope @ of_mean @ slope.T).trace()),
    )


def _flat(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])


def _parts(flat: torch.Tensor, like: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    pieces = flat.split([part.numel() for part in like])
    return [piece.reshape(part.shape) for piece, part in zip(pieces, like, strict=True)]
