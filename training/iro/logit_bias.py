"""What a request to a closed chat endpoint should set: the strongest entries of a static tilt, a temperature and a
presence penalty.

The endpoint offers ``/chat/completions`` with these fields and nothing more, as closed models do. Its answers are
sampled and graded, a number for each token is fitted by ridge regression (``value_heads.bias_fit``), held-out prompts
choose the strength, a presence penalty where the best answers repeat themselves, and then the temperature, among those
whose answers repeat themselves no more than plain ones do, and other prompts compare that request with the
plain one. Reconstruction: the static term, the sharpness and the constant penalty of a tilt (``value_heads.tilt``) are
all that such an endpoint applies.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator

from iro_server.engines.endpoints import KEY_VARIABLE, EngineUrl, checked_key
from iro_server.graders.asking import Answer, Asker
from iro_server.graders.base import Grader, Sample
from iro_server.graders.parsing import parse_grader
from iro_server.graders.posting import Endpoint
from training.iro.data import AlignError
from training.iro.diagnostics import mean_and_error, mean_and_half_width
from training.iro.logit_bias_rows import rewards_by_prompt, split_rows
from training.iro.over_optimization import TAIL, measures
from training.iro.seeds import ROLLOUTS, SPLIT, TILT, VALIDATION
from training.iro.trials import Levels, best_trial, mean_reward, mended_trials, refused_trials, sharper_trials
from training.json_values import JsonObject
from training.run import Job, JobConfig, Run
from value_heads.bias_fit import fit_bias
from value_heads.tilt_export import logit_bias

LIMIT = 100.0  # what the API clamps an entry to
SHARD = 16  # prompts that are asked at once
MOST_DOUBLINGS = 2  # of the largest strength, while it is the best
MOST_PENALTY = 2.0  # that the API takes
Bias = dict[int, float]


class LogitBiasConfig(JobConfig):
    """The endpoint, the task, and how it is fitted. Lengths are in tokens. Its key is read from IRO_ENGINE_KEY."""

    url: EngineUrl = Field(description="The base URL of an OpenAI-compatible API.")
    model: str = Field(description="The model's name there.")
    tokenizer: Path = Field(description="A directory with the model's tokenizer, in Hugging Face's format.")
    training_file: Path = Field(description="JSONL rows with messages or prompt, as of an alignment job; no tools.")
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
    presence_penalties: tuple[float, ...] = Field(
        (1.0, MOST_PENALTY),
        description="Tried, in rising order, where the answers of the highest reward repeat themselves. [] tries none.",
    )
    movable = frozenset({"url"})
    extendable = frozenset({"presence_penalties"})

    @model_validator(mode="after")
    def _numbers_are_in_their_ranges(self) -> LogitBiasConfig:
        if not all(math.isfinite(strength) and strength > 0 for strength in self.strengths):
            raise ValueError("strengths: positive numbers")
        if not all(0 < penalty <= MOST_PENALTY for penalty in self.presence_penalties):
            raise ValueError(f"presence_penalties: positive numbers, at most {MOST_PENALTY:g}")
        return self


class Decoding(NamedTuple):
    """What a request sets beside its messages."""

    logit_bias: Bias
    temperature: float
    presence_penalty: float = 0.0

    def request(self) -> JsonObject:
        """Without the fields that change nothing: an endpoint may not offer them."""
        bias = {str(token): value for token, value in self.logit_bias.items()}
        penalty = {"presence_penalty": self.presence_penalty} if self.presence_penalty else {}
        return {"temperature": self.temperature} | ({"logit_bias": bias} if bias else {}) | penalty


class Setting(NamedTuple):
    """``strength``: of the bias, 0 for none. ``sharpness``: s for the temperature of plain samples over 1 + s."""

    strength: float = 0.0
    sharpness: float = 0.0
    penalty: float = 0.0


PLAIN = Setting()


class Trial(NamedTuple):
    """Answers on held-out prompts in one setting: the mean reward of each prompt's, and the distinct-2 of each."""

    setting: Setting
    rewards: list[float]
    distinct_2: list[float]

    @property
    def sharpness(self) -> float:
        return self.setting.sharpness

    @property
    def penalty(self) -> float:
        return self.setting.penalty


class Varied(NamedTuple):
    """What the answers of a setting keep to: the median of their distinct-2."""

    least_distinct_2: float

    @classmethod
    def of(cls, plain: Trial) -> Varied:
        """What ``TAIL`` of the plain answers have at most."""
        return cls(float(np.nanquantile(plain.distinct_2, TAIL)))

    def repeats(self, trial: Trial) -> bool:
        return bool(np.nanmedian(trial.distinct_2) < self.least_distinct_2)

    def is_unlikely(self, trial: Trial) -> bool:
        """An endpoint may not say how likely its answers are."""
        return False

    def allow(self, trial: Trial) -> bool:
        return not self.repeats(trial)


