"""Asynchronous federated training on a virtual clock: the same settings give the same events and the same bits.

Clients train from the model that the server had when they were started, and Δ is taken against that model, as in the
paper of FADAS. (Its code starts most clients from the model before, and takes Δ against the current one.)

What happens at one instant happens in this order: answers enter the buffer in the order in which their clients were
started, the rule is applied each time that the buffer is full, and then free places are filled from the newest model.
So clients that are all equally fast are in step, which is synchronous training.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from training.federated.delays import Delays
from training.federated.rules import Rule, Update, rejection
from training.run import derive_seed, rng_of

STARTS, TRAINING = range(2)  # streams of random numbers


class Settings(BaseModel):
    """``clients`` there are, ``concurrency`` of them at work at once; the rule is applied to ``buffer_size`` updates.

    ``refill``: a free place is filled at once ("arrival", FedBuff's way) or after the next server round ("round", what
    the official code of FADAS does). ``timeout``: who takes longer, in virtual time, is given up.
    ``max_staleness``: older updates are rejected, in server rounds. ``together``: who is trained in one call, when the
    first answer is due: the clients that started from one model, or all at work that have not been trained.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clients: int = Field(50, ge=1)
    concurrency: int = Field(25, ge=1)
    buffer_size: int = Field(5, ge=1)
    refill: Literal["arrival", "round"] = "arrival"
    timeout: float = Field(math.inf, gt=0)
    max_staleness: float = Field(math.inf, ge=0)
    together: Literal["model", "all"] = "model"
    seed: int = 0

    @model_validator(mode="after")
    def _enough(self) -> Settings:
        if self.concurrency > self.clients:
            raise ValueError(f"concurrency {self.concurrency} is more than the {self.clients} clients there are")
        if self.refill == "round" and self.buffer_size > self.concurrency:
            raise ValueError(f"buffer_size {self.buffer_size} is more than the {self.concurrency} clients at work")
        return self


class Train(Protocol):
    def __call__(self, params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> Sequence[tuple[Tensor, int]]:
        """Train ``clients``, all from ``params`` [P]. Gives Δ [P] and the number of examples of each.

        With ``Settings.together="all"`` ``params`` is [n, P], the start of each.
        """
        ...


class Event(NamedTuple):
    """``kind``: start, arrive, reject, late or update. ``version``: the round of the model that it concerns."""

    time: float
    kind: str
    client: int | None
    version: int
    note: str = ""


class Job(NamedTuple):
    """A client at work. Jobs are ordered by when they end, and then by when they were started."""

    ends: float
    number: int
    client: int
    version: int
    late: bool


class Simulator:
    """``advance`` handles one instant. ``snapshot`` is everything there is, between two instants.

    Attributes: ``params`` [P] after ``round`` server rounds, at virtual time ``clock``; ``state`` of the rule.
    """

    def __init__(self, settings: Settings, rule: Rule, train: Train, delays: Delays, params: Tensor) -> None:
        self.settings, self.rule, self.train, self.delays = settings, rule, train, delays
        self.params, self.state = params, rule.init(params)
        self.clock, self.round, self.started = 0.0, 0, 0
        self.turns = [0] * settings.clients
        self.jobs: list[Job] = []
        self.models = {0: params}  # by round, those that a client at work started from, and the newest
        self.answers: dict[int, tuple[Tensor, int]] = {}  # by job number: trained, not yet arrived
        self.buffer: list[Update] = []

    def run(self, rounds: int) -> list[Event]:
        """Go on until there have been ``rounds`` server rounds, or more if the last instant had several."""
        events = []
        while self.round < rounds:
            events += self.advance()
        return events

    def advance(self) -> list[Event]:
        """Everything that happens at the next instant. Raises RuntimeError if there is none."""
        if not self.started:
            return self._fill()
        self.clock = self.jobs[0].ends
        if math.isinf(self.clock):
            raise RuntimeError("no client at work will ever answer: set a timeout")
        before, events = self.round, []
        while self.jobs and self.jobs[0].ends == self.clock:
            events += self._arrive()
        if self.settings.refill == "arrival" or self.round > before or not self.jobs:
            events += self._fill()
        needed = {job.version for job in self.jobs} | {self.round}
        self.models = {version: model for version, model in self.models.items() if version in needed}
        return events

    def _fill(self) -> list[Event]:
        busy = {job.client for job in self.jobs}
        events = []
        while len(busy) < self.settings.concurrency:
            rng = rng_of(self.settings.seed, STARTS, self.started)
            free = [client for client in range(self.settings.clients) if client not in busy]
            client = free[rng.integers(len(free))]
            duration = self.delays.duration(client, self.turns[client], rng)
            late = duration > self.settings.timeout
            ends = self.clock + min(duration, self.settings.timeout)
            heapq.heappush(self.jobs, Job(ends, self.started, client, self.round, late))
            busy.add(client)
            self.turns[client] += 1
            self.started += 1
            events.append(Event(self.clock, "start", client, self.round))
        return events

    def _arrive(self) -> list[Event]:
        job = self.jobs[0]
        if job.late:
            heapq.heappop(self.jobs)
            return [Event(self.clock, "late", job.client, job.version)]
        if job.number not in self.answers:
            self._train(job.version)
        heapq.heappop(self.jobs)
        delta, examples = self.answers.pop(job.number)
        update = Update(job.client, delta, self.models[job.version], self.round - job.version, examples)
        reason = rejection(update, self.params, self.settings.max_staleness)
        if reason is not None:
            return [Event(self.clock, "reject", job.client, job.version, reason)]
        self.buffer.append(update)
        events = [Event(self.clock, "arrive", job.client, job.version)]
        if len(self.buffer) == self.settings.buffer_size:
            self.state, self.params = self.rule.step(self.state, self.params, self.buffer)
            self.buffer = []
            self.round += 1
            self.models[self.round] = self.params
            events.append(Event(self.clock, "update", None, self.round))
        return events

    def _train(self, version: int) -> None:
        """Train in one call all who started from this model, or all: no answer is asked for before one is due."""
        mixed = self.settings.together == "all"
        waiting = [job for job in self.jobs if not job.late and job.number not in self.answers]
        jobs = [job for job in waiting if mixed or job.version == version]
        seeds = [derive_seed(self.settings.seed, TRAINING, job.number) for job in jobs]
        starts = torch.stack([self.models[job.version] for job in jobs]) if mixed else self.models[version]
        trained = self.train(starts, [job.client for job in jobs], seeds)
        self.answers |= {job.number: answer for job, answer in zip(jobs, trained, strict=True)}

    def snapshot(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dicts, as `Run.checkpoint` takes them."""
        return {
            "numbers": {name: getattr(self, name) for name in ("clock", "round", "started")},
            "turns": list(self.turns),
            "jobs": [list(job) for job in self.jobs],
            "models": dict(self.models),
            "answers": {number: list(answer) for number, answer in self.answers.items()},
            "buffer": [dict(vars(update)) for update in self.buffer],
            "state": dict(self.state),
        }

    def restore(self, snapshot: dict[str, Any]) -> None:
        """Go on from a snapshot of a simulator that was made with the same arguments."""
        for name, value in snapshot["numbers"].items():
            setattr(self, name, value)
        self.turns = list(snapshot["turns"])
        self.jobs = [Job(*job) for job in snapshot["jobs"]]
        self.models = dict(snapshot["models"])
        self.params, self.state = self.models[self.round], dict(snapshot["state"])
        self.answers = {number: (delta, examples) for number, (delta, examples) in snapshot["answers"].items()}
        self.buffer = [Update(**each) for each in snapshot["buffer"]]
