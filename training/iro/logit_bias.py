"""A bias for a model behind a chat endpoint: the strongest entries of a static tilt, fitted from its own answers.

The endpoint offers ``/chat/completions`` with ``logit_bias`` and nothing more, as closed models do. Its answers are
sampled and graded, a number for each token is fitted by ridge regression (``value_heads.bias_fit``), held-out prompts
choose the strength among those whose answers repeat themselves no more than plain ones do, and other prompts compare
the biased model with the plain one. Reconstruction: the static term of a
tilt (``value_heads.tilt``) is all that such an endpoint applies.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from iro_server.engines.endpoints import KEY_VARIABLE, EngineUrl
from iro_server.graders.asking import Asker
from iro_server.graders.base import Grader, Sample
from iro_server.graders.parsing import parse_grader
from iro_server.graders.posting import Endpoint
from training.iro.data import AlignError, numbered_rows
from training.iro.diagnostics import mean_and_error
from training.iro.over_optimization import TAIL, measures
from training.iro.seeds import ROLLOUTS, SPLIT, TILT, VALIDATION
from training.json_values import JsonObject
from training.run import Job, JobConfig, Run
from value_heads.bias_fit import fit_bias
from value_heads.tilt_export import logit_bias

LIMIT = 100.0  # what the API clamps an entry to
SHARD = 16  # prompts that are asked at once
MIN_PROMPTS = 12
MOST_DOUBLINGS = 2  # of the largest strength, while it is the best
Bias = dict[int, float]
NO_BIAS: Bias = {}


class LogitBiasConfig(JobConfig):
    """The endpoint, the task, and how it is fitted. Lengths are in tokens. Its key is read from IRO_ENGINE_KEY."""

    url: EngineUrl = Field(description="The base URL of an OpenAI-compatible API.")
    model: str = Field(description="The model's name there.")
    tokenizer: Path = Field(description="A directory with the model's tokenizer, in Hugging Face's format.")
    training_file: Path = Field(description="JSONL rows with messages or prompt, as of an alignment job.")
    grader: JsonObject = Field(description="The reward, in OpenAI's shape.")
    samples_per_prompt: int = Field(8, ge=2, le=128, description="Plain samples of each prompt.")
    max_tokens: int = Field(64, ge=1, description="Maximum length of a completion.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature.")
    entries: int = Field(300, ge=1, description="Entries of logit_bias. OpenAI takes 300.")
    strengths: tuple[float, ...] = Field(
        (2.0, 4.0, 8.0, 16.0),
        min_length=1,
        description="Tried on held-out prompts. The largest is doubled while it is the best, twice at most.",
    )
    movable = frozenset({"url"})

    @model_validator(mode="after")
    def _strengths_are_positive(self) -> LogitBiasConfig:
        if not all(math.isfinite(strength) and strength > 0 for strength in self.strengths):
            raise ValueError("strengths: positive numbers")
        return self


class Parts(NamedTuple):
    """Rows by purpose. ``held_out``: choose the strength. ``check``: compare the biased model with the plain one."""

    train: list[JsonObject]
    held_out: list[JsonObject]
    check: list[JsonObject]


class Trial(NamedTuple):
    """Answers on held-out prompts at one strength: the mean reward of each prompt's, and the distinct-2 of each."""

    rewards: list[float]
    distinct_2: list[float]


def run(config: LogitBiasConfig, run: Run) -> JsonObject:
    """``logit_bias`` of the chosen strength, none where no strength is surely better, and what it is worth."""
    endpoint = Endpoint(config.url, os.environ.get(KEY_VARIABLE, ""), quoted=True)
    with closing(Asker(endpoint)) as asker, parse_grader(config.grader) as grader:
        if grader.compares:
            message = "a ranking compares completions of one call alone, and this job compares biases by their rewards"
            raise AlignError(message, "invalid_grader", "grader")
        return BiasFit(config, run, asker, grader).run_all()


