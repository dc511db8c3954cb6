"""The core that the simulator and the Flower server share: a buffer of client updates, and the rule that empties it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypedDict

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from training.federated.rules import Rule, RuleState, Update, rejection
from training.run import derive_seed, rng_of

STARTS, TRAINING = range(2)  # streams of random numbers
MAX_FAILURES = 100  # at least so many answers in a row must fail before the run ends


class UnusableAnswers(RuntimeError):
    """Only answers arrive that are late or rejected, so that the server would never finish a round."""


class FederatedSettings(BaseModel):
    """``clients`` in total, ``concurrency`` of them at work; the rule is applied to ``buffer_size`` updates.

    ``refill``: a free place is filled at once ("arrival", as in FedBuff) or after the next server round ("round", as in
    the official code of FADAS). ``timeout``: a client that takes longer is abandoned (simulator: virtual time; Flower:
    seconds). ``max_staleness``: older updates are rejected, in server rounds. ``together``: the clients that one call
    of the simulator trains: those that started from one model, or all at work that are not trained yet.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    clients: int = Field(50, ge=1)
    concurrency: int = Field(25, ge=1)
    buffer_size: int = Field(5, ge=1)
    refill: Literal["arrival", "round"] = "arrival"
    timeout: float = Field(math.inf, gt=0)
    max_staleness: float = Field(math.inf, ge=0)
    together: Literal["model", "all"] = "model"
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _enough_clients(self) -> FederatedSettings:
        if self.concurrency > self.clients:
            raise ValueError(f"concurrency {self.concurrency} is more than the {self.clients} clients there are")
        if self.refill == "round" and self.buffer_size > self.concurrency:
            raise ValueError(f"buffer_size {self.buffer_size} is more than the {self.concurrency} clients at work")
        return self


class Event(NamedTuple):
    """``kind``: start, arrive, reject, late or update. ``version``: the round of the model that it concerns."""

    time: float
    kind: str
    client: int | None
    version: int
    note: str = ""


@contextmanager
def explain_divergence(subject: str, remedy: str) -> Iterator[None]:
    """Turns UnusableAnswers of a simulated run into a ValueError that names the run and what to change."""
    try:
        yield
    except UnusableAnswers as error:
        raise ValueError(f"{subject}: {error}; lower {remedy}") from error


class ServerNumbers(TypedDict):
    round: int
    started: int


class ServerSnapshot(TypedDict):
    """Tensors, numbers, lists and dicts, as checkpoints hold them."""

    numbers: ServerNumbers
    models: dict[int, Tensor]
    buffer: list[dict[str, object]]
    state: RuleState


class BufferedServer:
    """A model, the state of its rule, and the updates that wait for the next server round.

    Attributes: ``params`` [P] after ``round`` server rounds; ``state`` of the rule; ``started``: trainings so far;
    ``models`` by round: those from which a client at work started, and the newest; ``failures``: answers in a row that
    were late or rejected.
    """

    def __init__(self, settings: FederatedSettings, rule: Rule, params: Tensor) -> None:
        self.settings, self.rule = settings, rule
        self.params, self.state = params, rule.init(params)
        self.round = self.started = self.failures = 0
        self.models = {0: params}
        self.buffer: list[Update] = []

    def draw_client(self, free: Sequence[int]) -> tuple[int, np.random.Generator]:
        """One of the ``free`` clients for the next training, and the generator that drew it."""
        rng = rng_of(self.settings.seed, STARTS, self.started)
        self.started += 1
        return free[int(rng.integers(len(free)))], rng

    def training_seed(self, number: int) -> int:
        """The seed of the ``number``-th training."""
        return derive_seed(self.settings.seed, TRAINING, number)

    def receive(self, time: float, client: int, version: int, delta: Tensor, examples: int) -> list[Event]:
        """Buffers an update and applies the rule if the buffer is full: "arrive" and "update" events, or a "reject"."""
        update = Update(client, delta, self.models[version], self.round - version, examples)
        reason = rejection(update, self.params, self.settings.max_staleness)
        if reason is not None:
            return [Event(time, "reject", client, version, reason)]
        self.failures = 0
        self.buffer.append(update)
        events = [Event(time, "arrive", client, version)]
        if len(self.buffer) >= self.settings.buffer_size:  # more: restored with a smaller buffer_size
            self.state, self.params = self.rule.step(self.state, self.params, self.buffer)
            self.buffer = []
            self.round += 1
            self.models[self.round] = self.params
            events.append(Event(time, "update", None, self.round))
        return events

    def count_failure(self, reason: str) -> None:
        """Counts an answer that is late or rejected. Raises UnusableAnswers where too many come in a row."""
        self.failures += 1
        if self.failures >= max(MAX_FAILURES, 2 * self.settings.concurrency):
            raise UnusableAnswers(f"{self.failures} answers in a row were unusable, the last: {reason}")

    def drop_models(self, versions: Iterable[int]) -> None:
        """Keeps the models of ``versions``, from which clients at work started, and the newest."""
        needed = {*versions, self.round}
        self.models = {version: model for version, model in self.models.items() if version in needed}

    def server_snapshot(self) -> ServerSnapshot:
        return {
            "numbers": {"round": self.round, "started": self.started},
            "models": dict(self.models),
            "buffer": [dict(vars(update)) for update in self.buffer],
            "state": dict(self.state),
        }

    def restore_server(self, snapshot: ServerSnapshot) -> None:
        """Continues from a snapshot of a server with the same arguments."""
        self.round, self.started = snapshot["numbers"]["round"], snapshot["numbers"]["started"]
        self.models, self.state = dict(snapshot["models"]), dict(snapshot["state"])
        self.params = self.models[self.round]
        self.buffer = [Update(**fields) for fields in snapshot["buffer"]]  # type: ignore[arg-type]
