"""Whether an alignment job's model is tilted.

Held-out prompts of an iteration choose among tilts (``tilt_rows``) at one row: in a first round tilts of its policy,
and in further ones, fitted to samples of the tilt that was chosen, what is to be added to it. Later iterations draw
their rollouts from the tilted policy q. Reconstruction: the paper has no tilt.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import NamedTuple

from iro_server.decoding.base import SearchParams
from iro_server.engines.base import ModelInfo
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Prompt, shards_of
from training.iro.diagnostics import mean_and_error
from training.iro.held import held_schema
from training.iro.over_optimization import measures
from training.iro.rollouts import Source, completions_of
from training.iro.seeds import TILT
from training.iro.tilt_rows import TiltData, fit_tilts
from training.iro.tilt_trials import (
    NONE,
    Limits,
    Trial,
    Tried,
    distinct_trials,
    next_trial,
    refusal_report,
    refused_trial,
    sharpened_trials,
    stronger_trials,
    trial_data,
    trial_report,
)
from training.iro.trials import (
    PENALTIES,
    SHARPNESS,
    Levels,
    best_trial,
    mean_reward,
    sharper_trials,
)
from training.iro.validation import LogprobsOf, Validation
from training.json_values import JsonObject
from training.run import Run
from value_heads.threads import on_fresh_thread
from value_heads.tilt import EXPORTABLE_PARTS, Tilt, TiltPart, fold_tilts, sharpened, with_repetition_penalty
from value_heads.tilt_rank import recompressed

CODE = "exploitable_grader"
TRIAL_SAMPLES = 8  # of each held-out prompt and tilt
TRIALS = {"words": (1.0, 2.0, 3.0), "states": (0.5, 1.0), "bias": (4.0, 8.0)}
FURTHER_TRIALS = 2  # at most, weaker or stronger
MAX_RANK = 32  # of tilts of several iterations together: two of them, of a round each, stay exact
RECOMPRESSED = "Its ranks were cut to {rank}: off by {error:.2g} (root mean square, in logits)"
TRIAL_NAME = re.compile(
    r"tilt-(?P<kind>[a-z]+)-(?P<strength>[\d.]+)(-penalty-(?P<penalty>[\d.]+))?(-sharpness-(?P<sharpness>[\d.]+))?-1-of-\d+"
)
EARLIER_VERSION = "this job's rollouts were stored by an earlier version, without their likelihood: start the job anew"


def tries_tilts(config: AlignConfig, steers: frozenset[TiltPart], info: ModelInfo) -> bool:
    """Whether a job fits tilts. None where finals are resampled, which corrects for a tilt by its log-ratios, and the
    engine does not report these. AlignError where it is to limit nats that the engine does not know."""
    corrects = config.search.rule.samples and not info.drift
    tries = config.tilt != "off" and bool(steers) and not corrects
    if tries and config.max_kl is not None and not info.drift:
        message = "max_kl needs the frozen model in the job's own process: servers do not report it; leave it out"
        raise AlignError(message, "unknown_kl", "max_kl")
    return tries


def fitted_parts(config: AlignConfig, steers: frozenset[TiltPart]) -> frozenset[TiltPart]:
    """Of those that the engine applies, the parts of a tilt that the job fits."""
    return steers & EXPORTABLE_PARTS if config.tilt == "exportable" else steers


def num_trials(steers: frozenset[TiltPart]) -> int:
    """Tilts that are tried, each at its strengths."""
    return sum(len(strengths) for kind, strengths in TRIALS.items() if kind == "bias" or kind in steers)


def trial_shards(config: AlignConfig, prompts: Sequence[Prompt]) -> list[Sequence[Prompt]]:
    """As many prompts at once as draw the rows of a batch of rollouts: smaller batches take longer for each token."""
    size = max(config.concurrency, config.concurrency * config.rollouts_per_prompt // TRIAL_SAMPLES)
    return shards_of(prompts, size)


class Round(NamedTuple):
    """What a round did. ``further_trials``: beside those of ``TRIALS``. ``is_better``: whether it found a tilt.
    ``tried``: None before it. ``steps``: that fitted its tilts and scored its policy's rollouts."""

    further_trials: int = 0
    is_better: bool = True
    tried: Tried | None = None
    steps: tuple[str, ...] = ()


