"""One federated run on Fashion-MNIST: a method, a server step, a delay model and a seed give a curve of accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from training.fashion_mnist import FOLDER
from training.federated.clients import LocalSGD
from training.federated.delays import LARGE, MILD, official
from training.federated.fashion import MODELS, Examples, accuracy, read
from training.federated.partition import dirichlet
from training.federated.rules import RULES, Layout, Rule
from training.federated.simulator import Event, Settings, Simulator, Train
from training.run import JobConfig, rng_of

DELAYS = {"mild": MILD, "large": LARGE}
SPLIT, PARTITION, SPEEDS, MODEL = range(4)  # streams of random numbers


@dataclass(frozen=True)
class Method:
    """``rule`` of RULES and the server steps to try; ``waits``: who is at work and how many answers make a round.

    "no": all places, M answers (``buffer`` instead, if given). "for few": M clients, all of them. "for all": all places
    and their answers, so that a round takes more of them.
    """

    rule: str
    steps: tuple[float, ...]
    waits: Literal["no", "for few", "for all"] = "no"
    buffer: int | None = None


ADAPTIVE, PLAIN = (5e-4, 1e-3, 2e-3, 4e-3), (0.25, 0.5, 1.0)
LARGER_ADAPTIVE, LARGER_PLAIN = (2e-3, 4e-3, 8e-3, 1.6e-2), (0.5, 1.0, 2.0)
METHODS = {
    "FADAS": Method("fadas", ADAPTIVE),
    "FADAS, delay-adaptive": Method("fadas-divide", (3e-3, 6e-3, 1.2e-2)),
    "FedBuff": Method("fedbuff", PLAIN),
    "FedAsync": Method("fedasync", (0.1, 0.3, 0.6, 1.0), buffer=1),
    "CA2FL": Method("ca2fl", PLAIN),
    "FedAdam": Method("fedadam", LARGER_ADAPTIVE, "for few"),
    "FedAMS": Method("fedams", LARGER_ADAPTIVE, "for few"),
    "FedAvg": Method("fedavg", PLAIN, "for few"),
    "FedAMS, all places": Method("fedams", LARGER_ADAPTIVE, "for all"),
    "FedAvg, all places": Method("fedavg", LARGER_PLAIN, "for all"),
}


class Task(JobConfig):
    """Who learns what. ``data``: the folder of Fashion-MNIST's four files. ``hidden``: the model's width.

    ``alpha`` of the Dirichlet partition. ``development``: training examples that no client has, to choose steps on.
    ``evaluate_every``: client updates. ``local_steps`` K of SGD on ``batch`` examples each make a client update.
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
    """``updates``: of clients, however many make a round. ``on``: the examples that accuracy is of."""

    task: Task
    method: str
    step: float
    delays: str
    seed: int
    updates: int
    on: Literal["development", "test"] = "test"


def settings(task: Task, method: Method, seed: int) -> Settings:
    places, size = task.concurrency, method.buffer or task.buffer_size
    refill: Literal["arrival", "round"] = "arrival"
    if method.waits != "no":
        places = size = task.buffer_size if method.waits == "for few" else task.concurrency
        refill = "round"
    sizes = {"clients": task.clients, "concurrency": places, "buffer_size": size}
    return Settings(**sizes, refill=refill, together="all", seed=seed)


def rule(task: Task, method: Method, step: float) -> Rule:
    if method.rule == "fedasync":
        return RULES["fedasync"](mix=step, power=0.5)
    return RULES[method.rule](lr=step, **({"clients": task.clients} if method.rule == "ca2fl" else {}))


@lru_cache(maxsize=1)
def examples(folder: Path, development: int) -> dict[str, Examples]:
    """ "train", "development", cut from the training examples by one shuffle for all seeds, and "test"."""
    found = read(folder)
    rows = rng_of(0, SPLIT).permutation(len(found["train"].labels))
    parts = {"development": rows[:development], "train": rows[development:]}
    return {name: found["train"].take(part) for name, part in parts.items()} | {"test": found["test"]}


def local_sgd(task: Task, train: Examples, seed: int) -> tuple[LocalSGD, Tensor]:
    """The clients of a seed, and the parameters [P] that all methods start from."""
    parts = dirichlet(train.labels.numpy(), task.clients, task.alpha, rng_of(seed, PARTITION), least=task.batch)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_of(seed, MODEL).integers(2**31)))
        model = MODELS[task.model](task.hidden)
    how: dict[str, Any] = {
        "steps": task.local_steps,
        "batch": task.batch,
        "lr": task.local_lr,
        "weight_decay": task.weight_decay,
    }
    clients = LocalSGD(model, train.images, train.labels, parts, **how)
    return clients, nn.utils.parameters_to_vector(model.parameters()).detach()


def simulator(trial: Trial, train: Train, params: Tensor) -> Simulator:
    task, method = trial.task, METHODS[trial.method]
    delays = official(task.clients, DELAYS[trial.delays], rng_of(trial.seed, SPEEDS))
    return Simulator(settings(task, method, trial.seed), rule(task, method, trial.step), train, delays, params)


def curve(trial: Trial) -> dict[str, Any]:
    """Accuracy after ``updates`` of clients, by then or just after, at virtual ``times``.

    ``staleness``: of the oldest update of each server round. ``bound``: rounds in which it lowered the server's step.
    """
    with one_thread():
        data = examples(trial.task.data, trial.task.development)
        clients, params = local_sgd(trial.task, data["train"], trial.seed)
        ours = simulator(trial, clients, params)
        layout = Layout.of(dict(clients.model.named_parameters()))
        size, score = ours.settings.buffer_size, evaluator(clients.model, layout, data[trial.on])
        found: dict[str, Any] = {"updates": [0], "times": [0.0], "accuracy": [score(params)]}
        events: list[Event] = []
        for goal in goals(trial):
            events += ours.run(-(-goal // size))
            found["updates"].append(ours.round * size)
            found["times"].append(ours.clock)
            found["accuracy"].append(score(ours.params))
        return found | {"staleness": staleness(events), "bound": ours.state.get("bound", 0)}


def goals(trial: Trial) -> range:
    every = trial.task.evaluate_every
    return range(every, trial.updates + 1, every)


def retimed(found: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """The curve of a method that waits, with the times that ``trial``'s delays give it: delays decide nothing else."""

    def idle(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        return [(torch.zeros(1), 1) for _ in clients]

    ours = simulator(trial, idle, torch.zeros(1))
    times = [0.0]
    for goal in goals(trial):
        ours.run(-(-goal // ours.settings.buffer_size))
        times.append(ours.clock)
    return found | {"times": times}


def evaluator(model: nn.Module, layout: Layout, data: Examples) -> Callable[[Tensor], float]:
    return lambda params: accuracy(lambda images: functional_call(model, layout.unpack(params), (images,)), data)


def staleness(events: Sequence[Event]) -> list[int]:
    """τ_max of each server round."""
    found, versions = [], []
    for event in events:
        if event.kind == "arrive":
            versions.append(event.version)
        elif event.kind == "update":
            found.append(event.version - 1 - min(versions))
            versions = []
    return found


@contextmanager
def one_thread() -> Iterator[None]:
    """The bits of a sum depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
