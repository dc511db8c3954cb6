"""A federated run on a task: the accuracy curve of a method, a server step, a delay model and a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self, TypeAlias, TypedDict

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.func import functional_call

from training.federated.buffered import Event, FederatedSettings, explain_divergence
from training.federated.clients import LocalSGD
from training.federated.delays import Delays, delay_model
from training.federated.partition import dirichlet
from training.federated.rules import Layout, make_rule
from training.federated.simulator import Simulator, Train
from training.federated.stack import exchanged_tensors
from training.run import JobConfig, rng_of
from training.workers import one_thread, stop_if_asked

# Streams of random numbers. SPLIT is of seed 0; the others are of a trial's seed, as 0 and 1 of buffered.py are.
SPLIT, SPEEDS, MODEL, PARTITION = 0, 2, 3, 4
ATTEMPTS = 1000  # at a partition that gives every client enough examples


@dataclass(frozen=True)
class FederatedMethod:
    """A ``rule`` of RULES and the server steps to try; ``waits``: the clients at work and the answers of a round.

    "no": ``concurrency`` clients at work, M answers (or ``buffer``). "for few": M clients and all their answers. "for
    all": ``concurrency`` clients and all their answers.
    """

    rule: str
    steps: tuple[float, ...]
    waits: Literal["no", "for few", "for all"] = "no"
    buffer: int | None = None


ADAPTIVE, PLAIN = (5e-4, 1e-3, 2e-3, 4e-3), (0.25, 0.5, 1.0)
LARGER_ADAPTIVE, LARGER_PLAIN = (2e-3, 4e-3, 8e-3, 1.6e-2), (0.5, 1.0, 2.0)
METHODS = {
    "FADAS": FederatedMethod("fadas", ADAPTIVE),
    "FADAS, delay-adaptive": FederatedMethod("fadas-divide", (3e-3, 6e-3, 1.2e-2)),
    "FedBuff": FederatedMethod("fedbuff", PLAIN),
    "FedAsync": FederatedMethod("fedasync", (0.1, 0.3, 0.6, 1.0), buffer=1),
    "CA2FL": FederatedMethod("ca2fl", PLAIN),
    "FedAdam": FederatedMethod("fedadam", LARGER_ADAPTIVE, "for few"),
    "FedAMS": FederatedMethod("fedams", LARGER_ADAPTIVE, "for few"),
    "FedAvg": FederatedMethod("fedavg", PLAIN, "for few"),
    "FedAMS, all places": FederatedMethod("fedams", LARGER_ADAPTIVE, "for all"),
    "FedAvg, all places": FederatedMethod("fedavg", LARGER_PLAIN, "for all"),
}


class Examples(NamedTuple):
    """``inputs`` [n, ...] of a task's network; ``labels`` [n], int64."""

    inputs: Tensor
    labels: Tensor

    def take(self, rows: np.ndarray) -> Examples:
        picked = torch.from_numpy(rows)
        return Examples(self.inputs[picked], self.labels[picked])


Splits: TypeAlias = Mapping[str, Examples]
""" "train", which the clients have, "development", which selects the server's steps, and "test"."""


class FederatedTask(JobConfig):
    """Clients and local training; a subclass has a network and examples."""

    evaluation_batch: ClassVar[int] = 2000

    clients: int = Field(50, ge=1, description="Clients in total.")
    concurrency: int = Field(25, ge=1, description="Clients at work at once.")
    buffer_size: int = Field(5, ge=1, description="Client updates of one step of the server.")
    alpha: float = Field(
        0.3,
        gt=0,
        allow_inf_nan=False,
        description="Of the Dirichlet partition: smaller makes clients' data differ more.",
    )
    evaluate_every: int = Field(50, ge=1, description="Client updates between two evaluations.")
    local_steps: int = Field(10, ge=1, description="K: steps of SGD of a client update.")
    batch: int = Field(20, ge=1, description="Examples of a step of SGD at a client.")
    local_lr: float = Field(0.1, gt=0, allow_inf_nan=False, description="Learning rate of SGD at a client.")
    weight_decay: float = Field(1e-4, ge=0, allow_inf_nan=False, description="Weight decay of SGD at a client.")
    trace: Path | None = Field(
        None, description="Durations of the delay model `trace`: a CSV with the columns client (from 0) and duration."
    )

    @model_validator(mode="after")
    def _enough_clients(self) -> Self:
        if self.concurrency > self.clients:
            raise ValueError(f"concurrency {self.concurrency} is more than the {self.clients} clients there are")
        return self

    @property
    def smallest_client(self) -> int:
        """The examples that every client has at least."""
        return self.batch

    def network(self) -> nn.Module:
        """From inputs to logits, with the initial parameters that torch's generator draws."""
        raise NotImplementedError

    def splits(self) -> Splits:
        """The same for all seeds."""
        raise NotImplementedError


