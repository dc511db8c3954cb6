"""What the studies of trained models share: training in saved chunks, curves over models, steps to a loss, speed."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from theory.lab import Result, band
from training.run import Run

AVERAGED_STEPS = 10  # whose mean loss is held against a level


def train_in_chunks(
    run: Run,
    prefix: str,
    description: str,
    iterations: int,
    chunk: int,
    start: Result,
    train: Callable[[Result, int, int], Result],
) -> tuple[Result, list[Result]]:
    """The state after ``iterations``, saved after every ``chunk`` as step ``prefix``-<first iteration>, and its rows.

    ``train(state, begin, end)`` gives the state after iterations begin … end−1, with its recorded rows under "rows".
    """
    state: Result = start
    rows: list[Result] = []
    with run.progress(description, -(-iterations // chunk)) as advance:
        for begin in range(0, iterations, chunk):
            state = run.step(f"{prefix}-{begin}", partial(train, state, begin, min(begin + chunk, iterations)))
            rows += state["rows"]
            advance()
    return state, rows


def training_curves(rows: list[Result]) -> Result:
    """The mean and interval over models of everything that ``rows`` record beside their step."""
    names = [name for name in rows[0] if name != "step"]
    curves = {name: band([row[name] for row in rows], axis=1) for name in names}
    return {"step": [row["step"] for row in rows], "curves": curves}


def steps_to_level(losses: Tensor, level: float) -> Tensor:
    """Steps [R] until the loss [T, R], averaged over ten steps, is at most ``level``; NaN where it never is."""
    below = losses.unfold(0, AVERAGED_STEPS, 1).mean(-1) <= level
    return torch.where(below.any(0), below.float().argmax(0) + float(AVERAGED_STEPS), torch.nan)


def training_speed(train_runs: Callable[[int], object], train_plainly: Callable[[], object], steps: int) -> Result:
    """Milliseconds a run and SGD step: 20 runs as one batch, the same code on one run, plain autograd on one run.

    ``train_runs(count)`` takes ``steps`` steps of ``count`` runs, ``train_plainly()`` those of one; all in one thread.
    """

    def milliseconds(work: Callable[[], object], runs: int) -> float:
        began = time.perf_counter()
        work()
        return 1000 * (time.perf_counter() - began) / steps / runs

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = {
            "batch_of_20_runs": milliseconds(partial(train_runs, 20), 20),
            "same_code_one_run": milliseconds(partial(train_runs, 1), 1),
            "plain_autograd_one_run": milliseconds(train_plainly, 1),
        }
    finally:
        torch.set_num_threads(threads)
    return {"milliseconds": times, "ratio": {name: value / times["batch_of_20_runs"] for name, value in times.items()}}
