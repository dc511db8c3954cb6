"""Single-level exact diffusion: the lower level alone, as the baseline without bilevel optimization."""

from __future__ import annotations

import torch

from training.bilevel.algorithms.method import BilevelMethod, ProblemSetup, neighbour_bytes
from training.bilevel.algorithms.sparkle import Sparkle, exact_diffusion
from training.bilevel.problem import BilevelProblem


def single_level(problem: BilevelProblem, W: torch.Tensor, beta: float) -> Sparkle:
    """Steps ``beta`` of y; x does not move."""
    level = exact_diffusion(W)
    return Sparkle(problem, level, level, alpha=0.0, beta=beta, gamma=0.0)


def _build(setup: ProblemSetup) -> Sparkle:
    return single_level(setup.problem, setup.W, setup.beta)


METHODS = {"single-level ED": BilevelMethod(build=_build, evaluations=1, bytes_sent=neighbour_bytes(0, 1))}