def numbered(word: str, count: int) -> str:
    """In names of checkpoints: nothing for 0, the word alone for 1."""
    return "" if count == 0 else f"{word}-" if count == 1 else f"{word}-{count}-"


class Start(NamedTuple):
    """The policy of an iteration's first round, on held-out prompts, and its tilt."""

    trial: Trial
    tilt: Tilt | None


class Tilting:
    """The tilts of one round: fitted once, tried, and the best of them kept.

    ``limits``: of a tilted model's text; None: what the round's policy sets, which is the frozen model. ``start``: None
    in a first round. ``outcome``: once it has chosen.
    """

    outcome: Round

    def __init__(
        self,
        run: Run,
        validation: Validation,
        data: TiltData,
        step: int = 1,
        tilt_round: int = 1,
        limits: Limits | None = None,
        start: Start | None = None,
    ) -> None:
        schema = held_schema(validation.config, data.model)
        self.data = replace(data, schema=schema) if schema else data
        self.run, self.validation, self.iteration, self.round = run, validation, step, tilt_round
        self.prefix = ("" if step == 1 else f"{step}-") + numbered("further", tilt_round - 1)
        self.limits, self.start = limits, start
        if not data.model.info.drift:
            validation.rescore = self.data.frozen_logprob

    def choose(self, heldout: Sequence[Prompt], names: Sequence[tuple[str, str]]) -> Tilt | None:
        """The tilt that the model gets, its strength folded in; the policy's where none is surely better than it.

        ``names``: checkpoints of the policy's rollouts on the held-out prompts, and of their rewards.
        """
        policy, tilts = self.data.policy, self.fitted()
        before = [policy] if policy else []

        @cache
        def folded(kind: str, strength: float) -> tuple[Tilt, float]:
            return self.within_rank(fold_tilts([*before, tilts[kind]], [*(1.0 for _ in before), strength]))

        def scaled(kind: str, strength: float, sharpness: float, penalty: float) -> Tilt:
            tilt, _ = folded(kind, strength)
            return sharpened(with_repetition_penalty(tilt, penalty), sharpness)

        def tried(kind: str, strength: float, sharpness: float = 0.0, penalty: float = 0.0) -> Trial:
            tilt = scaled(kind, strength, sharpness, penalty)
            return self.trial(kind, strength, sharpness, penalty, heldout, tilt)

        base = Trial(NONE, 0.0, self.run.step(f"{self.prefix}tilt-none", lambda: self.policy_rows(heldout, names)))
        start = self.start = self.start or Start(base, policy)
        limits = self.limits = self.limits or Limits.of(base.rows, self.validation.config.max_kl)
        if stored := self.ended_settings():
            trials, is_last = [tried(*each) for each in stored], self.was_last()
        else:
            trials, is_last = self.new_trials(tilts, base, tried, limits)
        kept, kept_tilt = (base, policy) if self.may_stay(base, limits) or not is_last else start
        best = best_trial(trials, kept, limits if is_last else self.early_limits(limits))
        listed = distinct_trials([base, *trials], best)
        report = trial_report(listed, best)
        data = {
            "step": self.iteration,
            "round": self.round,
            "tilts": [trial_data(trial, best) for trial in listed],
        }
        if best and (error := folded(best.kind, best.strength)[1] * (1 + best.sharpness)):
            report += f". {RECOMPRESSED.format(rank=MAX_RANK, error=error)}"
            data["recompression"] = {"rank": MAX_RANK, "error": error}

        def emit_report() -> JsonObject:
            self.run.emit("message", report, data)
            settings = [[trial.kind, trial.strength, trial.sharpness, trial.penalty] for trial in trials]
            return {"is_last": is_last, "settings": settings}

        self.run.step(f"{self.prefix}tilt-report", emit_report)
        self.outcome = Round(
            len(trials) - num_trials(self.data.steers),
            best is not None,
            Tried(base, trials, best or kept, limits),
            (f"{self.prefix}tilts", f"{self.prefix}tilt-none"),
        )
        return scaled(best.kind, best.strength, best.sharpness, best.penalty) if best else kept_tilt

    def fitted(self) -> dict[str, Tilt]:
        """A tilt of each kind, and one that changes nothing."""
        seed = self.run.derive_seed(TILT)

        def fit() -> JsonObject:
            self.run.emit("message", "Fitting tilts of the frozen model's logits")
            tilts = on_fresh_thread(lambda: fit_tilts(self.data, seed, self.run.stop_if_asked))
            return {kind: tilt.tensors() for kind, tilt in tilts.items()}

        tensors = self.run.step(f"{self.prefix}tilts", fit, "fitting")
        stop_ids = tuple(sorted(self.data.model.info.eos_ids))
        tilts = {kind: Tilt(**parts, ignored=self.data.ignored, stop_ids=stop_ids) for kind, parts in tensors.items()}
        return tilts | {NONE: fold_tilts([tilts["bias"]], [0.0])}

    def within_rank(self, tilt: Tilt) -> tuple[Tilt, float]:
        """The sum of an iteration's tilt and those of earlier ones with ``MAX_RANK`` ranks at most, and its error in
        logits (``recompressed``). That of a first iteration alone stays as it was fitted."""
        if self.iteration == 1 or len(tilt.state_factor) <= MAX_RANK:
            return tilt, 0.0
        frozen = self.data.frozen
        return recompressed(tilt, frozen.head_weight, MAX_RANK, frozen.state_length)

    def early_limits(self, limits: Limits) -> Limits:
        """Of a round that others follow."""
        return limits.before_cooling() if "sharpness" in self.data.steers else limits

    def may_stay(self, base: Trial, limits: Limits) -> bool:
        """Whether the round's policy may be what the job serves."""
        return "sharpness" not in self.data.steers or not limits.is_unlikely(base)

    def new_trials(
        self, tilts: Container[str], base: Trial, tried: Callable[..., Trial], limits: Limits
    ) -> tuple[list[Trial], bool]:
        """And whether they are those of a last round: at lower temperatures too, and within the limits of what is
        served. That is one whose tilts are not surely better without. Draws at a low temperature differ little, and
        teach further tilts little."""
        trials = [tried(kind, strength) for kind in TRIALS if kind in tilts for strength in TRIALS[kind]]
        penalties = PENALTIES if "words" in self.data.steers else ()
        is_last = self.round == self.validation.config.tilt_rounds
        early_limits = limits if is_last else self.early_limits(limits)
        most = len(trials) + FURTHER_TRIALS
        while len(trials) < most and (further := next_trial(trials, early_limits)):
            trials.append(tried(*further))
        if not is_last:
            trials += stronger_trials(trials, base, tried, early_limits, Levels((), penalties))
            if best_trial(trials, base, early_limits):
                return trials, False
        levels = Levels(SHARPNESS if "sharpness" in self.data.steers else (), penalties)
        trials += stronger_trials(trials, base, tried, limits, levels)
        sharpened = sharpened_trials(trials, base, limits)
        for trial in [*sharpened, *([] if self.may_stay(base, limits) or base in sharpened else [base])]:
            trials += sharper_trials(trial, partial(tried, trial.kind, trial.strength), limits, levels)
        return trials, True

    def was_last(self) -> bool:
        """Of a round that has ended: whether its tilt was chosen within the limits of what is served, as all were by
        earlier versions."""
        report: JsonObject = self.run.load(f"{self.prefix}tilt-report") or {}
        return bool(report.get("is_last", True))

    def ended_settings(self) -> list[tuple[str, float, float, float]]:
        """Kind, strength, sharpness and penalty of the trials of a round that has ended, in their order, by an earlier
        version's rules perhaps: later rollouts are of what it chose, the first of equals."""
        if not self.run.has(f"{self.prefix}tilt-report"):
            return []
        report: JsonObject = self.run.load(f"{self.prefix}tilt-report") or {}
        if "settings" in report:
            return [(kind, *levels) for kind, *levels in report["settings"]]
        names = [name for name in self.run.checkpoints.names() if name.startswith(self.prefix)]
        matches = [TRIAL_NAME.fullmatch(name.removeprefix(self.prefix)) for name in sorted(names)]
        return [
            (match["kind"], float(match["strength"]), float(match["sharpness"] or 0), float(match["penalty"] or 0))
            for match in matches
            if match
        ]

    def policy_rows(self, prompts: Sequence[Prompt], names: Sequence[tuple[str, str]]) -> list[JsonObject]:
        reported = self.data.policy is None and self.data.model.info.logprobs
        return rows_of_rollouts(self.run, prompts, names, None if reported else self.validation.rescore)

    def trial(
        self, kind: str, strength: float, sharpness: float, penalty: float, prompts: Sequence[Prompt], tilt: Tilt
    ) -> Trial:
        """The same seeds for every tilt of an iteration."""
        params = SearchParams(num_successors=TRIAL_SAMPLES, strength=1.0)
        shards = trial_shards(self.validation.config, prompts)
        batches = [
            self.validation.batch(shard, [self.trial_seed(prompt) for prompt in shard], params, None, tilt)
            for shard in shards
        ]
        name = f"{self.prefix}tilt-{kind}-{strength}"
        name += (f"-penalty-{penalty}" if penalty else "") + (f"-sharpness-{sharpness}" if sharpness else "")
        names = [f"{name}-{number}-of-{len(shards)}" for number in range(1, len(shards) + 1)]
        sampled = not all(map(self.run.has, names))
        rows = [row for part in self.validation.search(names, batches) for row in part["rows"]]
        trial = Trial(kind, strength, rows, sharpness, penalty)
        if sampled:
            reward, _ = mean_and_error(trial.rewards)
            self.run.emit("message", f"One row, {trial.name}: reward {reward:.3g} on held-out prompts")
        return trial

    def trial_seed(self, prompt: Prompt) -> int:
        """Of a round: the policy that an earlier one chose was lucky with that one's."""
        later = [self.iteration] if self.iteration > 1 or self.round > 1 else []
        return self.run.derive_seed(TILT, prompt.index, *later, *([self.round] if self.round > 1 else []))


