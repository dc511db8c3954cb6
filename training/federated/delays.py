"""Durations of client trainings, in virtual time: the official delay models of FADAS, a heavy tail, and a trace."""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np

MILD = ((1.0, 2.0), (3.0, 5.0), (5.0, 8.0))
LARGE = ((1.0, 2.0), (3.0, 5.0), (50.0, 80.0))


class Delays(Protocol):
    def duration(self, client: int, turn: int, rng: np.random.Generator) -> float:
        """The duration of the ``turn``-th training of ``client``, from 0. Infinity: it never answers."""
        ...


@dataclass(frozen=True)
class SpeedClasses:
    """Each training of client i takes U(ranges[classes[i]])."""

    classes: Sequence[int]
    ranges: Sequence[tuple[float, float]] = MILD

    def duration(self, client: int, turn: int, rng: np.random.Generator) -> float:
        return float(rng.uniform(*self.ranges[self.classes[client]]))


def official(clients: int, ranges: Sequence[tuple[float, float]], rng: np.random.Generator) -> SpeedClasses:
    """Speed classes as in the official code: the largest share of a Dirichlet(3, 2, 1) for each client."""
    return SpeedClasses(rng.dirichlet((3.0, 2.0, 1.0), clients).argmax(1).tolist(), ranges)


@dataclass(frozen=True)
class LogNormal:
    """Each training of client i takes medians[i]·exp(sigma·Z), Z standard normal."""

    medians: Sequence[float]
    sigma: float = 1.0

    def duration(self, client: int, turn: int, rng: np.random.Generator) -> float:
        return float(self.medians[client] * rng.lognormal(0.0, self.sigma))


def heavy_tailed(clients: int, rng: np.random.Generator) -> LogNormal:
    """Log-normal medians and durations: slow clients, and trainings of fast clients that take long, without a bound.

    Reconstruction: the paper has bounded, uniform durations only.
    """
    return LogNormal(rng.lognormal(0.0, 1.0, clients).tolist())


@dataclass(frozen=True)
class Trace:
    """``durations[client]``: of its trainings, in order; cyclic."""

    durations: Sequence[Sequence[float]]

    def duration(self, client: int, turn: int, rng: np.random.Generator) -> float:
        return self.durations[client][turn % len(self.durations[client])]


def read_trace(path: Path, clients: int) -> Trace:
    """A CSV with the columns client (from 0) and duration; "inf" is an answer that never came.

    Raises ValueError for rows that are not that, and where one of ``clients`` has none.
    """
    durations: dict[int, list[float]] = defaultdict(list)
    with path.open(newline="") as file:
        rows = csv.DictReader(file)
        if not {"client", "duration"} <= set(rows.fieldnames or ()):
            raise ValueError(f"{path}: the first line must name the columns client and duration")
        for row in rows:
            try:
                client, duration = int(row["client"]), float(row["duration"])
            except (TypeError, ValueError):
                raise ValueError(f"{path}, line {rows.line_num}: a whole number and a number are needed") from None
            if math.isnan(duration) or duration <= 0:
                raise ValueError(f"{path}, line {rows.line_num}: durations must be above 0")
            durations[client].append(duration)
    missing = [client for client in range(clients) if client not in durations]
    if missing:
        raise ValueError(f"{path} has no duration of client {missing[0]} ({len(missing)} of {clients} are missing)")
    return Trace([durations[client] for client in range(clients)])


# By name: from the number of clients and a generator, which draws their speeds.
DELAYS: dict[str, Callable[..., Delays]] = {
    "mild": partial(official, ranges=MILD),
    "large": partial(official, ranges=LARGE),
    "heavy-tailed": heavy_tailed,
}
TRACE = "trace"


def delay_model(name: str, clients: int, rng: np.random.Generator, trace: Path | None = None) -> Delays:
    """The model of DELAYS by ``name``, or the durations of the file ``trace``."""
    if name == TRACE and trace is not None:
        return read_trace(trace, clients)
    return DELAYS[name](clients=clients, rng=rng)
