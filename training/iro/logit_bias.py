"""What a request to a closed chat endpoint should set: a temperature, and the strongest entries of a static tilt.

The endpoint offers ``/chat/completions`` with ``logit_bias`` and nothing more, as closed models do. Its answers are
sampled and graded, a number for each token is fitted by ridge regression (``value_heads.bias_fit``), held-out prompts
choose the strength and then the temperature among those whose answers repeat themselves no more than plain ones do, and
other prompts compare that request with the plain one. Reconstruction: the static term and the sharpness of a tilt
(``value_heads.tilt``) are all that such an endpoint applies.
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
COOLER = (2 / 3, 1 / 2, 1 / 3)  # times the temperature, tried in this order while the reward rises
Bias = dict[int, float]


class LogitBiasConfig(JobConfig):
    """The endpoint, the task, and how it is fitted. Lengths are in tokens. Its key is read from IRO_ENGINE_KEY."""

    url: EngineUrl = Field(description="The base URL of an OpenAI-compatible API.")
    model: str = Field(description="The model's name there.")
    tokenizer: Path = Field(description="A directory with the model's tokenizer, in Hugging Face's format.")
    training_file: Path = Field(description="JSONL rows with messages or prompt, as of an alignment job.")
    grader: JsonObject = Field(description="The reward, in OpenAI's shape.")
    samples_per_prompt: int = Field(8, ge=2, le=128, description="Plain samples of each prompt.")
    max_tokens: int = Field(64, ge=1, description="Maximum length of a completion.")
    temperature: float = Field(1.0, gt=0, description="Of plain samples. Lower ones are tried on held-out prompts.")
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
    """Rows by purpose. ``held_out``: choose strength and temperature. ``check``: compare with plain requests."""

    train: list[JsonObject]
    held_out: list[JsonObject]
    check: list[JsonObject]


class Decoding(NamedTuple):
    """What a request sets beside its messages."""

    logit_bias: Bias
    temperature: float


class Setting(NamedTuple):
    """``strength``: of the bias, 0 for none."""

    strength: float
    temperature: float


class Trial(NamedTuple):
    """Answers on held-out prompts in one setting: the mean reward of each prompt's, and the distinct-2 of each."""

    rewards: list[float]
    distinct_2: list[float]

    @property
    def reward(self) -> float:
        return mean_and_error(self.rewards)[0]


