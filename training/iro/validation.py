"""How good the current stack is on prompts that no value function was fitted on, and which β it should have."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from iro_server.decoding.base import SearchParams
from iro_server.decoding.selection import RULES
from iro_server.engines.describe import Description
from iro_server.graders.base import Grade
from training.iro.ahead import working_ahead
from training.iro.config import AlignConfig
from training.iro.data import Prompt, Slice, shards_of
from training.iro.diagnostics import mean_and_error, mean_and_half_width, samples_to_detect
from training.iro.executor import Executor
from training.iro.grading import Grading, Tally, merge
from training.iro.held import held_schema
from training.iro.over_optimization import measures
from training.iro.rollouts import Batch, rollout_sampling
from training.iro.seeds import BETA, VALIDATION
from training.iro.values import Stack
from training.json_values import JsonObject
from training.run import Run
from value_heads.tilt import Tilt

LogprobsOf = Callable[[Prompt, list[list[int]]], list[float]]
"""The frozen model's, of each of a prompt's completions."""
BETA_GRID = (1.0, 0.5, 2.0)  # the first is taken unless another is better by twice the error of the difference


@dataclass(frozen=True)
class Validated:
    """``rows``: rewards of each prompt, averaged over its searches. ``finals`` and ``picks``: tallies of all that was
    graded, and of what the values picked. ``steps``: the names of what it took."""

    rows: list[JsonObject]
    finals: Tally
    picks: Tally
    steps: list[str]


class Searched(NamedTuple):
    """A batch's finals to be graded: the name of its step, and the seconds that sampling took."""

    name: str
    prompts: Sequence[Prompt]
    tokens: list[list[list[int]]]
    usage: dict[str, int]
    drift: list[JsonObject]
    seconds: float


class Validation:
    """Held-out rewards of policies. ``rescore``: the frozen model's log-probability of each of a prompt's completions,
    where the engine does not report it of a tilted policy. ``tallies``: of all that the steps graded, by step, in the
    order in which a job takes them."""

    rescore: LogprobsOf | None = None

    def __init__(self, config: AlignConfig, run: Run, model: Description, grading: Grading, executor: Executor) -> None:
        self.config, self.run, self.model, self.grading, self.executor = config, run, model, grading, executor
        self.tallies: dict[str, Tally] = {}

    def validate(
        self,
        name: str,
        prompts: Sequence[Prompt],
        params: SearchParams,
        stack: Stack | None,
        label: str,
        picks: bool = False,
    ) -> Validated:
        """The same seeds every time, so that iterations compare pairwise. ``name`` of the steps, ``label`` to people.

        ``picks``: what the values pick is graded, and nothing else.
        """
        tilt = None if stack is None else stack.tilt
        batches = [
            self.batch(shard, [self.seed(sample, prompt.index) for prompt in shard], params, stack, tilt)
            for sample in range(self.config.eval_samples)
            for shard in shards_of(prompts, self.config.concurrency)
        ]
        names = [f"{name}-{number}" for number in range(len(batches))]
        with self.run.progress(f"Validation of {label}", len(batches)) as advance:
            parts = []
            for part in self.search(names, batches, picks):
                parts.append(part)
                advance()
        rows = average([row for part in parts for row in part["rows"]])
        return Validated(rows, merge(part["finals"] for part in parts), merge(part["picks"] for part in parts), names)

    def seed(self, sample: int, index: int) -> int:
        return self.run.derive_seed(VALIDATION, index, *([sample] if sample else []))

    def search(self, names: Sequence[str], batches: Sequence[Batch], picks: bool = False) -> Iterator[JsonObject]:
        """The steps of batches: what ``judge`` says of each one's rollouts. ``picks``: of the values' picks alone."""
        missing = [batch for name, batch in zip(names, batches, strict=True) if not self.run.has(name)]

        def grade(searched: Searched) -> list[list[Grade]]:
            return self.grading.grade(searched.prompts, searched.tokens) if searched.tokens else []

        with (
            closing(self.executor.roll_out(missing)) as sampled,
            closing(working_ahead(self.sample(names, batches, sampled, picks), grade)) as graded,
        ):
            for searched, grades in graded:
                judge = partial(self.judge, searched, grades)
                result = self.run.step(searched.name, judge, "validation", searched.seconds)
                self.tallies[searched.name] = result["finals"]
                self.grading.charge(result["finals"])
                yield result

    def sample(
        self, names: Sequence[str], batches: Sequence[Batch], sampled: Iterator[JsonObject], picks: bool
    ) -> Iterator[Searched]:
        """The finals of each batch that are to be graded; none where its step is done."""
        for name, batch in zip(names, batches, strict=True):
            if self.run.has(name):
                if self.grading.compares:
                    self.grading.refer(batch.prompts, [row["texts"] for row in self.run.load(name)["rows"]])
                yield Searched(name, batch.prompts, [], {}, [], 0.0)
                continue
            self.run.enter("validation")
            began = time.monotonic()
            rollouts = next(sampled)
            tokens = [finals[:1] for finals in rollouts["tokens"]] if picks else rollouts["tokens"]
            seconds = time.monotonic() - began
            yield Searched(name, batch.prompts, tokens, rollouts["usage"], rollouts["drift"], seconds)

    def judge(self, searched: Searched, graded: Callable[[], list[list[Grade]]]) -> JsonObject:
        """Rewards of each prompt's finals: each, their mean, of the value's pick, of the grader's pick; and tallies.

        ``completions``: ``measures`` of the finals that were graded, of all or of the first.
        """
        grades = graded()
        self.grading.check(grades)
        rows = []
        for prompt, tokens, drift, of_prompt in zip(
            searched.prompts, searched.tokens, searched.drift, grades, strict=True
        ):
            rewards = [grade.reward for grade in of_prompt]
            text = self.model.tokenizer.decode(tokens[0], skip_special_tokens=True)
            logprobs = self.rescore(prompt, tokens) if self.rescore else drift["logprobs"]
            rows.append(
                {
                    "prompt": prompt.index,
                    "value_pick": rewards[0],
                    "grader_pick": max((r for r in rewards if not math.isnan(r)), default=math.nan),
                    "mean": mean_and_error(rewards)[0],
                    "rewards": rewards,
                    "text": text,
                    "tokens": drift["tokens"],
                    "kl": drift["kl"],
                    "logprob": sum(logprobs),
                    "completions": [measures(*final) for final in zip(tokens, logprobs, strict=False)],
                }
                | ({"texts": self.grading.texts([tokens])[0]} if self.grading.compares else {})
            )
        finals = self.grading.tally([grade for group in grades for grade in group], searched.usage)
        picks = self.grading.tally([group[0] for group in grades], {})
        return {"rows": rows, "finals": finals, "picks": picks}

    def choose_beta(
        self, step: int, part: Slice, judged: Stack, betas: Sequence[float], params: SearchParams
    ) -> tuple[float, list[str]]:
        """β of the newest value function, and the names of the steps that choosing it took.

        ``judged``: the stack whose newest value function has not seen ``part.heldout``. β is 1 unless another gives
        guided finals on those prompts whose reward is higher by twice the standard error of the paired difference.
        Reconstruction: the paper gives schedules.
        """
        if self.config.betas != "auto":
            return self.config.betas[step - 1], []
        if not tries_betas(self.config, len(betas)):
            return 1.0, []
        shards = shards_of(part.heldout, self.config.concurrency)
        trials = [(beta, number) for beta in BETA_GRID for number in range(len(shards))]
        names = [f"{step}-beta-{beta}-{number}" for beta, number in trials]
        batches = [
            self.beta_trial(step, shards[number], judged.with_betas([*betas[:-1], beta]), params)
            for beta, number in trials
        ]
        rewards: dict[float, list[float]] = {beta: [] for beta in BETA_GRID}
        for (beta, _), searched in zip(trials, self.search(names, batches), strict=True):
            rewards[beta] += [row["mean"] for row in searched["rows"]]

        def decide() -> float:
            beta, report = better_beta(rewards)
            self.run.emit("message", f"Iteration {step}: beta {beta:g}. Held-out reward less that of {report}")
            return beta

        return self.run.step(f"{step}-beta", decide), names

    def beta_trial(self, step: int, prompts: Sequence[Prompt], stack: Stack, params: SearchParams) -> Batch:
        """The same seeds for every β."""
        seeds = [self.run.derive_seed(BETA, step, prompt.index) for prompt in prompts]
        return self.batch(prompts, seeds, params, stack, stack.tilt)

    def batch(
        self,
        prompts: Sequence[Prompt],
        seeds: Sequence[int],
        params: SearchParams,
        stack: Stack | None,
        tilt: Tilt | None,
    ) -> Batch:
        sampling = rollout_sampling(self.config.temperature, self.model.info, held_schema(self.config, self.model))
        return Batch(prompts, seeds, sampling, params, self.config.horizon, stack, tilt)


