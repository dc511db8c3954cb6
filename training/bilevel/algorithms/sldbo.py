"""SLDBO: the single loop with gradient tracking of x, y and z, without a moving average (compared in arXiv:2411.14166).

A reconstruction: non-ATC tracking of all three variables.
"""

from __future__ import annotations

import torch

from training.bilevel.algorithms.method import BilevelMethod, ProblemSetup, neighbour_bytes
from training.bilevel.algorithms.sparkle import Sparkle, non_atc_tracking
from training.bilevel.problem import BilevelProblem


def sldbo(problem: BilevelProblem, W: torch.Tensor, alpha: float, beta: float, gamma: float) -> Sparkle:
    """``alpha``, ``beta``, ``gamma``: steps of x, y, z."""
    level = non_atc_tracking(W)
    return Sparkle(problem, level, level, alpha, beta, gamma)


def _build(setup: ProblemSetup) -> Sparkle:
    return sldbo(setup.problem, setup.W, setup.alpha, setup.beta, setup.beta)


METHODS = {"SLDBO": BilevelMethod(build=_build, evaluations=3, bytes_sent=neighbour_bytes(2, 4))}