def run(config: LogitBiasConfig, run: Run) -> JsonObject:
    """``request``: the chosen ``logit_bias`` and ``temperature``, those of plain samples where no others are surely
    better; and what it is worth."""
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
        plain = self.plain_setting
        sampled = self.sample("rollouts", self.parts.train, self.plain, ROLLOUTS)
        static_V = self.run.step("fit", lambda: self.fit(sampled), "fitting")
        base = self.trial(plain, static_V)
        trials = self.try_strengths(static_V, base)
        trials |= self.try_temperatures(static_V, base, trials)
        chosen = best_setting(trials, base) or plain
        decoding = self.decoding(chosen, static_V)
        result = self.check(decoding) | {"strength": chosen.strength, "request": decoding._asdict()}
        (self.run.folder / "request.json").write_text(json.dumps(decoding._asdict(), indent=1) + "\n")
        return result | {
            "trials": [
                setting._asdict() | {"reward": trial.reward, "distinct_2": float(np.nanmedian(trial.distinct_2))}
                for setting, trial in ({plain: base} | trials).items()
            ],
            "tokens": self.tokens,
        }

    @property
    def plain_setting(self) -> Setting:
        return Setting(0.0, self.config.temperature)

    @property
    def plain(self) -> Decoding:
        return Decoding({}, self.config.temperature)

    def try_strengths(self, static_V: torch.Tensor, base: Trial) -> dict[Setting, Trial]:
        settings = [Setting(strength, self.config.temperature) for strength in self.config.strengths]
        trials = {setting: self.trial(setting, static_V) for setting in settings}
        for _ in range(MOST_DOUBLINGS):
            largest = max(trials)
            if best_setting(trials, base) != largest:
                break
            doubled = largest._replace(strength=2 * largest.strength)
            trials[doubled] = self.trial(doubled, static_V)
        return trials

    def try_temperatures(
        self, static_V: torch.Tensor, base: Trial, tried: Mapping[Setting, Trial]
    ) -> dict[Setting, Trial]:
        """The best setting, or the plain one, at lower temperatures, up to the first that does not raise the reward."""
        start = best_setting(tried, base) or self.plain_setting
        trials: dict[Setting, Trial] = {}
        before = tried.get(start, base)
        for share in COOLER:
            setting = start._replace(temperature=share * self.config.temperature)
            trials[setting] = trial = self.trial(setting, static_V)
            if trial.reward <= before.reward or repeats(trial, base):
                break
            before = trial
        return trials

    def trial(self, setting: Setting, static_V: torch.Tensor) -> Trial:
        cooler = f"-temperature-{setting.temperature:.3g}" if setting.temperature != self.config.temperature else ""
        name = f"trial-{setting.strength:g}{cooler}"
        parts = self.sample(name, self.parts.held_out, self.decoding(setting, static_V), TILT)
        texts = [text for part in parts for group in part["texts"] for text in group]
        tokens = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        return Trial(rewards_of(parts), [measures(answer, 0.0)["distinct_2"] for answer in tokens])

    def decoding(self, setting: Setting, static_V: torch.Tensor) -> Decoding:
        bias = self.entries(static_V * setting.strength) if setting.strength else {}
        return Decoding(bias, setting.temperature)

    def sample(self, name: str, rows: Sequence[JsonObject], decoding: Decoding, stream: int) -> list[JsonObject]:
        """Graded answers to each row, shard by shard: ``texts`` and ``rewards`` [rows, samples] and ``tokens``."""
        shards = [range(start, min(start + SHARD, len(rows))) for start in range(0, len(rows), SHARD)]
        with self.run.progress(name, len(shards)) as advance:
            parts = []
            for number, places in enumerate(shards):
                seeds = [self.run.derive_seed(stream, place) % 2**31 for place in places]
                ask = partial(self.ask, [rows[place] for place in places], seeds, decoding)
                parts.append(self.run.step(f"{name}-{number}", ask, "sampling"))
                advance()
        self.tokens += sum(part["tokens"] for part in parts)
        return parts

    def ask(self, rows: Sequence[JsonObject], seeds: Sequence[int], decoding: Decoding) -> JsonObject:
        """AlignError for a request that the endpoint refuses, or a text that cannot be graded."""
        requests = [self.request(row, seed, decoding) for row, seed in zip(rows, seeds, strict=True)]
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

    def request(self, row: JsonObject, seed: int, decoding: Decoding) -> JsonObject:
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        config = self.config
        body = {"model": config.model, "messages": messages, "n": config.samples_per_prompt, "seed": seed}
        body |= {"max_tokens": config.max_tokens, "temperature": decoding.temperature}
        bias = {str(token): value for token, value in decoding.logit_bias.items()}
        return body | ({"logit_bias": bias} if bias else {})

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

    def check(self, decoding: Decoding) -> JsonObject:
        """The chosen request against the plain one on prompts that chose nothing: mean rewards and the paired gain."""
        plain, chosen = (self.checked(each) for each in (self.plain, decoding))
        gain, error = mean_and_error([new - old for new, old in zip(chosen, plain, strict=True)])
        improved = gain - 1.96 * error > 0
        message = f"Held-out reward {mean_and_error(chosen)[0]:.3f}, plain {mean_and_error(plain)[0]:.3f}"
        self.run.emit("message", message, level="info" if improved else "warn")
        return {
            "improved": improved,
            "baseline": mean_and_error(plain)[0],
            "reward": mean_and_error(chosen)[0],
            "gain": gain,
            "gain_error": 1.96 * error,
        }

    def checked(self, decoding: Decoding) -> list[float]:
        name = "check-0" if decoding == self.plain else "check-chosen"
        return rewards_of(self.sample(name, self.parts.check, decoding, VALIDATION))


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


def best_setting(trials: Mapping[Setting, Trial], base: Trial) -> Setting | None:
    """The setting of the highest reward among those whose answers do not repeat themselves; None unless it is above
    the plain one's by twice the error of the paired difference."""
    varied = {setting: trial for setting, trial in trials.items() if not repeats(trial, base)}
    if not varied:
        return None
    best = max(varied, key=lambda setting: varied[setting].reward)
    gain, error = mean_and_error([new - old for new, old in zip(varied[best].rewards, base.rewards, strict=True)])
    return best if gain > 2 * error else None


def repeats(trial: Trial, base: Trial) -> bool:
    """Whether the median distinct-2 is one that ``TAIL`` of the plain answers have at most."""
    return bool(np.nanmedian(trial.distinct_2) < np.nanquantile(base.distinct_2, TAIL))


JOB = Job(
    name="align.logit_bias",
    summary="A logit_bias and a temperature for a model behind a chat endpoint, from its own graded answers",
    Config=LogitBiasConfig,
    run=run,
)
