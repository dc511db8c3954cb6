"""A simulated patient under two drugs at n doses each, with its exact MDP: n × n joint actions, the same physics.

A state is the severity of two conditions, 0 to 4. A drug helps its condition most at the dose that the severity asks
for, and harms at others; each drug also acts on the other condition with ``interaction`` of its strength, so that the
best dose of one depends on the dose of the other. Our own instance, not one of a paper.
"""

from __future__ import annotations

import numpy as np

from rl_suite.mdp import MDP

LEVELS = 5  # 4: dead
HORIZON = 50
GAMMA = 0.99
IDEAL = np.array([0.0, 0.3, 0.55, 0.8, 0.8])  # dose by severity
TOLERANCE = 0.2  # of a dose
CLINICIANS = (-0.2, 0.2)  # one gives too little of both drugs, one too much


def severities() -> np.ndarray:
    """[S, 2]: the severity of both conditions in each state."""
    return np.stack(np.unravel_index(np.arange(LEVELS**2), (LEVELS, LEVELS)), axis=1)


def arrival_rewards() -> np.ndarray:
    """[S]: +1 on recovery from both conditions, −1 on death."""
    x = severities()
    return np.where((x == LEVELS - 1).any(axis=1), -1.0, np.where((x == 0).all(axis=1), 1.0, 0.0))


def dose_mdp(doses: int, interaction: float) -> MDP:
    """The MDP with ``doses`` levels of each drug, evenly from 0 to 1. Raises ValueError for fewer than two."""
    if doses < 2:
        raise ValueError(f"{doses} doses: at least two are needed")
    x, rewards = severities(), arrival_rewards()
    first, second = (part.ravel() for part in np.meshgrid(*[np.linspace(0, 1, doses)] * 2, indexing="ij"))
    laws = [
        _law(x[:, i], dose + interaction * other) for i, (dose, other) in enumerate(((first, second), (second, first)))
    ]
    P = np.einsum("saj,sak->sajk", *laws).reshape(LEVELS**2, doses**2, LEVELS**2)
    P[rewards != 0] = 0
    start = ((x > 0) & (x < LEVELS - 1)).all(axis=1).astype(float)
    return MDP(P, P @ rewards, start / start.sum(), (doses, doses), GAMMA)


def _law(severity: np.ndarray, dose: np.ndarray) -> np.ndarray:
    """[S, A, LEVELS]: the next severity of one condition."""
    fit = np.exp(-0.5 * ((dose[None] - IDEAL[severity][:, None]) / TOLERANCE) ** 2)
    better, worse = 0.05 + 0.6 * fit, 0.4 * (1 - fit)
    law = np.zeros((*fit.shape, LEVELS))
    s, a = np.indices(fit.shape)
    np.add.at(law, (s, a, np.maximum(severity - 1, 0)[:, None]), better)
    np.add.at(law, (s, a, np.minimum(severity + 1, LEVELS - 1)[:, None]), worse)
    np.add.at(law, (s, a, severity[:, None]), 1 - better - worse)
    return law


def clinicians(doses: int, interaction: float) -> np.ndarray:
    """π_b [S, A]: two clinicians in turn, and a tenth of uniform actions. Their doses of both drugs vary together."""
    x, levels = severities(), np.linspace(0, 1, doses)
    ideal = IDEAL[x] / (1 + interaction)
    policy = np.full((LEVELS**2, doses**2), 0.1 / doses**2)
    for shift in CLINICIANS:
        first, second = (_around(np.clip(ideal[:, i] + shift, 0, 1), levels) for i in range(2))
        policy += 0.9 / len(CLINICIANS) * np.einsum("sa,sb->sab", first, second).reshape(policy.shape)
    return policy


def _around(dose: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """[S, n]: doses near ``dose`` [S]."""
    weights = np.exp(-0.5 * ((levels[None] - dose[:, None]) / 0.15) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)