def run(config: LogitBiasConfig, run: Run) -> JsonObject:
    """``request``: the chosen ``logit_bias``, ``temperature`` and ``presence_penalty``, those of plain samples where no
    others are surely better; and what it is worth."""
    endpoint = Endpoint(config.url, endpoint_key(), quoted=True)
    with closing(Asker(endpoint)) as asker, parse_grader(config.grader) as grader:
        if grader.compares:
            message = "a ranking compares completions of one call alone, and this job compares biases by their rewards"
            raise AlignError(message, "invalid_grader", "grader")
        return BiasFit(config, run, asker, grader).run_all()


def endpoint_key() -> str:
    """Of the environment, "" for none. AlignError for one that no header takes."""
    try:
        return checked_key(os.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE)
    except ValueError as error:
        raise AlignError(str(error), "endpoint_error") from error


class BiasFit:
    static_V: torch.Tensor  # once fitted

    def __init__(self, config: LogitBiasConfig, run: Run, asker: Asker, grader: Grader) -> None:
        from transformers import AutoTokenizer

        self.config, self.run, self.asker, self.grader = config, run, asker, grader
        self.tokenizer = AutoTokenizer.from_pretrained(config.tokenizer)
        self.parts = split_rows(config.training_file, run.rng(SPLIT))
        self.tokens = 0  # that the endpoint counted

    def run_all(self) -> JsonObject:
        sampled = self.sample("rollouts", self.parts.train, self.decoding(PLAIN), ROLLOUTS)
        self.static_V = self.run.step("fit", lambda: self.fit(sampled), "fitting")
        base = self.trial(PLAIN)
        limits = Varied.of(base)
        trials = self.try_strengths(base, limits)
        trials += self.try_penalties(trials, base, limits)
        trials += self.try_temperatures(trials, base, limits)
        chosen = (best_trial(trials, base, limits) or base).setting
        decoding = self.decoding(chosen)
        result = self.check(chosen) | {"setting": chosen._asdict(), "request": decoding._asdict()}
        request = {"logit_bias": decoding.logit_bias} | decoding.request()
        (self.run.folder / "request.json").write_text(json.dumps(request, indent=1) + "\n")
        return result | {"trials": [self.row(trial) for trial in [base, *trials]], "tokens": self.tokens}

    def row(self, trial: Trial) -> JsonObject:
        return {
            "strength": trial.setting.strength,
            "temperature": self.temperature(trial.setting),
            "presence_penalty": trial.setting.penalty,
            "reward": mean_reward(trial),
            "distinct_2": float(np.nanmedian(trial.distinct_2)),
        }

    def try_strengths(self, base: Trial, limits: Varied) -> list[Trial]:
        trials = [self.trial(Setting(strength)) for strength in self.config.strengths]
        for _ in range(MOST_DOUBLINGS):
            largest = max(trials, key=lambda trial: trial.setting.strength)
            if best_trial(trials, base, limits) is not largest:
                break
            trials.append(self.trial(Setting(2 * largest.setting.strength)))
        return trials

    def try_penalties(self, tried: Sequence[Trial], base: Trial, limits: Varied) -> list[Trial]:
        """Settings whose answers repeat themselves, and whose rewards are above all others, with penalties on that: by
        falling reward, up to the first that a penalty mends."""
        trials: list[Trial] = []
        for start in refused_trials(tried, base, limits):
            trials += mended_trials(start, partial(self.adjusted, start.setting), limits, self.levels)
            if trials and limits.allow(trials[-1]):
                break
        return trials

    def try_temperatures(self, tried: Sequence[Trial], base: Trial, limits: Varied) -> list[Trial]:
        """The best setting, or the plain one, at lower temperatures."""
        start = best_trial(tried, base, limits) or base
        return sharper_trials(start, partial(self.adjusted, start.setting), limits, self.levels)

    @property
    def levels(self) -> Levels:
        return Levels(penalties=sorted(self.config.presence_penalties))

    def adjusted(self, setting: Setting, sharpness: float, penalty: float) -> Trial:
        return self.trial(Setting(setting.strength, sharpness, penalty))

    def trial(self, setting: Setting) -> Trial:
        parts = self.sample(self.name("trial", setting), self.parts.held_out, self.decoding(setting), TILT)
        texts = [text for part in parts for group in part["texts"] for text in group]
        tokens = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        rewards = rewards_by_prompt(self.parts.held_out, parts)
        return Trial(setting, rewards, [measures(answer, 0.0)["distinct_2"] for answer in tokens])

    def name(self, purpose: str, setting: Setting) -> str:
        """Of the steps that sample in a setting."""
        cooler = f"-temperature-{self.temperature(setting):.3g}" if setting.sharpness else ""
        return f"{purpose}-{setting.strength:g}{cooler}" + (f"-penalty-{setting.penalty:g}" if setting.penalty else "")

    def temperature(self, setting: Setting) -> float:
        return self.config.temperature / (1 + setting.sharpness)

    def decoding(self, setting: Setting) -> Decoding:
        bias = self.entries(self.static_V * setting.strength) if setting.strength else {}
        return Decoding(bias, self.temperature(setting), setting.penalty)

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
        texts, tokens = self.answer_texts(rows, seeds, decoding)
        pairs = [(Sample(text), row) for row, group in zip(rows, texts, strict=True) for text in group]
        grades = iter(self.grader.grade_many(pairs))
        rewards = [[next(grades) for _ in group] for group in texts]
        if failed := [grade.error for group in rewards for grade in group if math.isnan(grade.reward)]:
            raise AlignError(f"{len(failed)} of {len(pairs)} answers: {failed[0]}", "grader_error", "grader")
        return {"texts": texts, "rewards": [[g.reward for g in group] for group in rewards], "tokens": tokens}

    def answer_texts(
        self, rows: Sequence[JsonObject], seeds: Sequence[int], decoding: Decoding
    ) -> tuple[list[list[str]], int]:
        """``samples_per_prompt`` answers to each row, and the tokens that the endpoint counted.

        An endpoint that returns fewer choices than ``n`` is asked again, with other seeds, for those that are missing.
        """
        count = self.config.samples_per_prompt
        texts: list[list[str]] = [[] for _ in rows]
        tokens = 0
        while short := [place for place, group in enumerate(texts) if len(group) < count]:
            counts = [len(texts[place]) for place in short]
            requests = [
                self.request(rows[place], (seeds[place] + num_texts) % 2**31, count - num_texts, decoding)
                for place, num_texts in zip(short, counts, strict=True)
            ]
            for place, num_texts, answer in zip(short, counts, self.answers(requests, decoding), strict=True):
                choices = answer.body["choices"][: count - num_texts]
                if not choices:
                    raise AlignError(f"{self.config.url}: an answer has no choices", "endpoint_error", "url")
                texts[place] += [str(choice["message"].get("content") or "") for choice in choices]
                tokens += answer.tokens
        return texts, tokens

    def answers(self, requests: Sequence[JsonObject], decoding: Decoding) -> list[Answer]:
        answers = self.asker.ask(requests)
        if errors := [answer.error for answer in answers if answer.error]:
            hint = "; presence_penalties=[] tries none" if decoding.presence_penalty else ""
            raise AlignError(f"{self.config.url}: {errors[0]}{hint}", "endpoint_error", "url")
        return answers

    def request(self, row: JsonObject, seed: int, count: int, decoding: Decoding) -> JsonObject:
        messages = row.get("messages") or [{"role": "user", "content": row["prompt"]}]
        config = self.config
        body = {"model": config.model, "messages": messages, "n": count, "seed": seed}
        return body | {"max_tokens": config.max_tokens} | decoding.request()

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
        rewards_R = torch.tensor(rewards, dtype=torch.float64)
        return fit_bias(completions, torch.tensor(places), rewards_R, head_VD, self.config.seed)

    def entries(self, static_V: torch.Tensor) -> Bias:
        return logit_bias(static_V.clamp(-LIMIT, LIMIT), self.config.entries)

    def check(self, setting: Setting) -> JsonObject:
        """The chosen setting against the plain one on prompts that chose nothing: mean rewards and the paired gain."""
        plain, chosen = (rewards_by_prompt(self.parts.check, self.checked(each)) for each in (PLAIN, setting))
        gain, half_width = mean_and_half_width([new - old for new, old in zip(chosen, plain, strict=True)])
        improved = gain - half_width > 0
        message = f"Held-out reward {mean_and_error(chosen)[0]:.3f}, plain {mean_and_error(plain)[0]:.3f}"
        if setting == PLAIN:
            message += ". No setting is surely better on held-out prompts: request.json is the plain request"
        elif not improved:
            message += ". The 95 % interval of the gain is not above 0: request.json is not shown to be better"
        self.run.emit("message", message, level="info" if improved else "warn")
        return {
            "improved": improved,
            "baseline": mean_and_error(plain)[0],
            "reward": mean_and_error(chosen)[0],
            "gain": gain,
            "gain_error": half_width,
        }

    def checked(self, setting: Setting) -> list[JsonObject]:
        return self.sample(self.name("check", setting), self.parts.check, self.decoding(setting), VALIDATION)


JOB = Job(
    name="align.logit_bias",
    summary="What requests to a closed chat endpoint should set (logit_bias and more), from its own graded answers",
    Config=LogitBiasConfig,
    run=run,
)
