"""Training in saved chunks, and the step at which a loss reaches a level."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from theory.training import steps_to_level, train_in_chunks, training_curves, training_speed
from training.run import Cancelled, Run


def count_up(state: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    return {"total": state["total"] + sum(range(begin, end)), "rows": [{"step": begin, "loss": [1.0 * begin, 3.0]}]}


def test_training_in_chunks_resumes_after_the_last_saved_chunk(tmp_path: Path) -> None:
    stop_answers = iter([False, False, True])
    run = Run(tmp_path, 0, should_stop=lambda: next(stop_answers))
    with pytest.raises(Cancelled):
        train_in_chunks(run, "sum", "counting", 10, 4, {"total": 0}, count_up)
    trained_again: list[int] = []

    def train(state: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
        trained_again.append(begin)
        return count_up(state, begin, end)

    state, rows = train_in_chunks(Run(tmp_path, 0), "sum", "counting", 10, 4, {"total": 0}, train)
    assert state["total"] == sum(range(10)) and [row["step"] for row in rows] == [0, 4, 8]
    assert trained_again and 0 not in trained_again
    assert training_curves(rows)["curves"]["loss"]["mean"] == [1.5, 3.5, 5.5]


def test_steps_to_a_level_average_the_loss_over_ten_steps() -> None:
    falling = torch.linspace(1.0, 0.0, 101)
    losses = torch.stack([falling, torch.ones(101)], dim=1)
    reached = steps_to_level(losses, 0.5)
    assert reached[0] == 56  # steps 46 … 55 have a mean loss of at most .5
    assert reached[1].isnan()


def test_speed_is_measured_in_one_thread_and_the_threads_come_back() -> None:
    threads, seen_counts = torch.get_num_threads(), []

    def train(count: int = 1) -> None:
        seen_counts.append(torch.get_num_threads())

    torch.set_num_threads(2)
    try:
        training_speed(train, train, 1)
        assert seen_counts == [1, 1, 1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
