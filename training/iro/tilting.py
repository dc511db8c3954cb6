"""Whether an alignment job's model is tilted, and the rows that it is served with.

Held-out prompts of an iteration choose among tilts (``tilt_rows``) at one row; then validation prompts decide whether
one row, a quarter of the search's rows, or all of them are served, and whether values steer the search, by its chunks
or by longer ones, or pick among whole samples. Later iterations draw their rollouts from the tilted policy q, fit what
is to be added to its tilt, and values of q. Reconstruction: the paper searches alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from iro_server.alignment.definition import MAX_SUCCESSORS
from iro_server.decoding.base import SearchParams
from training.iro.config import AlignConfig
from training.iro.data import Prompt
from training.iro.diagnostics import mean_and_error
from training.iro.over_optimization import MEASURES, departures, rises, writes_alike
from training.iro.seeds import TILT
from training.iro.tilt_rows import TiltData, fit_tilts
from training.iro.validation import Validated, Validation
from training.iro.values import Stack
from training.json_values import JsonObject
from training.run import Run
from value_heads.threads import on_fresh_thread
from value_heads.tilt import Tilt, TiltPart, fold_tilts

TRIAL_SAMPLES = 4  # of each held-out prompt and tilt
TRIALS = {"words": (1.0, 2.0, 3.0), "states": (0.5, 1.0), "bias": (4.0, 8.0)}
LONGER = 4  # chunks of the search that one longer chunk has: values of few tokens rank some tasks' prefixes badly
MOST_PERPLEXITY = 1.1  # times the frozen model's own: a tilt whose text is less likely is not taken


def num_trials(steers: frozenset[TiltPart]) -> int:
    """Tilts that are tried, each at its strengths."""
    return sum(len(strengths) for kind, strengths in TRIALS.items() if kind != "states" or "states" in steers)


class Tilting:
    """The tilts of one iteration: fitted once, tried, and the best of them kept.

    ``most_perplexity``: of completions of a tilted model under the frozen one; None: ``MOST_PERPLEXITY`` times that of
    the iteration's policy, which is the frozen model.
    """

    def __init__(
        self,
        config: AlignConfig,
        run: Run,
        validation: Validation,
        data: TiltData,
        step: int = 1,
        most_perplexity: float | None = None,
    ) -> None:
        self.config, self.run, self.validation, self.data = config, run, validation, data
        self.iteration = step
        self.prefix, self.most_perplexity = "" if step == 1 else f"{step}-", most_perplexity
        self.further_trials = 0  # beside those of ``TRIALS``
        if not data.model.info.drift:
            validation.rescore = data.frozen_logprob

    def choose(self, heldout: Sequence[Prompt], stack: Stack) -> Tilt | None:
        """The tilt that the model gets, its strength folded in; the policy's where none is surely better than it."""
        seed, policy = self.run.derive_seed(TILT), self.data.policy

        def fit() -> JsonObject:
            self.run.emit("message", "Fitting tilts of the frozen model's logits")
            tilts = on_fresh_thread(lambda: fit_tilts(self.data, seed, self.run.stop_if_asked))
            return {kind: tilt.tensors() for kind, tilt in tilts.items()}

        tensors = self.run.step(f"{self.prefix}tilts", fit, "fitting")
        stop_ids = tuple(sorted(self.data.model.info.eos_ids))
        tilts = {kind: Tilt(**parts, ignored=self.data.ignored, stop_ids=stop_ids) for kind, parts in tensors.items()}
        before = [policy] if policy else []

        def scaled(kind: str, strength: float) -> Tilt:
            return fold_tilts([*before, tilts[kind]], [*(1.0 for _ in before), strength])

        def tried(kind: str, strength: float) -> Trial:
            return self.trial(kind, strength, heldout, stack.with_tilt(scaled(kind, strength)))

        base = self.trial("none", 0.0, heldout, stack.with_tilt(policy))
        if self.most_perplexity is None:
            self.most_perplexity = MOST_PERPLEXITY * perplexity(base.rows)
        trials = [tried(kind, strength) for kind in TRIALS if kind in tilts for strength in TRIALS[kind]]
        if weaker := weaker_trial(trials, self.most_perplexity):
            trials.append(tried(*weaker))
            self.further_trials = 1
        best = best_trial(trials, base, self.most_perplexity)
        report = trial_report(base, trials, best)
        data = {"step": self.iteration, "tilts": [trial_data(trial, best) for trial in [base, *trials]]}
        self.run.step(f"{self.prefix}tilt-report", lambda: self.run.emit("message", report, data))
        return scaled(best.kind, best.strength) if best else policy

    def trial(self, kind: str, strength: float, prompts: Sequence[Prompt], stack: Stack) -> Trial:
        """The same seeds for every tilt of an iteration."""
        params = SearchParams(num_successors=TRIAL_SAMPLES, strength=1.0 if stack.tilt is not None else 0.0)
        size = self.config.concurrency
        shards = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        batches = [
            self.validation.batch(shard, [self.trial_seed(prompt) for prompt in shard], params, stack, ranked=False)
            for shard in shards
        ]
        names = [f"{self.prefix}tilt-{kind}-{strength}-{number}" for number in range(len(shards))]
        rows = [row for part in self.validation.search(names, batches) for row in part["rows"]]
        return Trial(kind, strength, rows)

    def trial_seed(self, prompt: Prompt) -> int:
        """Of an iteration: the policy that an earlier one chose was lucky with that one's."""
        return self.run.derive_seed(TILT, prompt.index, *([self.iteration] if self.iteration > 1 else []))

    def step_name(self, params: SearchParams) -> str:
        """Of the step of a run that validates it."""
        if params.rows == 1 or params.chunk_length == self.config.chunk_length:
            return f"{params.rows}"
        return f"samples-{params.rows}" if params.chunk_length is None else f"longer-{params.rows}"

    def serve(
        self, prompts: Sequence[Prompt], stack: Stack, search: Validated | None, frozen: Sequence[JsonObject]
    ) -> Served:
        """What the model is served with. ``search``: the validation of the search without a tilt; None: values of a
        tilted policy, which rank nothing else. ``frozen``: the frozen model's rows on ``prompts``."""
        by_name = searches(self.config, stack.tilt is not None)
        if search is None:
            by_name = {name: params for name, params in by_name.items() if params.strength}
        validated = {
            name: search
            if search is not None and params == self.config.search
            else self.validation.validate(f"{self.prefix}serve-{self.step_name(params)}", prompts, params, stack, name)
            for name, params in by_name.items()
        }
        outside = {name: departures(frozen, valid.rows) for name, valid in validated.items()}
        ways = {name: valid.rows for name, valid in validated.items()}
        chosen = best_way(frozen, ways, outside, {name: params.rows for name, params in by_name.items()})
        prices = [price(name, by_name[name], valid, outside[name]) for name, valid in validated.items()]
        report, data = price_report(prices, chosen), {"step": self.iteration, "prices": prices, "chosen": chosen}
        self.run.step(f"{self.prefix}serve-report", lambda: self.run.emit("message", report, data))
        return Served(by_name[chosen], validated[chosen], prices)


