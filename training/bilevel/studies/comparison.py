"""Runs a method on several draws of a problem at once, and compares curves by the bytes that were sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypedDict

import numpy as np
import torch
from torch.func import vmap
from torch.utils._pytree import tree_map

from training.bilevel.algorithms.method import BilevelMethod, ProblemSetup
from training.bilevel.problem import Tree


def steps_within(method: BilevelMethod, evaluations: int) -> int:
    """Steps of ``method`` in a budget of ``evaluations`` per agent. Single-level: as many as a single loop takes."""
    return evaluations // max(method.evaluations, 3)


def check_points(points: int, evaluations: int, methods: Mapping[str, BilevelMethod]) -> None:
    """Raises ValueError if a method takes fewer steps within ``evaluations`` than its curve has points."""
    steps = {name: steps_within(method, evaluations) for name, method in methods.items()}
    slowest = min(steps, key=steps.__getitem__)
    if steps[slowest] < points:
        raise ValueError(
            f"points: {slowest} takes {steps[slowest]} steps within {evaluations} evaluations, fewer than {points} "
            "points; lower points or raise evaluations"
        )


class ByteCurve(TypedDict):
    """Bytes that an agent has sent [points], and accuracy [points][runs]."""

    bytes: list[float]
    accuracy: list[list[float]]


def run_method(
    method: BilevelMethod,
    setups: Sequence[ProblemSetup],
    like: Tree,
    draw_batch: Callable[[], Tree],
    noise: torch.Generator,
    recorded_steps: Sequence[int],
    record: Callable[[Tree], None],
) -> Tree:
    """The last state of ``method`` from each of ``setups``; ``record`` gets the state after each of ``recorded_steps``.

    All runs are stacked on a leading axis. Setups differ in x and y alone: the algorithm is built from the first.
    ``like``: a batch of one run, for its shapes. ``draw_batch``: a batch of all runs, [runs, n, ...]. ``noise``: the
    randomness of compressors.
    """
    algorithm = method.build(setups[0])
    states = [algorithm.start(setup.x, setup.y, like) for setup in setups]
    state = tree_map(lambda *leaves: torch.stack(leaves), *states)
    step = vmap(lambda state, batch: algorithm.step(state, batch, noise), randomness="different")
    for k in range(max(recorded_steps) + 1):
        if k:
            state = step(state, draw_batch())
        if k in recorded_steps:
            record(state)
    return state


def bytes_ratio(curve: ByteCurve, dense: ByteCurve) -> dict[str, float]:
    """``ratio`` of the bytes to those of ``dense``, at the highest mean ``accuracy`` that both reach."""
    goal = min(float(np.mean(points["accuracy"], axis=1).max()) for points in (curve, dense))
    return {"accuracy": goal, "ratio": bytes_to_reach(curve, goal) / bytes_to_reach(dense, goal)}


def bytes_to_reach(curve: ByteCurve, goal: float) -> float:
    """Bytes at which the mean accuracy first reaches ``goal``, by linear interpolation between points."""
    means, sent = np.mean(curve["accuracy"], axis=1), curve["bytes"]
    first = int(np.argmax(means >= goal))
    return float(sent[0] if first == 0 else np.interp(goal, means[first - 1 : first + 1], sent[first - 1 : first + 1]))