def better_beta(rewards: Mapping[float, Sequence[float]]) -> tuple[float, str]:
    """The first β, or the best of those that are surely better; and the comparison as a text.

    ``rewards``: of the same prompts in the same order by each β, at least two of them.
    """
    first, *others = rewards
    best, best_gain, parts = first, 0.0, []
    for beta in others:
        differences = [new - old for new, old in zip(rewards[beta], rewards[first], strict=True)]
        gain, error = mean_and_error(differences)
        parts.append(f"{beta:g}: {gain:+.3f} ± {mean_and_half_width(differences)[1]:.3f}")
        if gain > 2 * error and gain > best_gain:
            best, best_gain = beta, gain
    low, high = min(others), max(others)
    between = [new - old for new, old in zip(rewards[low], rewards[high], strict=True)]
    needed = samples_to_detect(between)
    advice = f"; to tell {low:g} from {high:g} at this difference takes about {needed} prompts" if needed else ""
    return best, f"{first:g}, on {len(rewards[first])} prompts: {', '.join(parts)}{advice}"


def tries_betas(config: AlignConfig, value_functions: int) -> bool:
    """With one value function, rules that rank do not depend on β."""
    return config.betas == "auto" and (value_functions > 1 or RULES[config.selection].samples)


def average(rows: Sequence[JsonObject]) -> list[JsonObject]:
    """A row for each prompt, from one for each of its searches; the text is the first's. ``rewards``: of each search.
    ``picks``: of ``completions``, the first of each search."""
    by_prompt: dict[int, list[JsonObject]] = {}
    for row in rows:
        by_prompt.setdefault(row["prompt"], []).append(row)
    means = ("value_pick", "grader_pick", "mean", "tokens", "logprob", "kl")
    return [
        of_prompt[0]
        | {"text_reward": of_prompt[0]["value_pick"]}
        | {name: mean_and_error([row[name] for row in of_prompt])[0] for name in means if name in of_prompt[0]}
        | ({"rewards": [row["rewards"] for row in of_prompt]} if "rewards" in of_prompt[0] else {})
        | _completions(of_prompt)
        for of_prompt in by_prompt.values()
    ]


def _completions(searches: Sequence[JsonObject]) -> JsonObject:
    if "completions" not in searches[0]:  # from a version that did not measure them
        return {}
    return {
        "completions": [part for row in searches for part in row["completions"]],
        "picks": [row["completions"][0] for row in searches],
    }
