"""The server with a grid that answers at once. Run in Flower's environment by `test_flower.py`: a case a function."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import torch
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from training.federated import flower
from training.federated.buffered import MAX_FAILURES, Event, FederatedSettings
from training.federated.flower import AsyncServer, ClientTraining
from training.federated.rules import RULES, MeanOfBuffers

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


def every_round_is_reported_also_where_one_pull_ends_several() -> None:
    rounds: dict[int, float] = {}
    settings = FederatedSettings(clients=4, concurrency=4, buffer_size=1)
    report = lambda number, tensors: rounds.update({number: float(tensors["weight"][0])})  # noqa: E731
    server = AsyncServer(Grid(up, (1, 2, 3, 4)), ZERO, RULES["fedbuff"](), settings, on_round=report, poll=0)
    server.run(6)
    assert rounds == {number: float(number) for number in range(1, server.round + 1)} and server.round == 8


def a_finished_run_that_is_called_again_asks_nobody() -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "server.pt"
        for grid in (Grid(up), Grid(up, nodes=())):
            server = AsyncServer(grid, ZERO, RULES["fedbuff"](), ONE_BY_ONE, checkpoint=checkpoint, poll=0)
            assert torch.equal(server.run(3)["weight"], torch.full((3,), 3.0))
        assert not grid.sent


def a_run_whose_nodes_have_gone_logs_that_none_is_free() -> None:
    class Stopped(Exception):
        pass

    def stop(seconds: float) -> None:
        raise Stopped(seconds)

    grid = Grid(up)
    server = AsyncServer(grid, ZERO, RULES["fedbuff"](), ONE_BY_ONE, on_round=lambda *_: vanish(), poll=0)

    def vanish() -> None:
        grid.nodes = ()

    with patch("time.sleep", stop), patch.object(flower.log, "info") as info:
        fails(lambda: server.run(2), Stopped, "1.0")
    assert info.call_args.args == ("no client is free, 0 have yet to answer",)


def answers_go_to_the_device_of_the_model() -> None:
    server = AsyncServer(Grid(up), {"weight": torch.zeros(3, device="meta")}, RULES["fedbuff"](), ONE_BY_ONE)
    content = RecordDict({"arrays": ArrayRecord(ZERO), "metrics": MetricRecord({"num-examples": 1})})
    answer = server._read(ClientTraining(0, 0, 0), Message(content, 7, "train"))
    assert answer.delta.device.type == "meta"


def a_checkpoint_that_could_never_be_continued_is_refused_at_once() -> None:
    class Mine:
        def init(self, params: torch.Tensor) -> dict:
            return {}

        def step(self, state: dict, params: torch.Tensor, buffer: list) -> tuple[dict, torch.Tensor]:
            return state, params + 1

    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.pt"
        torch.save(ZERO, model)
        for checkpoint, rule, words in (
            (model, RULES["fedbuff"](), "model.pt is not a checkpoint of AsyncServer"),
            (Path(folder) / "none" / "server.pt", RULES["fedbuff"](), "there is no folder"),
            (Path(folder) / "server.pt", Mine(), "make it a frozen dataclass"),
            (Path(folder) / "server.pt", MeanOfBuffers(Mine(), 1), "make it a frozen dataclass"),
        ):
            fails(
                lambda c=checkpoint, r=rule: AsyncServer(Grid(up), ZERO, r, ONE_BY_ONE, checkpoint=c),
                ValueError,
                words,
            )


CASES = [
    each_answer_is_a_round,
    tensors_that_cannot_be_trained_are_refused,
    answers_of_another_type_are_rejected_and_the_run_ends_when_nothing_else_comes,
    a_stopped_run_goes_on_to_the_same_bits,
    a_checkpoint_of_another_rule_model_or_buffer_is_refused,
    a_checkpoint_of_an_earlier_version_without_a_buffer_size_is_continued,
    a_new_node_takes_the_place_of_one_that_has_gone,
    older_answers_than_allowed_are_rejected,
    every_round_is_reported_also_where_one_pull_ends_several,
    a_finished_run_that_is_called_again_asks_nobody,
    a_run_whose_nodes_have_gone_logs_that_none_is_free,
    answers_go_to_the_device_of_the_model,
    a_checkpoint_that_could_never_be_continued_is_refused_at_once,
]

if __name__ == "__main__":
    for case in CASES:
        case()
        print(case.__name__, flush=True)
    sys.exit(0)