@dataclass(frozen=True)
class Served:
    """``prices``: of each way to serve the model, its rows, and reward, perplexity, KL and departures from the frozen
    model's text on validation prompts. One that departs by more than its length is served only where no other is above
    the frozen model."""

    params: SearchParams
    validated: Validated
    prices: list[JsonObject]


def price(name: str, params: SearchParams, valid: Validated, outside: list[JsonObject] | None) -> JsonObject:
    reward, error = mean_and_error([row["value_pick"] for row in valid.rows])
    kl = mean_and_error([row["kl"] for row in valid.rows])[0] if params.rows == 1 else math.nan  # a pick's is unknown
    return {
        "name": name,
        "rows": params.rows,
        "reward": reward,
        "error": error,
        "perplexity": perplexity(valid.rows),
        "kl": kl,
        "over_optimization": outside,
        "search": params.model_dump(exclude_none=True) | {"chunk_length": params.chunk_length},
    }


def price_report(prices: Sequence[JsonObject], chosen: str) -> str:
    parts = [
        f"{p['name']} ({p['rows']} rows) {p['reward']:.3f} ± {1.96 * p['error']:.3f}{departures_text(p)}"
        for p in prices
    ]
    return f"Validation reward by rows: {'; '.join(parts)}. Chosen: {chosen}"


def departures_text(price: JsonObject) -> str:
    names = [MEASURES[part["measure"]] for part in price["over_optimization"] or []]
    return f" (unlike the frozen model's text by {', '.join(names)})" if names else ""


def trial_report(base: Trial, trials: Sequence[Trial], best: Trial | None) -> str:
    parts = [
        f"{trial.kind} at {trial.strength:g}: {mean_and_error(trial.rewards)[0]:.3f} "
        f"(perplexity {perplexity(trial.rows):.1f})"
        for trial in [base, *trials]
    ]
    chosen = f"{best.kind} at {best.strength:g}" if best else "none, because none is surely better"
    return f"Tilts at one row, held-out reward: {'; '.join(parts)}. Chosen: {chosen}"


