"""An iteration's rollouts and their rewards, shard by shard, on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

from iro_server.graders.base import Grade
from training.iro.ahead import working_ahead
from training.iro.data import Prompt
from training.iro.executor import Executor
from training.iro.grading import Grading
from training.iro.rollouts import Batch, completions_of, stored
from training.json_values import JsonObject
from training.run import Run


class ShardNames(NamedTuple):
    """A shard's checkpoints."""

    rollouts: str
    rewards: str


class RolledOut(NamedTuple):
    """A shard that is stored, and the completions of each of its searches; none where they are graded already."""

    names: ShardNames
    prompts: Sequence[Prompt]
    completions: list[list[list[int]]]


class Collection:
    def __init__(self, run: Run, grading: Grading, executor: Executor) -> None:
        self.run, self.grading, self.executor = run, grading, executor

    def collect(self, batches: Mapping[ShardNames, Batch], description: str, check_grader: bool) -> None:
        """Roll out and grade. ``check_grader``: AlignError where the grader fails on most of the first shard."""
        missing = [batch for names, batch in batches.items() if not self.run.has(names.rollouts)]
        first = next(iter(batches)) if check_grader else None
        with (
            closing(self.executor.roll_out(missing)) as sampled,
            closing(working_ahead(self._sample(batches, sampled), self._grade)) as graded,
            self.run.progress(description, len(batches)) as advance,
        ):
            for shard, grades in graded:
                rewards = partial(self._rewards, shard, grades, shard.names == first)
                self.grading.charge(self.run.step(shard.names.rewards, rewards, "grading")["tally"])
                advance()

    def _sample(self, batches: Mapping[ShardNames, Batch], sampled: Iterator[JsonObject]) -> Iterator[RolledOut]:
        for names, batch in batches.items():
            self.run.step(names.rollouts, lambda: stored(next(sampled)), "sampling")
            graded = self.run.has(names.rewards)
            if graded and self.grading.compares:
                self.grading.refer(batch.prompts, self.grading.texts(completions_of(self.run, names.rollouts)))
            yield RolledOut(names, batch.prompts, [] if graded else completions_of(self.run, names.rollouts))

    def _grade(self, shard: RolledOut) -> list[list[Grade]]:
        return self.grading.grade(shard.prompts, shard.completions) if shard.completions else []

    def _rewards(self, shard: RolledOut, graded: Callable[[], list[list[Grade]]], first: bool) -> JsonObject:
        grades = graded()
        self.grading.check(grades, first)
        usage = self.run.load(shard.names.rollouts)["usage"]
        tally = self.grading.tally([grade for group in grades for grade in group], usage)
        return {"rewards": [[grade.reward for grade in group] for group in grades], "tally": tally}
