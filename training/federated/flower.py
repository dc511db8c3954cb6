"""An asynchronous server for Flower, whose own strategies are synchronous: the rules of `rules.py` in a ServerApp.

The messages are those of flwr's own strategies (Message API): a "train" message has the model under "arrays" and
"server-round" under "config"; the answer has the client's model in one ArrayRecord and "num-examples" in one
MetricRecord. A ClientApp for flwr's FedAvg needs no change. "config" also has "client", the client's number, and
"seed", one per training.

The answers of one pull count as one instant of the simulator: they enter the buffer in the order in which their clients
were started, the rule is applied each time that the buffer is full, then free places are filled. The simulator with the
same arrivals ends with the same model.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from training.federated.buffered import BufferedServer, Event, FederatedSettings, ServerSnapshot
from training.federated.rules import Layout, Rule

log = logging.getLogger(__name__)


class ClientTraining(NamedTuple):
    """The ``number``-th training, on ``client``, from the model of round ``version``."""

    number: int
    client: int
    version: int


class PendingAnswer(NamedTuple):
    training: ClientTraining
    deadline: float  # in seconds since the server started


class ClientAnswer(NamedTuple):
    delta: Tensor
    examples: int


class Origin(TypedDict):
    """The run to which a checkpoint belongs."""

    rule: str
    model: dict[str, list[int]]
    clients: int
    buffer_size: int


class FlowerSnapshot(ServerSnapshot):
    belongs_to: Origin
    nodes: list[int]
    pending: list[tuple[int, int, int]]


class AsyncServer(BufferedServer):
    """``AsyncServer(grid, model.state_dict(), rule, settings).run(rounds)`` returns the trained tensors.

    ``settings``: ``timeout`` is in seconds. ``on_round(round, tensors)`` is called for each server round, ``on_event``
    with each event (``Event.time`` in seconds). ``checkpoint``: a file that is rewritten after each pull that ends
    rounds, before their ``on_round``; if it exists, the run continues from it, and clients that were at work are asked
    again. ``poll``: seconds between pulls.

    An abandoned client gets work again once its late answer has arrived, or after a second ``timeout``. A client's
    number is that of its node, in the order in which nodes connected, lowest id first; a new node takes the place of a
    disconnected one. Raises ValueError for tensors that are not of one floating-point type, for a checkpoint of
    another model, rule, number of clients or buffer size, and for one that could not be written or continued.
    """

    def __init__(
        self,
        grid: Grid,
        tensors: Mapping[str, Tensor],
        rule: Rule,
        settings: FederatedSettings,
        *,
        checkpoint: Path | None = None,
        on_round: Callable[[int, dict[str, Tensor]], None] | None = None,
        on_event: Callable[[Event], None] | None = None,
        poll: float = 0.1,
    ) -> None:
        _check_types(tensors)
        self.layout = Layout.of(tensors)
        super().__init__(settings, rule, self.layout.pack(tensors))
        self.grid, self.checkpoint, self.on_round, self.on_event, self.poll = grid, checkpoint, on_round, on_event, poll
        self.nodes: list[int] = []  # by client
        self.resumed: list[ClientTraining] = []  # at work when the checkpoint was written
        self.pending: dict[str, PendingAnswer] = {}  # by message
        self.abandoned: dict[str, PendingAnswer] = {}
        self.began, self.now = time.monotonic(), 0.0
        if checkpoint is not None:
            _check_continuable(checkpoint, rule)
            if checkpoint.exists():
                self._restore(checkpoint)

    def run(self, rounds: int) -> dict[str, Tensor]:
        """Continues to ``rounds`` server rounds, or more if the last pull has several.

        Waits until ``settings.concurrency`` clients are connected. Raises RuntimeError if only failures arrive.
        """
        if self.round >= rounds:
            return self.layout.unpack(self.params)
        while len(online := self._admit()) < self.settings.concurrency:
            self._wait(f"{len(online)} clients are connected, {self.settings.concurrency} are needed")
        while self.resumed:
            self._ask(self.resumed.pop(0))
        refill = True
        while self.round < rounds:
            if refill:
                self._fill()
            refill = self._advance()
        return self.layout.unpack(self.params)

    def _admit(self) -> set[int]:
        """The clients that are connected, including new ones."""
        online = set(self.grid.get_node_ids())
        busy = {pending.training.client for pending in self.pending.values()}
        for node in sorted(online.difference(self.nodes)):
            if len(self.nodes) < self.settings.clients:
                self.nodes.append(node)
                continue
            replaceable = [c for c, client_node in enumerate(self.nodes) if client_node not in online and c not in busy]
            if replaceable:
                log.info("node %d is client %d now", node, replaceable[0])
                self.nodes[replaceable[0]] = node
        return {client for client, node in enumerate(self.nodes) if node in online}

    def _wait(self, reason: str) -> None:
        log.info(reason)
        time.sleep(max(self.poll, 1.0))

    def _fill(self) -> None:
        places = self.settings.concurrency - len(self.pending)
        # An abandoned client that has not answered yet would queue the new work behind the old.
        busy = {pending.training.client for pending in [*self.pending.values(), *self.abandoned.values()]}
        free = sorted(self._admit() - busy) if places else []
        if not self.pending and not free:
            self._wait(f"no client is free, {len(self.abandoned)} have yet to answer")
        for _ in range(min(places, len(free))):
            number = self.started
            client, _ = self.draw_client(free)
            free.remove(client)
            self._emit(Event(self.now, "start", client, self.round))
            self._ask(ClientTraining(number, client, self.round))

    def _ask(self, training: ClientTraining) -> None:
        timeout = self.settings.timeout
        seed = self.training_seed(training.number)
        content = RecordDict(
            {
                "arrays": ArrayRecord(self.layout.unpack(self.models[training.version])),
                "config": ConfigRecord({"server-round": training.version, "client": training.client, "seed": seed}),
            }
        )
        # An answer after the timeout is still read, and reported.
        ttl = None if math.isinf(timeout) else 2 * timeout
        node, group = self.nodes[training.client], str(training.version)
        message = Message(content, node, MessageType.TRAIN, ttl=ttl, group_id=group)
        message_id = next(iter(self.grid.push_messages([message])), "")
        if message_id:
            self.pending[message_id] = PendingAnswer(training, time.monotonic() - self.began + timeout)
        else:
            self._fail("reject", training, "Flower did not take the message")

    def _advance(self) -> bool:
        """One pull. Returns whether free places may be filled now."""
        replies = self._pull()
        self.now, before = time.monotonic() - self.began, self.round
        late = {
            name: pending
            for name, pending in self.pending.items()
            if pending.deadline < self.now and name not in replies
        }
        names = [name for name in self.pending if name in replies or name in late]
        ended = [(self.pending.pop(name).training, replies.get(name)) for name in names]
        for training, reply in sorted(ended, key=lambda pair: pair[0].number):
            self._arrive(training, reply)
        self._report_late(replies)
        self.abandoned |= late
        if self.round > before:
            self._end_rounds(range(before + 1, self.round + 1))
        elif not ended:
            time.sleep(self.poll)
        return self.settings.refill == "arrival" or self.round > before or not self.pending

    def _pull(self) -> dict[str, Message]:
        """The answers since the last pull, by the message that they answer."""
        names = [*self.pending, *self.abandoned]
        return {reply.metadata.reply_to_message_id: reply for reply in self.grid.pull_messages(names)} if names else {}

    def _arrive(self, training: ClientTraining, reply: Message | None) -> None:
        if reply is None:
            return self._fail("late", training, f"no answer within {self.settings.timeout:g} s")
        answer = self._read(training, reply)
        if isinstance(answer, str):
            return self._fail("reject", training, answer)
        events = self.receive(self.now, training.client, training.version, answer.delta, answer.examples)
        if events[0].kind == "reject":
            return self._fail("reject", training, events[0].note)
        for event in events:
            self._emit(event)

    def _read(self, training: ClientTraining, reply: Message) -> ClientAnswer | str:
        """The answer, or the reason why it is unreadable: the content of a message is untrusted."""
        if reply.has_error():
            return f"Flower's error {reply.error.code}: {reply.error.reason}"
        start = self.models[training.version]
        try:
            (arrays,) = reply.content.array_records.values()
            (metrics,) = reply.content.metric_records.values()
            vector = self.layout.pack(arrays.to_torch_state_dict())
            examples = int(metrics["num-examples"])
        except Exception as error:
            return f"unreadable: {type(error).__name__}: {error}"
        if vector.dtype != start.dtype:
            return f"the answer is {vector.dtype}, the model {start.dtype}"
        return ClientAnswer(vector.to(start.device) - start, examples)

    def _report_late(self, replies: Mapping[str, Message]) -> None:
        for name in [*self.abandoned]:
            training, deadline = self.abandoned[name]
            if name in replies:
                note = f"answered {self.now - deadline:.1f} s too late"
                self._emit(Event(self.now, "reject", training.client, training.version, note))
            if name in replies or self.now > deadline + self.settings.timeout:
                del self.abandoned[name]

    def _fail(self, kind: str, training: ClientTraining, reason: str) -> None:
        self._emit(Event(self.now, kind, training.client, training.version, reason))
        self.count_failure(reason)

    def _emit(self, event: Event) -> None:
        if event.note:
            log.warning("%s, client %s: %s", event.kind, event.client, event.note)
        if self.on_event is not None:
            self.on_event(event)

    def _end_rounds(self, rounds: Sequence[int]) -> None:
        models = {number: self.models[number] for number in rounds}
        self.drop_models(pending.training.version for pending in self.pending.values())
        if self.checkpoint is not None:
            partial = self.checkpoint.with_suffix(".partial")
            torch.save(self._snapshot(), partial)
            os.replace(partial, self.checkpoint)
        if self.on_round is not None:
            for number, params in models.items():
                self.on_round(number, self.layout.unpack(params))

    def _origin(self) -> Origin:
        shapes = {name: list(shape) for name, shape in self.layout.shapes.items()}
        sizes = self.settings
        return {"rule": repr(self.rule), "model": shapes, "clients": sizes.clients, "buffer_size": sizes.buffer_size}

    def _snapshot(self) -> FlowerSnapshot:
        return {
            **self.server_snapshot(),
            "belongs_to": self._origin(),
            "nodes": self.nodes,
            "pending": [(*pending.training,) for pending in self.pending.values()],
        }

    def _restore(self, checkpoint: Path) -> None:
        snapshot: FlowerSnapshot = torch.load(checkpoint, map_location=self.params.device, weights_only=True)
        if "belongs_to" not in snapshot:
            raise ValueError(f"{checkpoint} is not a checkpoint of AsyncServer: choose another name, or remove it")
        for name, value in self._origin().items():
            saved = snapshot["belongs_to"].get(name, value)  # an earlier version's has no buffer_size
            if saved != value:
                raise ValueError(f"{checkpoint} is of another {name}: {saved}, not {value}")
        self.restore_server(snapshot)
        self.nodes = snapshot["nodes"]
        self.resumed = [ClientTraining(*training) for training in snapshot["pending"]]
        log.info("round %d: continuing from %s", self.round, checkpoint)


def _check_continuable(checkpoint: Path, rule: Rule) -> None:
    if not checkpoint.parent.is_dir():
        raise ValueError(f"{checkpoint} cannot be written: there is no folder {checkpoint.parent}")
    if " at 0x" in repr(rule):  # an address, which differs in the next process
        raise ValueError(f"a checkpoint tells rules apart by their repr, not {rule!r}: make it a frozen dataclass, say")


def _check_types(tensors: Mapping[str, Tensor]) -> None:
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    for name, dtype in types.items():
        if not dtype.is_floating_point:
            raise ValueError(f"tensor {name!r} is {dtype}, which cannot be trained: leave it out")
    if len(set(types.values())) > 1:
        raise ValueError(f"tensors of one type are needed, not of {sorted(map(str, set(types.values())))}")