def trial_data(trial: Trial, best: Trial | None) -> JsonObject:
    """Reward at one row, nats from the frozen model and perplexity of a tilt at a strength."""
    reward, error = mean_and_error(trial.rewards)
    return {
        "kind": trial.kind,
        "strength": trial.strength,
        "reward": reward,
        "error": error,
        "kl": mean_and_error([row["kl"] for row in trial.rows])[0],
        "perplexity": perplexity(trial.rows),
        "chosen": trial is best,
    }


@dataclass(frozen=True)
class Trial:
    """A tilt at a strength on held-out prompts. ``rows``: what ``Validation.judge`` says of each prompt."""

    kind: str
    strength: float
    rows: list[JsonObject]

    @property
    def rewards(self) -> list[float]:
        return [row["mean"] for row in self.rows]


def perplexity(rows: Sequence[JsonObject]) -> float:
    """Of the completions under the frozen model."""
    return math.exp(-sum(row["logprob"] for row in rows) / max(1.0, sum(row["tokens"] for row in rows)))


def weaker_trial(trials: Sequence[Trial], most_perplexity: float) -> tuple[str, float] | None:
    """Kind, and strength halfway from that of the trial of the highest reward down to the next weaker one of its kind.
    None where its text is likely enough."""
    best = max(trials, key=lambda trial: mean_and_error(trial.rewards)[0])
    if perplexity(best.rows) <= most_perplexity:
        return None
    weaker = [trial.strength for trial in trials if trial.kind == best.kind and trial.strength < best.strength]
    return best.kind, (best.strength + max(weaker, default=0.0)) / 2


def best_trial(trials: Sequence[Trial], base: Trial, most_perplexity: float) -> Trial | None:
    """The trial of the highest reward whose text is about as likely as the frozen model's own.

    None unless it is above ``base``, the policy of the rollouts, by twice the standard error of the paired difference.
    """
    allowed = [trial for trial in trials if perplexity(trial.rows) <= most_perplexity]
    if not allowed:
        return None
    best = max(allowed, key=lambda trial: mean_and_error(trial.rewards)[0])
    gain, error = mean_and_error([new - old for new, old in zip(best.rewards, base.rewards, strict=True)])
    return best if gain > 2 * error else None


def searches(config: AlignConfig, tilted: bool) -> dict[str, SearchParams]:
    """By name, what a model may be served with, the cheapest first. Values of several rows steer a search, by its own
    chunks or by ``LONGER`` ones, or pick among whole samples. With a tilt no more rows than ``max_rows``."""
    full, longer = config.search, LONGER * config.chunk_length
    samples = {"beam_width": 1, "num_successors": min(full.rows, MAX_SUCCESSORS), "chunk_length": None}
    by_name = {"search": full}
    if longer < config.horizon:
        by_name["search by longer chunks"] = full.model_copy(update={"chunk_length": longer})
    by_name["samples"] = full.model_copy(update=samples)
    if not tilted:
        return by_name
    quarter = {"beam_width": 1, "num_successors": max(2, full.rows // 4), "strength": 1.0}
    tilted_ways = {
        "tilt": SearchParams(strength=1.0),
        **{
            f"tilt and {name}, a quarter of the rows": params.model_copy(update=quarter)
            for name, params in by_name.items()
        },
        **{f"tilt and {name}": params.model_copy(update={"strength": 1.0}) for name, params in by_name.items()},
        "search": full,
    }
    return {name: params for name, params in tilted_ways.items() if params.rows <= config.max_rows}


def best_way(
    frozen: Sequence[JsonObject],
    ways: dict[str, list[JsonObject]],
    outside: Mapping[str, list[JsonObject] | None],
    rows: dict[str, int],
) -> str:
    """The cheapest of the ways to serve a model that are above the frozen model and write like it, else of all.

    A grader may want other lengths: only perplexity and distinct-2 count as writing.
    ``frozen``, ``ways``: rows of ``Validation`` on the same prompts. ``outside``: each way's ``departures``. ``rows``:
    that each way decodes at once.
    """
    usual = [name for name, valid in ways.items() if writes_alike(outside[name]) and rises(frozen, valid)]
    return cheapest({name: [row["value_pick"] for row in ways[name]] for name in usual or ways}, rows)


def cheapest(rewards: dict[str, list[float]], rows: dict[str, int]) -> str:
    """The fewest rows whose reward the best does not exceed by twice the error of the paired difference."""
    best = max(rewards, key=lambda name: mean_and_error(rewards[name])[0])

    def is_as_good(name: str) -> bool:
        gap, error = mean_and_error([b - a for a, b in zip(rewards[name], rewards[best], strict=True)])
        return name == best or gap <= 2 * error

    return min(filter(is_as_good, rewards), key=lambda name: (rows[name], -mean_and_error(rewards[name])[0]))
