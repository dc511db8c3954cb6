"""What a run of ``bench.tasks`` refuses before its first alignment job, which takes long."""

from __future__ import annotations

from benchmarks.bench_tasks.config import BenchTasksConfig
from benchmarks.bench_tasks.methods import METHODS, iro_search
from benchmarks.tasks import TASKS
from benchmarks.tasks.task import Split

SEARCHED = ("iro", "iro_by_chunk", "iro_search", "iro_by_reward")
"""Methods that search by chunks, ``iro`` where the job tried no other way."""


def check_rows(config: BenchTasksConfig) -> None:
    """ValueError where no method takes one of ``rows``, or a search by chunks does not."""
    if not any(METHODS[method].takes(count) for method in config.methods for count in config.rows):
        fewest = min(METHODS[method].min_rows for method in config.methods)
        raise ValueError(f"no method takes the given number of rows: add {fewest} to rows")
    if not set(config.methods).isdisjoint(SEARCHED):
        for count in config.rows:
            iro_search(count, config.chunk_length)


def check_prompts(config: BenchTasksConfig) -> None:
    """ValueError where a task has fewer prompts than the configuration takes."""
    counts: dict[Split, tuple[int, str]] = {
        "train": (config.train_prompts, "train_prompts"),
        "validation": (2 * config.validation_prompts, "validation_prompts, twice as many of which are taken"),
        "held_out": (config.heldout_prompts, "heldout_prompts"),
    }
    for name in config.tasks:
        for split, (count, field) in counts.items():
            for seed in range(config.seed, config.seed + config.seeds):
                try:
                    TASKS[name].prompts(split, count, seed)
                except ValueError as error:
                    raise ValueError(f"{name}, seed {seed}: {error}; lower {field}") from None
