"""The rules of `rules.py` in a Flower ServerApp: a server that does not wait, which flwr has no strategy for.

Clients are asked in the words of flwr's own strategies (Message API): a "train" message has the model under "arrays"
and "server-round" under "config"; the answer has the client's model in one ArrayRecord and "num-examples" in one
MetricRecord. So a ClientApp written for flwr's FedAvg needs no change. "config" also has "client", the client's number,
and "seed", one for each training.

What one pull brings counts as one instant of the simulator: answers enter the buffer in the order in which their
clients were started, the rule is applied each time that the buffer is full, then free places are filled. So the
simulator, given the same arrivals, ends with the same model.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from training.federated.rules import Layout, Rule, Update, rejection
from training.federated.simulator import STARTS, TRAINING, Event, Settings
from training.run import derive_seed, rng_of

log = logging.getLogger(__name__)

PATIENCE = 100  # at least so many answers in a row must fail before the run is given up


class Work(NamedTuple):
    """A client at work: the ``number``-th that was started, from the model of round ``version``."""

    number: int
    client: int
    version: int


class Asked(NamedTuple):
    work: Work
    deadline: float  # in seconds since the server began


class AsyncServer:
    """``AsyncServer(grid, model.state_dict(), rule, settings).run(rounds)`` gives the trained tensors.

    ``settings``: the simulator's, with ``timeout`` in seconds. ``on_round(round, tensors)`` is called after each server
    round, ``on_event`` with what happens (``Event.time`` in seconds). ``checkpoint``: a file that is rewritten after
    each round; where it is there already, the run goes on from it, and clients that were at work are asked again.
    ``poll``: seconds between two looks for answers.

    A client that was given up is asked again once its late answer has come and gone, or after a second ``timeout``. A
    client's number is that of its node, in the order in which nodes connected, lowest id first; a newcomer takes the
    place of a node that has gone. Raises ValueError for tensors that are not of one floating-point type, and for a
    checkpoint of another model, rule or number of clients.
    """

    def __init__(
        self,
        grid: Grid,
        tensors: Mapping[str, Tensor],
        rule: Rule,
        settings: Settings,
        *,
        checkpoint: Path | None = None,
        on_round: Callable[[int, dict[str, Tensor]], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        poll: float = 0.1,
    ) -> None:
        self.grid, self.rule, self.settings = grid, rule, settings
        self.checkpoint, self.on_round, self.on_event, self.poll = checkpoint, on_round, on_event, poll
        _check_types(tensors)
        self.layout = Layout.of(tensors)
        self.params = self.layout.pack(tensors)
        self.state = rule.init(self.params)
        self.round = self.started = self.failed = 0
        self.nodes: list[int] = []  # by client
        self.models = {0: self.params}  # by round, those that a client at work started from, and the newest
        self.buffer: list[Update] = []
        self.pending: list[Work] = []  # at work when the checkpoint was written
        self.asked: dict[str, Asked] = {}  # by message
        self.given_up: dict[str, Asked] = {}
        self.began, self.now = time.monotonic(), 0.0
        if checkpoint is not None and checkpoint.exists():
            self._restore(checkpoint)

    def run(self, rounds: int) -> dict[str, Tensor]:
        """Go on until there have been ``rounds`` server rounds, or more if the last pull brought several.

        Waits until ``settings.concurrency`` clients are connected. Raises RuntimeError when nothing but failures comes.
        """
        while len(online := self._admit()) < self.settings.concurrency:
            log.info("%d clients are connected, %d are waited for", len(online), self.settings.concurrency)
            time.sleep(max(self.poll, 1.0))
        while self.pending:
            self._ask(self.pending.pop(0))
        places = True
        while self.round < rounds:
            if places:
                self._fill()
            places = self._advance()
        return self.layout.unpack(self.params)

    def _admit(self) -> set[int]:
        """The clients that are connected, newcomers among them."""
        online = set(self.grid.get_node_ids())
        busy = {asked.work.client for asked in self.asked.values()}
        for node in sorted(online.difference(self.nodes)):
            if len(self.nodes) < self.settings.clients:
                self.nodes.append(node)
                continue
            gone = [c for c, known in enumerate(self.nodes) if known not in online and c not in busy]
            if gone:
                log.info("node %d is client %d now", node, gone[0])
                self.nodes[gone[0]] = node
        return {client for client, node in enumerate(self.nodes) if node in online}

    def _fill(self) -> None:
        places = self.settings.concurrency - len(self.asked)
        # Who was given up and has not answered yet would only find more work waiting.
        busy = {asked.work.client for asked in [*self.asked.values(), *self.given_up.values()]}
        free = sorted(self._admit() - busy) if places else []
        for _ in range(min(places, len(free))):
            rng = rng_of(self.settings.seed, STARTS, self.started)
            work = Work(self.started, free.pop(rng.integers(len(free))), self.round)
            self.started += 1
            self._emit("start", work.client, work.version)
            self._ask(work)

    def _ask(self, work: Work) -> None:
        timeout = self.settings.timeout
        seed = derive_seed(self.settings.seed, TRAINING, work.number)
        content = RecordDict(
            {
                "arrays": ArrayRecord(self.layout.unpack(self.models[work.version])),
                "config": ConfigRecord({"server-round": work.version, "client": work.client, "seed": seed}),
            }
        )
        # An answer that comes after the timeout is still seen, and reported.
        ttl = None if math.isinf(timeout) else 2 * timeout
        message = Message(content, self.nodes[work.client], MessageType.TRAIN, ttl=ttl, group_id=str(work.version))
        message_id = next(iter(self.grid.push_messages([message])), "")
        if message_id:
            self.asked[message_id] = Asked(work, time.monotonic() - self.began + timeout)
        else:
            self._fail("reject", work, "Flower did not take the message")

    def _advance(self) -> bool:
        """One look for answers. Whether free places may be filled now."""
        replies = self._pull()
        self.now, before = time.monotonic() - self.began, self.round
        late = {name: asked for name, asked in self.asked.items() if asked.deadline < self.now and name not in replies}
        names = [name for name in self.asked if name in replies or name in late]
        done = [(self.asked.pop(name).work, replies.get(name)) for name in names]
        for work, reply in sorted(done, key=lambda pair: pair[0].number):
            self._arrive(work, reply)
        self._note_late(replies)
        self.given_up |= late
        if self.round > before:
            self._end_round()
        elif not done:
            time.sleep(self.poll)
        return self.settings.refill == "arrival" or self.round > before or not self.asked

    def _pull(self) -> dict[str, Message]:
        """What came since the last look, by the message that it answers."""
        names = [*self.asked, *self.given_up]
        return {reply.metadata.reply_to_message_id: reply for reply in self.grid.pull_messages(names)} if names else {}

    def _arrive(self, work: Work, reply: Message | None) -> None:
        if reply is None:
            return self._fail("late", work, f"no answer within {self.settings.timeout:g} s")
        update = self._read(work, reply)
        reason = update if isinstance(update, str) else rejection(update, self.params, self.settings.max_staleness)
        if isinstance(update, str) or reason is not None:
            return self._fail("reject", work, reason or "")
        self.failed = 0
        self.buffer.append(update)
        self._emit("arrive", work.client, work.version)
        if len(self.buffer) == self.settings.buffer_size:
            self.state, self.params = self.rule.step(self.state, self.params, self.buffer)
            self.buffer = []
            self.round += 1
            self.models[self.round] = self.params
            self._emit("update", None, self.round)

    def _read(self, work: Work, reply: Message) -> Update | str:
        """The update, or why there is none: whatever a client may send ends here."""
        if reply.has_error():
            return f"Flower's error {reply.error.code}: {reply.error.reason}"
        start = self.models[work.version]
        try:
            (arrays,) = reply.content.array_records.values()
            (metrics,) = reply.content.metric_records.values()
            sent = self.layout.pack(arrays.to_torch_state_dict())
            examples = int(metrics["num-examples"])
        except Exception as error:
            return f"unreadable: {type(error).__name__}: {error}"
        if sent.dtype != start.dtype:
            return f"the answer is {sent.dtype}, the model {start.dtype}"
        return Update(work.client, sent - start, start, self.round - work.version, examples)

    def _note_late(self, replies: Mapping[str, Message]) -> None:
        for name in [*self.given_up]:
            asked = self.given_up[name]
            if name in replies:
                self._emit("reject", *asked.work[1:], f"answered {self.now - asked.deadline:.1f} s too late")
            if name in replies or self.now > asked.deadline + self.settings.timeout:
                del self.given_up[name]

    def _fail(self, kind: str, work: Work, reason: str) -> None:
        self.failed += 1
        self._emit(kind, work.client, work.version, reason)
        if self.failed >= max(PATIENCE, 2 * self.settings.concurrency):
            raise RuntimeError(f"{self.failed} answers in a row were of no use, the last: {reason}")

    def _emit(self, kind: str, client: int | None, version: int, note: str = "") -> None:
        if note:
            log.warning("%s, client %s: %s", kind, client, note)
        if self.on_event is not None:
            self.on_event(Event(self.now, kind, client, version, note))

    def _end_round(self) -> None:
        needed = {asked.work.version for asked in self.asked.values()} | {self.round}
        self.models = {version: model for version, model in self.models.items() if version in needed}
        if self.checkpoint is not None:
            partial = self.checkpoint.with_suffix(".partial")
            torch.save(self._snapshot(), partial)
            os.replace(partial, self.checkpoint)
        if self.on_round is not None:
            self.on_round(self.round, self.layout.unpack(self.params))

    def _belongs_to(self) -> dict[str, Any]:
        shapes = {name: list(shape) for name, shape in self.layout.shapes.items()}
        return {"rule": repr(self.rule), "model": shapes, "clients": self.settings.clients}

    def _snapshot(self) -> dict[str, Any]:
        return {
            "belongs_to": self._belongs_to(),
            "numbers": {"round": self.round, "started": self.started},
            "nodes": self.nodes,
            "pending": [list(asked.work) for asked in self.asked.values()],
            "models": self.models,
            "buffer": [dict(vars(update)) for update in self.buffer],
            "state": self.state,
        }

    def _restore(self, checkpoint: Path) -> None:
        snapshot = torch.load(checkpoint, weights_only=True)
        for name, value in self._belongs_to().items():
            if snapshot["belongs_to"][name] != value:
                raise ValueError(f"{checkpoint} is of another {name}: {snapshot['belongs_to'][name]}, not {value}")
        self.round, self.started = snapshot["numbers"]["round"], snapshot["numbers"]["started"]
        self.nodes, self.models, self.state = snapshot["nodes"], snapshot["models"], snapshot["state"]
        self.params = self.models[self.round]
        self.pending = [Work(*work) for work in snapshot["pending"]]
        self.buffer = [Update(**update) for update in snapshot["buffer"]]
        log.info("round %d: going on from %s", self.round, checkpoint)


def _check_types(tensors: Mapping[str, Tensor]) -> None:
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    for name, dtype in types.items():
        if not dtype.is_floating_point:
            raise ValueError(f"tensor {name!r} is {dtype}, which cannot be trained: leave it out")
    if len(set(types.values())) > 1:
        raise ValueError(f"tensors of one type are needed, not of {sorted(map(str, set(types.values())))}")