class BiasFit:
    def __init__(self, config: LogitBiasConfig, run: Run, asker: Asker, grader: Grader) -> None:
        from transformers import AutoTokenizer

        self.config, self.run, self.asker, self.grader = config, run, asker, grader
        self.tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        self.parts = split_rows(config, run.rng(SPLIT))
        self.tokens = 0  # that the endpoint counted

    def run_all(self) -> JsonObject:
        sampled = self.sample("rollouts", self.parts.train, NO_BIAS, ROLLOUTS)
        static_V = self.run.step("fit", lambda: self.fit(sampled), "fitting")
        base = self.trial(0.0, NO_BIAS)
        trials = self.try_strengths(static_V, base)
        chosen = best_strength(trials, base)
        bias = self.entries(static_V * chosen) if chosen is not None else NO_BIAS
        result = self.check(bias) | {"strength": chosen, "logit_bias": bias}
        (self.run.folder / "logit_bias.json").write_text(json.dumps(bias, indent=1) + "\n")
        by_strength = {f"{strength:g}": trial for strength, trial in ({0.0: base} | trials).items()}
        return result | {
            "trials": {name: mean_and_error(trial.rewards)[0] for name, trial in by_strength.items()},
            "distinct_2": {name: float(np.nanmedian(trial.distinct_2)) for name, trial in by_strength.items()},
            "tokens": self.tokens,
        }

    def try_strengths(self, static_V: torch.Tensor, base: Trial) -> dict[float, Trial]:
        trials = {
            strength: self.trial(strength, self.entries(static_V * strength)) for strength in self.config.strengths
        }
        for _ in range(MOST_DOUBLINGS):
            largest = max(trials)
            if best_strength(trials, base) != largest:
                break
            trials[2 * largest] = self.trial(2 * largest, self.entries(static_V * 2 * largest))
        return trials

    def trial(self, strength: float, bias: Bias) -> Trial:
        parts = self.sample(f"trial-{strength:g}", self.parts.held_out, bias, TILT)
        texts = [text for part in parts for group in part["texts"] for text in group]
        tokens = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return Trial(rewards_of(parts), [measures(answer, 0.0)["distinct_2"] for answer in tokens])

    def sample(self, name: str, rows: Sequence[JsonObject], bias: Bias, stream: int) -> list[JsonObject]:
        """Graded answers to each row, shard by shard: ``texts`` and ``rewards`` [rows, samples] and ``tokens``."""
        shards = [range(start, min(start + SHARD, len(rows))) for start in range(0, len(rows), SHARD)]
        with self.run.progress(name, len(shards)) as advance:
            parts = []
            for number, places in enumerate(shards):
                seeds = [self.run.derive_seed(stream, place) % 2**31 for place in places]
                chosen = [rows[place] for place in places]
                parts.append(self.run.step(f"{name}-{number}", partial(self.ask, chosen, seeds, bias), "sampling"))
                advance()
        self.tokens += sum(part["tokens"] for part in parts)
        return parts

    def ask(self, rows: Sequence[JsonObject], seeds: Sequence[int], bias: Bias) -> JsonObject:
        """AlignError for a request that the endpoint refuses, or a text that cannot be graded."""
        requests = [self.request(row, seed, bias) for row, seed in zip(rows, seeds, strict=True)]
        answers = self.asker.ask(requests)
        if errors := [answer.error for answer in answers if answer.error]:
            raise AlignError(f"{self.config.url}: {errors[0]}", "endpoint_error", "url")
        texts = [[str(c["message"].get("content") or "") for c in answer.body["choices"]] for answer in answers]
        pairs = [(Sample(text), row) for row, group in zip(rows, texts, strict=True) for text in group]
        grades = iter(self.grader.grade_many(pairs))
        rewards = [[next(grades) for _ in group] for group in texts]
        if failed := [grade.error for group in rewards for grade in group if math.isnan(grade.reward)]:
            raise AlignError(f"{len(failed)} of {len(pairs)} answers: {failed[0]}", "grader_error", "grader")
        tokens = sum(answer.tokens for answer in answers)
        return {"texts": texts, "rewards": [[g.reward for g in group] for group in rewards], "tokens": tokens}

    def request(self, row: JsonObject, seed: int, bias: Bias) -> JsonObject:
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        config = self.config
        body = {"model": config.model, "messages": messages, "n": config.samples_per_prompt, "seed": seed}
        body |= {"max_tokens": config.max_tokens, "temperature": config.temperature}
        return body | ({"logit_bias": {str(token): value for token, value in bias.items()}} if bias else {})

    def fit(self, sampled: Sequence[JsonObject]) -> torch.Tensor:
        """[V], in standard deviations of the reward within a prompt. AlignError where all rewards are equal."""
        groups = [*zip(chain(*(p["texts"] for p in sampled)), chain(*(p["rewards"] for p in sampled)), strict=True)]
        if not any(len(set(rewards)) > 1 for _, rewards in groups):
            raise AlignError(
                "no prompt has answers of different rewards: nothing to learn", "constant_reward", "grader"
            )
        answers = [
            (place, self.tokenizer(text, add_special_tokens=False)["input_ids"], reward)
            for place, (texts, rewards) in enumerate(groups)
            for text, reward in zip(texts, rewards, strict=True)
            if text
        ]
        places, completions, rewards = zip(*answers, strict=True)
        head_VD = torch.zeros(len(self.tokenizer), 0)  # nobody outside knows a closed model's head
        return fit_bias(completions, torch.tensor(places), torch.tensor(rewards), head_VD, self.config.seed)

    def entries(self, static_V: torch.Tensor) -> Bias:
        return logit_bias(static_V.clamp(-LIMIT, LIMIT), self.config.entries)

    def check(self, bias: Bias) -> JsonObject:
        """The biased model against the plain one on prompts that chose nothing: mean rewards and the paired gain."""
        plain = rewards_of(self.sample("check-0", self.parts.check, NO_BIAS, VALIDATION))
        biased = rewards_of(self.sample("check-bias", self.parts.check, bias, VALIDATION)) if bias else plain
        gain, error = mean_and_error([new - old for new, old in zip(biased, plain, strict=True)])
        improved = gain - 1.96 * error > 0
        message = f"Held-out reward {mean_and_error(biased)[0]:.3f}, plain {mean_and_error(plain)[0]:.3f}"
        self.run.emit("message", message, level="info" if improved else "warn")
        return {
            "improved": improved,
            "baseline": mean_and_error(plain)[0],
            "reward": mean_and_error(biased)[0],
            "gain": gain,
            "gain_error": 1.96 * error,
        }


