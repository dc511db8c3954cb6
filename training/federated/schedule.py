"""The times of a trial without its training: when server rounds end, and which clients answer.

Training affects neither, unless an update is rejected, which delays the rounds after it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from torch import Tensor

from training.federated.buffered import FederatedSettings
from training.federated.delays import SpeedClasses, delay_model
from training.federated.experiment import METHODS, SPEEDS, Curve, Trial, rounds_of, staleness
from training.federated.rules import RULES
from training.federated.simulator import Simulator
from training.run import rng_of

CLASSES = ("fast", "medium", "slow")  # of ``SpeedClasses``
NO_CLASS = "all"  # of every client under the other delay models


class Schedule(NamedTuple):
    """``times`` at which server rounds end, from 0 for round 0. By client: the number of ``answers``, and ``speeds``.

    ``staleness``: of the oldest update of each server round.
    """

    times: list[float]
    answers: list[int]
    speeds: list[str]
    staleness: list[int]

    def rounds_until(self, time: float) -> int:
        """Server rounds that have ended at ``time``."""
        return bisect_right(self.times, time) - 1


class Participation(TypedDict):
    """Of runs of a ``method``: the virtual times at which they ``end``, and the ``oldest`` update, in server rounds.

    ``answered``: by speed, over all runs, the clients that answered at least once, and the clients.
    """

    method: str
    ends: list[float]
    answered: dict[str, list[int]]
    oldest: int


def schedule(trial: Trial) -> Schedule:
    """Of the complete run of ``trial``; methods with the same clients at work share it."""
    return _schedule(trial.settings, rounds_of(trial, trial.updates), trial.delays, trial.task.trace)


@lru_cache(maxsize=1024)
def _schedule(settings: FederatedSettings, rounds: int, delays: str, trace: Path | None) -> Schedule:
    durations = delay_model(delays, settings.clients, rng_of(settings.seed, SPEEDS), trace)
    server = Simulator(settings, RULES["fedavg"](), _no_training, durations, torch.zeros(1))
    events = server.run(rounds)
    answers = [0] * settings.clients
    for event in events:
        if event.kind == "arrive" and event.client is not None:
            answers[event.client] += 1
    times = [0.0, *(event.time for event in events if event.kind == "update")]
    classes = durations.classes if isinstance(durations, SpeedClasses) else None
    speeds = [CLASSES[i] for i in classes] if classes else [NO_CLASS] * settings.clients
    return Schedule(times, answers, speeds, staleness(events))


def _no_training(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
    return [(torch.zeros(1), 1) for _ in clients]


def horizon(trials: Sequence[Trial]) -> float:
    """The virtual time at which the first run of an asynchronous method ends; without one, the first of all."""
    asynchronous = [trial for trial in trials if METHODS[trial.method].waits == "no"]
    return min(schedule(trial).times[rounds_of(trial, trial.updates)] for trial in asynchronous or trials)


def retimed(curve: Curve, trial: Trial) -> Curve:
    """The curve of a method that waits, with the times of ``trial``'s delays, which affect nothing else."""
    times = schedule(trial).times
    return {**curve, "times": [times[rounds] for rounds in curve["rounds"]]}


def participation(trials: Sequence[Trial]) -> Participation:
    """Of the trials of the first method of METHODS that is among ``trials``: an asynchronous one, if there is any."""
    method = min((trial.method for trial in trials), key=[*METHODS].index)
    schedules = [*{trial.seed: schedule(trial) for trial in trials if trial.method == method}.values()]
    answered: dict[str, list[int]] = {}
    for times in schedules:
        for answers, speed in zip(times.answers, times.speeds, strict=True):
            counts = answered.setdefault(speed, [0, 0])
            counts[0] += answers > 0
            counts[1] += 1
    return {
        "method": method,
        "ends": [times.times[-1] for times in schedules],
        "answered": {speed: answered[speed] for speed in (*CLASSES, NO_CLASS) if speed in answered},
        "oldest": max(max(times.staleness) for times in schedules),
    }
