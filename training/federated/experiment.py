"""A federated run on Fashion-MNIST: the accuracy curve of a method, a server step, a delay model and a seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypedDict

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from training.fashion_mnist import FOLDER
from training.federated.buffered import Event, FederatedSettings
from training.federated.clients import LocalSGD
from training.federated.delays import LARGE, MILD, official
from training.federated.fashion import MODELS, Examples, accuracy, read
from training.federated.partition import dirichlet
from training.federated.rules import RULES, Layout, Rule
from training.federated.simulator import Simulator, Train
from training.run import JobConfig, rng_of

DELAYS = {"mild": MILD, "large": LARGE}
SPLIT, PARTITION, SPEEDS, MODEL = range(4)  # streams of random numbers


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


class FederatedTask(JobConfig):
    """Clients, model and local training. ``data``: the folder of Fashion-MNIST's four files. ``hidden``: model width.

    ``alpha`` of the Dirichlet partition. ``development``: training examples that no client has, to select steps.
    ``evaluate_every``: client updates. A client update is ``local_steps`` K of SGD on ``batch`` examples.
    """

    data: Path = FOLDER
    model: Literal["mlp", "cnn"] = "mlp"
    hidden: int = Field(64, ge=4)
    clients: int = Field(50, ge=1)
    concurrency: int = Field(25, ge=1)
    buffer_size: int = Field(5, ge=1)
    alpha: float = Field(0.3, gt=0)
    development: int = Field(5000, ge=100, le=50_000)
    evaluate_every: int = Field(50, ge=1)
    local_steps: int = Field(10, ge=1)
    batch: int = Field(20, ge=1)
    local_lr: float = Field(0.1, gt=0)
    weight_decay: float = Field(1e-4, ge=0)


@dataclass(frozen=True)
class Trial:
    """``updates``: client updates of the run. ``on``: the examples of the evaluation."""

    task: FederatedTask
    method: str
    step: float
    delays: str
    seed: int
    updates: int
    on: Literal["development", "test"] = "test"


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


def rule(task: FederatedTask, method: FederatedMethod, step: float) -> Rule:
    if method.rule == "fedasync":
        return RULES["fedasync"](mix=step, power=0.5)
    return RULES[method.rule](lr=step, **({"clients": task.clients} if method.rule == "ca2fl" else {}))


@lru_cache(maxsize=1)
def examples(folder: Path, development: int) -> dict[str, Examples]:
    """ "train" and "development", split by one shuffle for all seeds, and "test"."""
    splits = read(folder)
    rows = rng_of(0, SPLIT).permutation(len(splits["train"].labels))
    parts = {"development": rows[:development], "train": rows[development:]}
    return {name: splits["train"].take(part) for name, part in parts.items()} | {"test": splits["test"]}


def local_sgd(task: FederatedTask, train: Examples, seed: int) -> tuple[LocalSGD, Tensor]:
    """The clients of a seed, and the initial parameters [P] of all methods."""
    parts = dirichlet(train.labels.numpy(), task.clients, task.alpha, rng_of(seed, PARTITION), minimum=task.batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_of(seed, MODEL).integers(2**31)))
        model = MODELS[task.model](task.hidden)
    clients = LocalSGD(
        model,
        train.images,
        train.labels,
        parts,
        steps=task.local_steps,
        batch=task.batch,
        lr=task.local_lr,
        weight_decay=task.weight_decay,
    )
    return clients, clients.start


def simulator(trial: Trial, train: Train, params: Tensor) -> Simulator:
    task, method = trial.task, METHODS[trial.method]
    delays = official(task.clients, DELAYS[trial.delays], rng_of(trial.seed, SPEEDS))
    return Simulator(settings(task, method, trial.seed), rule(task, method, trial.step), train, delays, params)


class Curve(TypedDict):
    """``accuracy`` after ``updates`` of clients, at virtual ``times``.

    ``staleness``: of the oldest update of each server round. ``bound``: rounds in which it lowered the server's step.
    """

    updates: list[int]
    times: list[float]
    accuracy: list[float]
    staleness: list[int]
    bound: int


def curve(trial: Trial) -> Curve:
    """Evaluated after each ``evaluate_every`` client updates, rounded up to server rounds."""
    with one_thread():
        data = examples(trial.task.data, trial.task.development)
        clients, params = local_sgd(trial.task, data["train"], trial.seed)
        server = simulator(trial, clients, params)
        layout = Layout.of(dict(clients.model.named_parameters()))
        size, score = server.settings.buffer_size, evaluator(clients.model, layout, data[trial.on])
        updates, times, accuracies = [0], [0.0], [score(params)]
        events: list[Event] = []
        for goal in goals(trial):
            events += server.run(-(-goal // size))
            updates.append(server.round * size)
            times.append(server.clock)
            accuracies.append(score(server.params))
        return {
            "updates": updates,
            "times": times,
            "accuracy": accuracies,
            "staleness": staleness(events),
            "bound": server.state.get("bound", 0),
        }


def goals(trial: Trial) -> range:
    every = trial.task.evaluate_every
    return range(every, trial.updates + 1, every)


def retimed(curve: Curve, trial: Trial) -> Curve:
    """The curve of a method that waits, with the times of ``trial``'s delays, which affect nothing else."""

    def idle(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        return [(torch.zeros(1), 1) for _ in clients]

    server = simulator(trial, idle, torch.zeros(1))
    times = [0.0]
    for goal in goals(trial):
        server.run(-(-goal // server.settings.buffer_size))
        times.append(server.clock)
    return {**curve, "times": times}


def evaluator(model: nn.Module, layout: Layout, data: Examples) -> Callable[[Tensor], float]:
    return lambda params: accuracy(lambda images: functional_call(model, layout.unpack(params), (images,)), data)


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


@contextmanager
def one_thread() -> Iterator[None]:
    """Limits torch to one thread: the bits of a sum depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