def rows_of_rollouts(
    source: Source, prompts: Sequence[Prompt], names: Sequence[tuple[str, str]], rescore: LogprobsOf | None = None
) -> list[JsonObject]:
    """What ``Validation.judge`` would say of stored samples: as many of each prompt as an iteration draws.

    AlignError where an earlier version stored them.
    """
    samples: dict[int, tuple[list[list[int]], JsonObject, list[float]]] = {}
    for rollouts, rewards in names:
        shard = source.load(rollouts)
        if "drift" not in shard:
            raise AlignError(EARLIER_VERSION, "earlier_version")
        groups = completions_of(source, rollouts)
        rewards_of = source.load(rewards)["rewards"]
        samples |= dict(zip(shard["prompts"], zip(groups, shard["drift"], rewards_of, strict=True), strict=True))
    rows = []
    for prompt in prompts:
        completions, drift, rewards_of = samples[prompt.index]
        logprobs = rescore(prompt, completions) if rescore else drift["logprobs"]
        rows.append(
            {
                "mean": mean_and_error(rewards_of)[0],
                "logprob": sum(logprobs),
                "tokens": drift["tokens"],
                "kl": drift["kl"],
                "completions": [measures(*each) for each in zip(completions, logprobs, strict=True)],
            }
        )
    return rows


def warn_of_refused(run: Run, rounds: Sequence[Round]) -> JsonObject | None:
    """Warn of a tilt whose text the grader prefers (``refused_trial``); its data."""
    tried = [done.tried for done in rounds if done.tried]
    refused = refused_trial(tried)
    if refused is None:
        return None
    report = refusal_report(refused, tried[-1])
    data = trial_data(refused, None) | {"kept_reward": mean_reward(tried[-1].kept)}
    run.emit("message", report, {"code": CODE, "tilt": data}, level="warn")
    return data
