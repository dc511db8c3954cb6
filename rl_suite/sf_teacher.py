"""Teacher and student: SF-DQN with a known ψ*, so that ‖Θ_t − Θ*‖ is observable (arXiv:2405.15920, synthetic study).

ψ(s, a; Θ) [d] = mean_k relu(Θ[d, a, k]·s): one hidden ReLU layer with fixed output weights 1/K. φ(s, a, s') =
ψ*(s, a) − γ ψ*(s', argmax ψ*(s', ·)·w*) makes the teacher's ψ* exact. The paper's sizes are not public; these are a
reconstruction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True)
class TeacherStudy:
    """Sizes: inputs p, actions A, features d, hidden units K. ``noise``: standard deviation added to φ."""

    inputs: int = 8
    actions: int = 3
    features: int = 3
    hidden: int = 6
    gamma: float = 0.5
    noise: float = 0.1

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return self.features, self.actions, self.hidden, self.inputs


def psi(theta: np.ndarray, s: np.ndarray) -> np.ndarray:
    """[B, A, d] of Θ [d, A, K, p] and states [B, p]."""
    return np.maximum(_preactivations(theta, s), 0).mean(axis=-1)


def _preactivations(theta: np.ndarray, s: np.ndarray) -> np.ndarray:
    d, a, k, p = theta.shape
    return (s @ theta.reshape(-1, p).T).reshape(len(s), d, a, k).transpose(0, 2, 1, 3)


def draw(study: TeacherStudy, teacher: np.ndarray, w: np.ndarray, n: int, rng: np.random.Generator) -> tuple:
    """``n`` transitions s [n, p], a [n], φ [n, d], s' [n, p]: states ~ N(0, I), uniform actions."""
    s, next_s = rng.standard_normal((2, n, study.inputs))
    a = rng.integers(study.actions, size=n)
    next_psi = psi(teacher, next_s)
    best = (next_psi @ w).argmax(axis=1)
    rows = np.arange(n)
    phi = psi(teacher, s)[rows, a] - study.gamma * next_psi[rows, best]
    return s, a, phi + study.noise * rng.standard_normal(phi.shape), next_s


def step(study: TeacherStudy, theta: np.ndarray, batch: tuple, w: np.ndarray, rate: float) -> np.ndarray:
    """One semi-gradient step of SF-DQN on a batch: targets φ + γ ψ(s', argmax ψ(s', ·)·w)."""
    s, a, phi, next_s = batch
    rows = np.arange(len(s))
    next_psi = psi(theta, next_s)
    target = phi + study.gamma * next_psi[rows, (next_psi @ w).argmax(axis=1)]
    preactivations = _preactivations(theta, s)[rows, a]  # [B, d, K]
    error = np.maximum(preactivations, 0).mean(axis=2) - target
    slope = error[:, :, None] * (preactivations > 0)  # [B, d, K]; the 1/K goes into the rate
    gradient = np.stack([np.einsum("bdk,bp->dkp", slope[a == i], s[a == i]) for i in range(study.actions)], axis=1)
    return theta - rate * gradient * study.actions / len(s)


class Trace(NamedTuple):
    """‖Θ_t − Θ*‖/‖Θ*‖, and mean |ψ(Θ_t)·w_t − ψ*·w*| over fresh states, at the times ``t`` [T]."""

    t: np.ndarray
    distance: np.ndarray
    q_error: np.ndarray


def train(
    study: TeacherStudy,
    rng: np.random.Generator,
    steps: int,
    *,
    replay: int | None = None,
    w_error: float = 0.0,
    rate: float = 3.0,
    batch: int = 64,
    start: float = 0.5,
) -> Trace:
    """Train a student and trace its distance to the teacher.

    ``replay``: the size of a fixed set of transitions; fresh ones if None. ``w_error``: ‖w_0 − w*‖; w is learnt beside
    Θ by w ← w + α (r − φ·w) φ. ``start``: the first distance. The step size falls as 1/t.
    """
    teacher = rng.standard_normal(study.shape)
    w_star = rng.standard_normal(study.features)
    w_star /= np.linalg.norm(w_star)
    theta = teacher + _of_length(rng, study.shape, start * float(np.linalg.norm(teacher)))
    w = w_star + _of_length(rng, w_star.shape, w_error)
    pool = None if replay is None else draw(study, teacher, w_star, replay, rng)
    probe = rng.standard_normal((500, study.inputs))
    trace = []
    for t in range(1, steps + 1):
        if pool is None:
            transitions = draw(study, teacher, w_star, batch, rng)
        else:
            picked = rng.integers(len(pool[0]), size=batch)
            transitions = tuple(part[picked] for part in pool)
        rate_t = rate / (1 + t / 100)
        phi = transitions[2]
        w = w + 0.02 * rate_t * ((phi @ (w_star - w))[:, None] * phi).mean(axis=0)
        theta = step(study, theta, transitions, w, rate_t)
        if t >= 8 and (t & (t - 1) == 0 or t == steps):
            wrong = np.abs(psi(theta, probe) @ w - psi(teacher, probe) @ w_star).mean()
            trace.append((t, np.linalg.norm(theta - teacher) / np.linalg.norm(teacher), wrong))
    return Trace(*np.array(trace).T)


def _of_length(rng: np.random.Generator, shape: tuple[int, ...], length: float) -> np.ndarray:
    direction = rng.standard_normal(shape)
    return direction * (length / np.linalg.norm(direction))


def slope(x: np.ndarray, y: np.ndarray) -> float:
    """The log-log slope of y over x, by least squares."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])