@dataclass(frozen=True)
class Trial:
    """``updates``: client updates of the run. ``on``: the examples of the evaluation.

    ``also_after``: server rounds after which the model is evaluated too.
    """

    task: FederatedTask
    method: str
    step: float
    delays: str
    seed: int
    updates: int
    on: Literal["development", "test"] = "test"
    also_after: tuple[int, ...] = ()

    @property
    def settings(self) -> FederatedSettings:
        return settings(self.task, METHODS[self.method], self.seed)

    def delay_model(self) -> Delays:
        return delay_model(self.delays, self.task.clients, rng_of(self.seed, SPEEDS), self.task.trace)


def settings(task: FederatedTask, method: FederatedMethod, seed: int) -> FederatedSettings:
    concurrency, size = task.concurrency, method.buffer or task.buffer_size
    refill: Literal["arrival", "round"] = "arrival"
    if method.waits != "no":
        concurrency = size = task.buffer_size if method.waits == "for few" else task.concurrency
        refill = "round"
    return FederatedSettings(
        clients=task.clients,
        concurrency=concurrency,
        buffer_size=size,
        refill=refill,
        together="all",
        seed=seed,
    )


def local_sgd(task: FederatedTask, train: Examples, seed: int) -> tuple[LocalSGD, Tensor]:
    """The clients of a seed, and the initial parameters [P] of all methods."""
    rng = rng_of(seed, PARTITION)
    labels, minimum = train.labels.numpy(), task.smallest_client
    parts = dirichlet(labels, task.clients, task.alpha, rng, minimum=minimum, attempts=ATTEMPTS)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_of(seed, MODEL).integers(2**31)))
        model = task.network()
    clients = LocalSGD(
        model,
        train.inputs,
        train.labels,
        parts,
        steps=task.local_steps,
        batch=task.batch,
        lr=task.local_lr,
        weight_decay=task.weight_decay,
    )
    return clients, clients.start


def simulator(trial: Trial, train: Train, params: Tensor) -> Simulator:
    server_rule = make_rule(METHODS[trial.method].rule, trial.step, trial.task.clients)
    return Simulator(trial.settings, server_rule, train, trial.delay_model(), params)


class Curve(TypedDict):
    """``accuracy`` after ``rounds`` of the server, at virtual ``times``.

    ``regular``: indices of the evaluations after each ``evaluate_every`` client updates; the others are ``also_after``.
    ``updates``: client updates of the regular ones. ``staleness``: of the oldest update of each server round.
    ``bound``: rounds in which it lowered the server's step.
    """

    rounds: list[int]
    times: list[float]
    accuracy: list[float]
    regular: list[int]
    updates: list[int]
    staleness: list[int]
    bound: int


def curve(trial: Trial) -> Curve:
    """Evaluated after each ``evaluate_every`` client updates, rounded up to server rounds, and ``also_after``.

    Raises ValueError if clients diverge, and Cancelled in a worker whose run has ended.
    """
    subject = f"{trial.method} with the step {trial.step:g}, {trial.delays} delays, seed {trial.seed}"
    with one_thread(), explain_divergence(subject, "local_lr or the server's step"):
        data = trial.task.splits()
        clients, params = local_sgd(trial.task, data["train"], trial.seed)
        server = simulator(trial, clients, params)
        score = evaluator(trial.task, clients.model, data[trial.on])
        regular_rounds = {0, *(rounds_of(trial, goal) for goal in goals(trial))}
        rounds, times, accuracies, regular = [0], [0.0], [score(params)], [0]
        events: list[Event] = []
        for goal in sorted(regular_rounds.union(trial.also_after) - {0}):
            stop_if_asked()
            events += server.run(goal)
            if goal in regular_rounds:
                regular.append(len(rounds))
            rounds.append(server.round)
            times.append(server.clock)
            accuracies.append(score(server.params))
        return {
            "rounds": rounds,
            "times": times,
            "accuracy": accuracies,
            "regular": regular,
            "updates": [rounds[i] * server.settings.buffer_size for i in regular],
            "staleness": staleness(events),
            "bound": server.state.get("bound", 0),
        }


def goals(trial: Trial) -> range:
    """Client updates after which the model is evaluated."""
    every = trial.task.evaluate_every
    return range(every, trial.updates + 1, every)


def rounds_of(trial: Trial, updates: int) -> int:
    """Server rounds of so many client updates, rounded up."""
    return -(-updates // trial.settings.buffer_size)


def evaluator(task: FederatedTask, model: nn.Module, data: Examples) -> Callable[[Tensor], float]:
    layout = Layout.of(exchanged_tensors(model))

    def score(params: Tensor) -> float:
        state = layout.unpack(params)
        return accuracy(lambda inputs: functional_call(model, state, (inputs,)), data, task.evaluation_batch)

    return score


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], examples: Examples, batch: int) -> float:
    """The share of examples that ``model`` classifies correctly."""
    correct = 0
    for inputs, labels in zip(examples.inputs.split(batch), examples.labels.split(batch), strict=True):
        correct += int((model(inputs).argmax(1) == labels).sum())
    return correct / len(examples.labels)


def staleness(events: Sequence[Event]) -> list[int]:
    """τ_max of each server round."""
    oldest, versions = [], []
    for event in events:
        if event.kind == "arrive":
            versions.append(event.version)
        elif event.kind == "update":
            oldest.append(event.version - 1 - min(versions))
            versions = []
    return oldest
