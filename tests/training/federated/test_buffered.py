"""The buffer that the simulator and the Flower server share."""

from __future__ import annotations

import math

import pytest
import torch

from training.federated.buffered import (
    MAX_FAILURES,
    STARTS,
    TRAINING,
    BufferedServer,
    Event,
    FederatedSettings,
    UnusableAnswers,
)
from training.federated.experiment import MODEL, PARTITION, SPEEDS
from training.federated.rules import FedBuff
from training.run import derive_seed

ZERO = torch.zeros(2)


def server(**options: float) -> BufferedServer:
    settings = FederatedSettings.model_validate({"clients": 4, "concurrency": 3, "buffer_size": 2} | options)
    return BufferedServer(settings, FedBuff(lr=1.0), ZERO)


def test_the_rule_is_applied_when_the_buffer_is_full() -> None:
    buffered = server()
    assert buffered.receive(1.0, 0, 0, torch.tensor([2.0, 0.0]), 1) == [Event(1.0, "arrive", 0, 0)]
    assert torch.equal(buffered.params, ZERO)
    events = buffered.receive(2.0, 3, 0, torch.tensor([0.0, 4.0]), 1)
    assert events == [Event(2.0, "arrive", 3, 0), Event(2.0, "update", None, 1)]
    assert buffered.round == 1 and buffered.buffer == []
    assert torch.equal(buffered.params, torch.tensor([1.0, 2.0]))


def test_a_rejected_update_does_not_enter_the_buffer() -> None:
    buffered = server(buffer_size=1, max_staleness=0)
    [event] = buffered.receive(1.0, 0, 0, torch.tensor([math.nan, 0.0]), 1)
    assert event.kind == "reject" and event.note == "1 of 2 values are not finite"
    buffered.receive(1.0, 0, 0, torch.ones(2), 1)
    [event] = buffered.receive(2.0, 1, 0, torch.ones(2), 1)
    assert event == Event(2.0, "reject", 1, 0, "1 rounds old, more than 0")
    assert buffered.round == 1 and buffered.buffer == []


@pytest.mark.parametrize(("concurrency", "limit"), [(3, MAX_FAILURES), (60, 120)])
def test_failures_in_a_row_are_counted_from_the_last_usable_answer(concurrency: int, limit: int) -> None:
    buffered = server(clients=60, concurrency=concurrency)
    for _ in range(2):
        for _ in range(limit - 1):
            buffered.count_failure("late")
        buffered.receive(1.0, 0, 0, torch.ones(2), 1)
    for _ in range(limit - 1):
        buffered.count_failure("late")
    with pytest.raises(UnusableAnswers, match=f"{limit} answers in a row were unusable, the last: late"):
        buffered.count_failure("late")


def test_models_of_clients_at_work_and_the_newest_stay() -> None:
    buffered = server(buffer_size=1)
    for _ in range(3):
        buffered.receive(1.0, 0, buffered.round, torch.ones(2), 1)
    buffered.drop_models([1])
    assert buffered.models.keys() == {1, 3}


def test_a_restored_server_draws_the_same_clients_and_ends_at_the_same_bits() -> None:
    first, second = server(), server()
    first.draw_client([0, 1, 2, 3])
    first.receive(1.0, 0, 0, torch.ones(2), 1)
    second.restore_server(first.server_snapshot())
    clients = [[buffered.draw_client([0, 1, 2, 3])[0] for _ in range(8)] for buffered in (first, second)]
    assert clients[0] == clients[1]
    for buffered in (first, second):
        buffered.receive(2.0, 1, 0, torch.full((2,), 0.3), 1)
    assert first.round == second.round == 1 and torch.equal(first.params, second.params)


def test_a_server_restored_with_a_smaller_buffer_applies_the_rule_to_all_that_waits() -> None:
    larger, smaller = server(buffer_size=5), server(buffer_size=2)
    for client in range(3):
        larger.receive(1.0, client, 0, torch.ones(2), 1)
    smaller.restore_server(larger.server_snapshot())
    events = smaller.receive(2.0, 3, 0, torch.ones(2), 1)
    assert events[-1] == Event(2.0, "update", None, 1) and smaller.buffer == []


def test_no_two_streams_of_a_trial_have_one_seed() -> None:
    """A path of one number has the seed of the path that ends in a zero too."""
    paths = [(PARTITION,), (SPEEDS,), (MODEL,), *((stream, n) for stream in (STARTS, TRAINING) for n in range(3))]
    assert len({derive_seed(5, *path) for path in paths}) == len(paths)
