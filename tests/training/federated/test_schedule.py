"""The times of trials without their training, and who answers in the presets' runs."""

from __future__ import annotations

import pytest
import torch

from training.federated.experiment import Trial, simulator, staleness
from training.federated.fadas import CNN, PAPER, TWO_CORES, FadasConfig
from training.federated.fashion import FashionTask
from training.federated.reviews import ROUNDS_150, ReviewsConfig
from training.federated.reviews import TWO_CORES as REVIEWS
from training.federated.schedule import horizon, participation, schedule
from training.run import derive_seed

TASK = FashionTask(clients=12, concurrency=6, buffer_size=3, evaluate_every=12)


@pytest.mark.parametrize("method", ["FADAS", "FedAsync", "FedAvg", "FedAvg, all places"])
def test_training_changes_neither_times_nor_answers(method: str) -> None:
    trial = Trial(TASK, method, 0.1, "large", 3, 36)

    def train(params: torch.Tensor, clients: list[int], seeds: list[int]) -> list[tuple[torch.Tensor, int]]:
        return [(torch.randn(4), client + 1) for client in clients]

    server = simulator(trial, train, torch.zeros(4))
    events = server.run(36 // server.settings.buffer_size)
    expected = schedule(trial)
    assert expected.times == [0, *(event.time for event in events if event.kind == "update")]
    assert expected.staleness == staleness(events)
    arrived = [event.client for event in events if event.kind == "arrive"]
    assert expected.answers == [arrived.count(client) for client in range(12)]


def test_the_rounds_until_a_time_include_one_that_ends_then() -> None:
    rounds = schedule(Trial(TASK, "FedAvg", 1.0, "mild", 3, 36))
    assert [rounds.rounds_until(time) for time in (0.0, rounds.times[1], rounds.times[2] - 1e-9)] == [0, 1, 1]


def test_the_horizon_is_the_first_end_of_an_asynchronous_run() -> None:
    trials = [Trial(TASK, method, 1.0, "mild", seed, 36) for method in ("FedAvg", "FedAsync") for seed in (0, 1)]
    ends = [schedule(trial).times[-1] for trial in trials]
    assert horizon(trials) == min(ends[2:])
    assert horizon(trials[:2]) == min(ends[:2])


def test_clients_are_counted_by_speed_and_once_a_seed() -> None:
    trials = [Trial(TASK, "FADAS", step, "large", seed, 36) for step in (0.1, 0.2) for seed in (0, 1)]
    counts = participation([*trials, Trial(TASK, "FedAvg", 1.0, "large", 0, 36)])
    assert counts["method"] == "FADAS" and len(counts["ends"]) == 2
    assert sum(clients for _, clients in counts["answered"].values()) == 24
    assert participation([Trial(TASK, "FADAS", 0.1, "heavy-tailed", 0, 36)])["answered"].keys() == {"all"}


@pytest.mark.parametrize("preset", [TWO_CORES, CNN, PAPER])
def test_slow_clients_answer_in_the_runs_that_select_steps(preset: dict) -> None:
    config = FadasConfig.model_validate(preset)
    counts = participation([Trial(config.task, "FADAS", 1.0, "large", derive_seed(0, 0), config.tuning_updates)])
    assert counts["answered"]["slow"] == [5, 5] and counts["oldest"] > 100


@pytest.mark.parametrize("preset", [REVIEWS, ROUNDS_150])
def test_no_slow_client_answers_before_the_reviews_steps_are_selected(preset: dict) -> None:
    """The README says so, and of `two-cores` that none answers in its runs either."""
    config = ReviewsConfig.model_validate(preset)
    counts = participation([Trial(config, "FADAS", 1.0, "large", derive_seed(0, 0), config.tuning_updates)])
    assert counts["answered"]["slow"] == [0, 5] and counts["oldest"] <= 12
    if preset is REVIEWS:
        trials = [Trial(config, "FADAS", 1.0, "large", derive_seed(0, 1, i), config.updates) for i in range(5)]
        assert participation(trials)["answered"]["slow"][0] == 0
