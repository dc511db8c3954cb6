"""Asynchronous federated training on a virtual clock: equal settings give equal events and equal bits.

Clients train from the model that the server had when they were started, and Δ is taken against that model, as in the
paper of FADAS. (Its code starts most clients from the previous model, and takes Δ against the current one.)

The order of one instant: answers enter the buffer in the order in which their clients were started, the rule is applied
each time that the buffer is full, and then free places are filled from the newest model. So equally fast clients are in
step, which is synchronous training.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from training.federated.buffered import BufferedServer, Event, FederatedSettings, ServerSnapshot
from training.federated.delays import Delays
from training.federated.rules import Rule


class Train(Protocol):
    def __call__(self, params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> Sequence[tuple[Tensor, int]]:
        """Trains ``clients`` from ``params`` [P]: Δ [P] and the number of examples of each client.

        With ``FederatedSettings.together="all"`` ``params`` is [n, P], the start of each client.
        """
        ...


class RunningClient(NamedTuple):
    """A client at work. The order is by when it ends, and then by the ``number`` of its training."""

    ends: float
    number: int
    client: int
    version: int
    late: bool


class SimulatorSnapshot(ServerSnapshot):
    clock: float
    turns: list[int]
    running: list[tuple[float, int, int, int, bool]]
    answers: dict[int, tuple[Tensor, int]]


class Simulator(BufferedServer):
    """``advance`` handles one instant. ``snapshot`` is the complete state between two instants.

    Attributes, beside those of the server: the virtual time ``clock``; ``running``: a heap of clients at work.
    """

    def __init__(self, settings: FederatedSettings, rule: Rule, train: Train, delays: Delays, params: Tensor) -> None:
        super().__init__(settings, rule, params)
        self.train, self.delays = train, delays
        self.clock = 0.0
        self.turns = [0] * settings.clients
        self.running: list[RunningClient] = []
        self.answers: dict[int, tuple[Tensor, int]] = {}  # by number: trained, not yet arrived

    def run(self, rounds: int) -> list[Event]:
        """Continues to ``rounds`` server rounds, or more if the last instant has several.

        Raises RuntimeError as ``advance``.
        """
        events = []
        while self.round < rounds:
            events += self.advance()
        return events

    def advance(self) -> list[Event]:
        """The events of the next instant. Raises RuntimeError if there is none, and if only failures arrive."""
        if not self.started:
            return self._fill()
        self.clock = self.running[0].ends
        if math.isinf(self.clock):
            raise RuntimeError("no client at work will ever answer: set a timeout")
        before, events = self.round, []
        while self.running and self.running[0].ends == self.clock:
            events += self._arrive()
        if self.settings.refill == "arrival" or self.round > before or not self.running:
            events += self._fill()
        self.drop_models(running.version for running in self.running)
        return events

    def _fill(self) -> list[Event]:
        busy = {running.client for running in self.running}
        events = []
        while len(busy) < self.settings.concurrency:
            number = self.started
            client, rng = self.draw_client([client for client in range(self.settings.clients) if client not in busy])
            duration = self.delays.duration(client, self.turns[client], rng)
            late = duration > self.settings.timeout
            ends = self.clock + min(duration, self.settings.timeout)
            heapq.heappush(self.running, RunningClient(ends, number, client, self.round, late))
            busy.add(client)
            self.turns[client] += 1
            events.append(Event(self.clock, "start", client, self.round))
        return events

    def _arrive(self) -> list[Event]:
        running = self.running[0]
        if running.late:
            heapq.heappop(self.running)
            self.count_failure(f"no answer within {self.settings.timeout:g}")
            return [Event(self.clock, "late", running.client, running.version)]
        if running.number not in self.answers:
            self._train(running.version)
        heapq.heappop(self.running)
        delta, examples = self.answers.pop(running.number)
        events = self.receive(self.clock, running.client, running.version, delta, examples)
        if events[0].kind == "reject":
            self.count_failure(events[0].note)
        return events

    def _train(self, version: int) -> None:
        """Trains in one call all clients that started from this model, or all; never before an answer is due."""
        mixed = self.settings.together == "all"
        waiting = [running for running in self.running if not running.late and running.number not in self.answers]
        cohort = [running for running in waiting if mixed or running.version == version]
        seeds = [self.training_seed(running.number) for running in cohort]
        starts = torch.stack([self.models[running.version] for running in cohort]) if mixed else self.models[version]
        trained = self.train(starts, [running.client for running in cohort], seeds)
        self.answers |= {running.number: answer for running, answer in zip(cohort, trained, strict=True)}

    def snapshot(self) -> SimulatorSnapshot:
        """Tensors, numbers, lists and dicts, as `Run.checkpoint` takes them."""
        return {
            **self.server_snapshot(),
            "clock": self.clock,
            "turns": list(self.turns),
            "running": [(*running,) for running in self.running],  # plain tuples: checkpoints hold no classes
            "answers": dict(self.answers),
        }

    def restore(self, snapshot: SimulatorSnapshot) -> None:
        """Continues from a snapshot of a simulator with the same arguments."""
        self.restore_server(snapshot)
        self.clock = snapshot["clock"]
        self.turns = list(snapshot["turns"])
        self.running = [RunningClient(*running) for running in snapshot["running"]]
        self.answers = dict(snapshot["answers"])