def split_rows(config: LogitBiasConfig, rng: np.random.Generator) -> Parts:
    """Half of the prompts fit, a quarter each chooses and checks; equal prompts stay together."""
    by_text: dict[str, list[JsonObject]] = {}
    for place, row in _rows(config.training_file):
        if not isinstance(row, dict) or ("messages" in row) == ("prompt" in row):
            raise AlignError(f'{config.training_file.name}, {place}: not an object with either "messages" or "prompt"')
        by_text.setdefault(json.dumps(row.get("messages") or row["prompt"]), []).append(row)
    groups = list(by_text.values())
    if len(groups) < MIN_PROMPTS:
        raise AlignError(f"{len(groups)} prompts are too few: {MIN_PROMPTS} are needed", param="training_file")
    groups = [groups[place] for place in rng.permutation(len(groups))]
    quarter = len(groups) // 4
    parts = groups[2 * quarter :], groups[:quarter], groups[quarter : 2 * quarter]
    return Parts(*([row for group in part for row in group] for part in parts))


def _rows(path: Path) -> list[tuple[str, JsonObject]]:
    try:
        return list(numbered_rows(path))
    except ValueError as error:
        raise AlignError(f"{path.name}, {error}", param="training_file") from error


def rewards_of(parts: Sequence[JsonObject]) -> list[float]:
    """The mean reward of each row's answers."""
    return [mean_and_error(rewards)[0] for part in parts for rewards in part["rewards"]]


def best_strength(trials: Mapping[float, Trial], base: Trial) -> float | None:
    """The strength of the highest reward among those whose answers do not repeat themselves; None unless it is above
    the plain model's by twice the error of the paired difference."""
    varied = {strength: trial.rewards for strength, trial in trials.items() if not repeats(trial, base)}
    if not varied:
        return None
    best = max(varied, key=lambda strength: mean_and_error(varied[strength])[0])
    gain, error = mean_and_error([new - old for new, old in zip(varied[best], base.rewards, strict=True)])
    return best if gain > 2 * error else None


def repeats(trial: Trial, base: Trial) -> bool:
    """Whether the median distinct-2 is one that ``TAIL`` of the plain answers have at most."""
    return bool(np.nanmedian(trial.distinct_2) < np.nanquantile(base.distinct_2, TAIL))


JOB = Job(
    name="align.logit_bias",
    summary="A logit_bias for a model behind a chat endpoint, from its own graded answers",
    Config=LogitBiasConfig,
    run=run,
)
