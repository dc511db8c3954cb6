"""The server with a grid that answers at once. Run in Flower's environment by `test_flower.py`: a case a function."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from training.federated.buffered import Event, FederatedSettings
from training.federated.flower import MAX_FAILURES, AsyncServer
from training.federated.rules import RULES

TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # which messages ask for
ZERO = {"weight": torch.zeros(3)}
ONE_BY_ONE = FederatedSettings(clients=2, concurrency=1, buffer_size=1)


class Grid:
    """``answer(tensors) -> tensors`` is what every node does; ``nodes`` are those that are connected."""

    def __init__(self, answer: Callable[[dict], dict], nodes: tuple[int, ...] = (7, 9)) -> None:
        self.answer, self.nodes, self.sent = answer, nodes, {}

    def get_node_ids(self) -> tuple[int, ...]:
        return self.nodes

    def push_messages(self, messages: list[Message]) -> list[str]:
        names = [str(len(self.sent) + i) for i, _ in enumerate(messages)]
        for name, message in zip(names, messages, strict=True):
            message.metadata.__dict__["_message_id"] = name
            self.sent[name] = message
        return names

    def pull_messages(self, names: list[str]) -> list[Message]:
        return [self.reply(self.sent[name]) for name in names]

    def reply(self, message: Message) -> Message:
        arrays = ArrayRecord(self.answer(message.content["arrays"].to_torch_state_dict()))
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)


def up(tensors: dict) -> dict:
    return {"weight": tensors["weight"] + 1}


def fails(call: Callable[[], object], error: type[Exception], words: str) -> None:
    try:
        call()
    except error as raised:
        assert words in str(raised), str(raised)
    else:
        raise AssertionError(f"no {error.__name__}")


def each_answer_is_a_round() -> None:
    server = AsyncServer(Grid(up), ZERO, RULES["fedbuff"](), ONE_BY_ONE, poll=0)
    assert torch.equal(server.run(5)["weight"], torch.full((3,), 5.0))


def tensors_that_cannot_be_trained_are_refused() -> None:
    counter = {"steps": torch.zeros(1, dtype=torch.int64)}
    fails(lambda: AsyncServer(Grid(up), ZERO | counter, RULES["fedbuff"](), ONE_BY_ONE), ValueError, "'steps' is torch")
    double = {"bias": torch.zeros(1, dtype=torch.float64)}
    fails(lambda: AsyncServer(Grid(up), ZERO | double, RULES["fedbuff"](), ONE_BY_ONE), ValueError, "of one type")


def answers_of_another_type_are_rejected_and_the_run_ends_when_nothing_else_comes() -> None:
    events: list[Event] = []
    grid = Grid(lambda tensors: {"weight": tensors["weight"].double()})
    server = AsyncServer(grid, ZERO, RULES["fedbuff"](), ONE_BY_ONE, on_event=events.append, poll=0)
    fails(lambda: server.run(1), RuntimeError, f"{MAX_FAILURES} answers in a row were unusable")
    assert {event.note for event in events if event.kind == "reject"} == {
        "the answer is torch.float64, the model torch.float32"
    }


def a_stopped_run_goes_on_to_the_same_bits() -> None:
    def noisy(tensors: dict) -> dict:
        return {"weight": tensors["weight"] + torch.cos(17 * tensors["weight"]) / 3 + 0.1}

    for name in ("fadas-divide", "fedadam", "fedasync", "fedavg"):
        uninterrupted = AsyncServer(Grid(noisy), ZERO, RULES[name](), ONE_BY_ONE, poll=0)
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "server.pt"
            for rounds in (3, 8):  # a new server each, of new nodes
                nodes = (rounds, rounds + 1)
                part = AsyncServer(Grid(noisy, nodes), ZERO, RULES[name](), ONE_BY_ONE, checkpoint=checkpoint, poll=0)
                tensors = part.run(rounds)
        assert torch.equal(tensors["weight"], uninterrupted.run(8)["weight"])


def a_checkpoint_of_another_rule_model_or_buffer_is_refused() -> None:
    two = ONE_BY_ONE.model_copy(update={"buffer_size": 2})
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "server.pt"
        AsyncServer(Grid(up), ZERO, RULES["fedbuff"](), ONE_BY_ONE, checkpoint=checkpoint, poll=0).run(1)
        for tensors, rule, settings, words in (
            (ZERO, RULES["fadas"](), ONE_BY_ONE, "another rule"),
            ({"weight": torch.zeros(4)}, RULES["fedbuff"](), ONE_BY_ONE, "another model"),
            (ZERO, RULES["fedbuff"](), two, "another buffer_size: 1, not 2"),
        ):
            fails(
                lambda t=tensors, r=rule, s=settings: AsyncServer(Grid(up), t, r, s, checkpoint=checkpoint),
                ValueError,
                words,
            )


def a_checkpoint_of_an_earlier_version_without_a_buffer_size_is_continued() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "server.pt"
        AsyncServer(Grid(up), ZERO, RULES["fedbuff"](), ONE_BY_ONE, checkpoint=checkpoint, poll=0).run(1)
        snapshot = torch.load(checkpoint, weights_only=True)
        del snapshot["belongs_to"]["buffer_size"]
        torch.save(snapshot, checkpoint)
        assert AsyncServer(Grid(up), ZERO, RULES["fedbuff"](), ONE_BY_ONE, checkpoint=checkpoint, poll=0).round == 1


def a_new_node_takes_the_place_of_one_that_has_gone() -> None:
    grid = Grid(up, (7, 9))
    server = AsyncServer(grid, ZERO, RULES["fedbuff"](), ONE_BY_ONE, poll=0)
    server.run(1)
    grid.nodes = (5, 9)
    server.run(6)
    assert server.nodes == [5, 9]
    assert 7 not in {message.metadata.dst_node_id for message in [*grid.sent.values()][1:]}


def older_answers_than_allowed_are_rejected() -> None:
    events: list[Event] = []
    settings = FederatedSettings(clients=3, concurrency=3, buffer_size=1, max_staleness=1)
    grid = Grid(up, (1, 2, 3))
    AsyncServer(grid, ZERO, RULES["fedbuff"](), settings, on_event=events.append, poll=0).run(2)
    assert [event.note for event in events if event.kind == "reject"] == ["2 rounds old, more than 1"]


CASES = [
    each_answer_is_a_round,
    tensors_that_cannot_be_trained_are_refused,
    answers_of_another_type_are_rejected_and_the_run_ends_when_nothing_else_comes,
    a_stopped_run_goes_on_to_the_same_bits,
    a_checkpoint_of_another_rule_model_or_buffer_is_refused,
    a_checkpoint_of_an_earlier_version_without_a_buffer_size_is_continued,
    a_new_node_takes_the_place_of_one_that_has_gone,
    older_answers_than_allowed_are_rejected,
]

if __name__ == "__main__":
    for case in CASES:
        case()
        print(case.__name__, flush=True)
    sys.exit(0)
