"""How good the current stack is on prompts that no value function was fitted on, and which β it should have."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from iro_server.decoding.base import SearchParams
from training.iro.config import AlignConfig
from training.iro.data import Described, Prompt, Slice
from training.iro.diagnostics import mean_and_error
from training.iro.executor import Executor
from training.iro.grading import Grading, Tally, merge
from training.iro.rollouts import Batch, guided
from training.iro.seeds import BETA, VALIDATION
from training.iro.values import Stack
from training.run import Run, jsonable

BETA_GRID = (1.0, 0.5, 2.0)  # of equally good ones the first is taken
BETA_PROMPTS = 8


@dataclass(frozen=True)
class Validated:
    """``rows``: rewards of each prompt, averaged over its searches. ``finals`` and ``picks``: tallies of all that was
    graded, and of what the values picked. ``steps``: the names of what it took."""

    rows: list[dict[str, Any]]
    finals: Tally
    picks: Tally
    steps: list[str]


class Validation:
    def __init__(self, config: AlignConfig, run: Run, engine: Described, grading: Grading, executor: Executor) -> None:
        self.config, self.run, self.engine, self.grading, self.executor = config, run, engine, grading, executor

    def validate(
        self, step: int, prompts: Sequence[Prompt], params: SearchParams, stack: Stack | None, what: str
    ) -> Validated:
        """The same seeds every time, so that iterations compare pairwise."""
        size = self.config.concurrency
        batches = [
            Batch(shard, [self.seed(sample, prompt.index) for prompt in shard], params, stack)
            for sample in range(self.config.eval_samples)
            for shard in (prompts[i : i + size] for i in range(0, len(prompts), size))
        ]
        names = [f"{step}-valid-{number}" for number in range(len(batches))]
        with self.run.progress(f"Validation of {what}", len(batches)) as advance:
            parts = []
            for part in self.search(names, batches):
                parts.append(part)
                advance()
        rows = average([row for part in parts for row in part["rows"]])
        return Validated(rows, merge(part["finals"] for part in parts), merge(part["picks"] for part in parts), names)

    def seed(self, sample: int, index: int) -> int:
        return self.run.derive_seed(VALIDATION, index, *([sample] if sample else []))

    def search(self, names: Sequence[str], batches: Sequence[Batch]) -> Iterator[dict[str, Any]]:
        """The steps of batches: what ``judge`` says of each one's rollouts."""
        missing = [batch for name, batch in zip(names, batches, strict=True) if not self.run.has(name)]
        with closing(self.executor.roll_out(missing)) as found:
            for name, batch in zip(names, batches, strict=True):
                yield self.run.step(name, partial(self.judge, batch.prompts, found), "validation")

    def judge(self, prompts: Sequence[Prompt], found: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Rewards of each prompt's finals: of the value's pick, of the grader's pick, and their mean; and tallies."""
        rollouts = next(found)
        grades = self.grading.grade(prompts, rollouts["tokens"])
        rows = []
        for prompt, finals, of_prompt in zip(prompts, rollouts["tokens"], grades, strict=True):
            rewards = [grade.reward for grade in of_prompt]
            text = self.engine.tokenizer.decode(finals[0], skip_special_tokens=True)
            rows.append(
                {
                    "prompt": prompt.index,
                    "value_pick": rewards[0],
                    "grader_pick": max((r for r in rewards if not math.isnan(r)), default=math.nan),
                    "mean": mean_and_error(rewards)[0],
                    "text": text,
                }
            )
        finals = self.grading.tally([grade for group in grades for grade in group], rollouts["usage"])
        picks = self.grading.tally([group[0] for group in grades], {})
        return {"rows": rows, "finals": finals, "picks": picks}

    def choose_beta(self, step: int, part: Slice, stack: Stack, betas: Sequence[float]) -> tuple[float, list[str]]:
        """β of the newest value function: the one whose guided finals are best on prompts held out of its fit; and the
        names of the steps that it took.

        Reconstruction: the paper gives schedules.
        """
        if self.config.betas != "auto":
            return self.config.betas[step - 1], []
        if not tries_betas(self.config, step):
            return 1.0, []
        prompts = part.heldout[:BETA_PROMPTS]
        seeds = [self.run.derive_seed(BETA, step, prompt.index) for prompt in prompts]
        names = [f"{step}-beta-{beta}" for beta in BETA_GRID]
        batches = [
            Batch(prompts, seeds, guided(self.config), stack.with_betas([*betas[:-1], beta])) for beta in BETA_GRID
        ]
        found = zip(BETA_GRID, self.search(names, batches), strict=True)
        scores = {beta: mean_and_error([row["mean"] for row in part["rows"]])[0] for beta, part in found}

        def decide() -> float:
            self.run.emit("message", f"Iteration {step}: mean held-out reward by beta {jsonable(scores)}")
            return max(scores, key=lambda beta: -math.inf if math.isnan(scores[beta]) else scores[beta])

        return self.run.step(f"{step}-beta", decide), names


def tries_betas(config: AlignConfig, step: int) -> bool:
    """With one value function, rules that rank do not depend on β."""
    return config.betas == "auto" and (step > 1 or config.selection == "smc")


def average(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each prompt, from one for each of its searches; the text is the first's."""
    by_prompt: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    means = ("value_pick", "grader_pick", "mean")
    return [
        of_prompt[0] | {name: mean_and_error([row[name] for row in of_prompt])[0] for name in means}
        for of_prompt in by_prompt.values()
    ]
