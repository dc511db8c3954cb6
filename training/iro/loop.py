"""IRO (arXiv:2506.17828): rollouts with the current stack → rewards → value fit → held-out reward, and again.

Every step leaves a checkpoint, so that a killed job goes on from its last finished one. Steps and iterations count
from 1. With the paper: disjoint prompts an iteration (by default), plain rollouts first and guided ones later. Beyond
it: several rollouts a prompt, all finals kept and weighed equally within their prompt, several independent guided
searches a prompt, an early stop on held-out reward. Where an iteration chooses a tilt, more is added to it and its
value function is fitted from draws of the tilted policy q too. Later rollouts are draws from q, and the value functions
start again as values of q: the tilt holds what the earlier ones said.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from iro_server.engines.describe import Description
from iro_server.graders.base import Grader
from iro_server.graders.parsing import parse_grader
from iro_server.jobs.estimates.statistics import all_equal
from training.iro import distance, report
from training.iro.collection import Collection, ShardNames
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Prompt, Slice, shards_of, split
from training.iro.diagnostics import BY_POSITION, emit_correlation, mean_and_error
from training.iro.executor import Executor
from training.iro.final_check import state_gain
from training.iro.fit import Scale, Shards
from training.iro.grading import Grading, merge
from training.iro.learners import make_learner
from training.iro.lengths import with_max_tokens
from training.iro.over_optimization import CODE, departures, first_usual, warning
from training.iro.planned_steps import planned_steps, validates
from training.iro.rollouts import HEAD_STATES, PREFIXES, Batch, exploring, guided, plain, tilted_rollouts
from training.iro.samples import emit_samples
from training.iro.seeds import FIT, ROLLOUTS, SPLIT, TILTED
from training.iro.serving import Served, serve, within_max_rows
from training.iro.tilt_rows import TiltData
from training.iro.tilt_trials import Limits
from training.iro.tilting import Round, Start, Tilting, fitted_parts, numbered, tries_tilts, warn_of_refused
from training.iro.validation import Validated, Validation
from training.iro.values import Bundles, Stack
from training.json_values import JsonObject
from training.run import Run, jsonable
from value_heads import ValueStack, save_bundle
from value_heads.tilt import Tilt


def align(config: AlignConfig, run: Run, model: Description, executor: Executor) -> JsonObject:
    """The whole job. Returns what result.json holds beside the config; raises AlignError where it cannot go on."""
    with parse_grader(config.grader) as grader:
        return Alignment(config, run, model, grader, executor).run_all()


class Collected(NamedTuple):
    """The shards of an iteration: of the prompts that are fitted on, and of those that judge the fit."""

    train: list[ShardNames]
    heldout: list[ShardNames]


class Alignment:
    def __init__(self, config: AlignConfig, run: Run, model: Description, grader: Grader, executor: Executor) -> None:
        self.run, self.model, self.grader, self.executor = run, model, grader, executor
        self.bundles = Bundles(model.info, config.model_dir)
        self.prompts = split(config, model, run.rng(SPLIT))
        measured, longest = self.prompts.choosing, self.prompts.longest
        self.config = config = with_max_tokens(config, run, model, executor, measured, longest)
        self.grading = Grading(config, run, model, executor.grader(grader))
        self.collection = Collection(run, self.grading, executor)
        self.validation = Validation(config, run, model, self.grading, executor)
        prompts = {p.index: p for part in self.prompts.slices for p in [*part.train, *part.heldout]}
        self.learner = make_learner(config, model, prompts, executor.has_frozen)
        self.scale = Scale()
        self.base_rows: list[JsonObject] = []  # of the frozen model on validation prompts
        self.stack: Stack | None = None
        self.judged: Stack | None = None  # what new value functions are judged with: fitted to no held-out prompts
        self.betas: list[float] = []
        self.tilt: Tilt | None = None  # of the policy that the next rollouts are drawn from
        self.limits: Limits | None = None  # of a tilted model's text
        self.start: Start | None = None  # of the step's tilts
        self.rounds: dict[int, list[Round]] = {}  # of tilts, by step
        self.refused: dict[int, JsonObject | None] = {}  # by step, a tilt whose text the grader prefers
        self.stacks: dict[int, Stack] = {}  # by the step that validated it
        self.served: dict[int, Served] = {}  # likewise
        self.steers = fitted_parts(config, executor.steers)
        self.tilts = self.learner.spec is not None and tries_tilts(config, self.steers, model.info)

    def run_all(self) -> JsonObject:
        self.run.planned_steps = self.planned_steps()
        self.base_rows = base = self.baseline()
        history: list[JsonObject] = []
        for step in range(1, self.config.iterations + 1):
            history.append(self.iterate(step))
            report.drop_checkpoints(self.run, history)
            if self.config.early_stop and step in self.served and not report.rises(history):
                self.run.emit("message", f"Held-out reward no longer rises: stopping after iteration {step}")
                break
        return self.conclude(base, history)

    def choose_tilt(self, step: int, collected: Collected) -> Collected:
        """Choose the step's tilt from draws of its policy. While a round finds a better one, its own draws say what to
        add to it, and are further rollouts for values, which are to rank such draws."""
        draws, rounds, self.start = collected, self.rounds.setdefault(step, []), None
        while len(rounds) < self.config.tilt_rounds and (not rounds or rounds[-1].is_better):
            rounds.append(self.choose(step, len(rounds) + 1, draws))
            self.run.planned_steps = self.planned_steps()  # what the choice adds is known now
            for shard in [*draws.train, *draws.heldout]:
                self.run.drop_table(shard.rollouts, HEAD_STATES)
            if rounds[-1].is_better:
                draws = self.collect(step, self.prompts.slices[step - 1], len(rounds))
                collected = Collected(collected.train + draws.train, collected.heldout + draws.heldout)
        self.refused[step] = self.run.step(f"{step}-refused", lambda: warn_of_refused(self.run, rounds))
        return collected

    def choose(self, step: int, tilt_round: int, draws: Collected) -> Round:
        """Put a tilt that is fitted to draws of the present one in its place where it is better."""
        part, policy, executor = self.prompts.slices[step - 1], self.tilt, self.executor
        prompts = {prompt.index: prompt for prompt in part.train}
        shards, temperature = self.shards(draws.train), self.config.temperature
        data = TiltData(prompts, shards, self.model, executor.load_frozen, self.steers, policy, temperature)
        tilting = Tilting(self.run, self.validation, data, step, tilt_round, self.limits, self.start)
        self.tilt = tilting.choose(part.heldout, draws.heldout)
        self.limits, self.start = tilting.limits, tilting.start
        return tilting.outcome

    def serve(self, step: int) -> Served:
        """What the step's model is served with; without tilts, the config's search within ``max_rows``."""
        prompts, search = self.prompts.validation, within_max_rows(self.config)
        assert self.stack is not None
        if self.draws(step):
            return serve(self.run, self.validation, step, prompts, self.stack, self.base_rows)
        valid = self.validation.validate(f"{step}-valid", prompts, search, self.stack, f"iteration {step}")
        return Served(search, valid, [], [], departures(self.base_rows, valid.rows))

    def draws(self, step: int) -> bool:
        """Whether the step's rollouts are plain draws, of the frozen model or of a tilted policy: what tilts fit."""
        return self.tilts and (step == 1 or self.tilt is not None)

    def planned_steps(self) -> int:
        iterations = range(1, self.config.iterations + 1)
        drawing, is_tilted = list(filter(self.draws, iterations)), self.tilt is not None
        steps = planned_steps(self.config, self.prompts, drawing, self.rounds, self.steers, is_tilted)
        return steps + self.run.has("lengths")

    def iterate(self, step: int) -> JsonObject:
        """One iteration: its history row. Where it validates, ``stacks`` and ``served`` get what it is served with."""
        part, draws, earlier = self.prompts.slices[step - 1], self.draws(step), set(self.validation.tallies)
        collected = self.collect(step, part)
        if step == 1:
            shards = [*collected.train, *collected.heldout]
            self.scale = Scale(**self.run.step("scale", lambda: self.reward_scale(shards)))
        if draws:
            collected = self.choose_tilt(step, collected)
        names, heldout_names = collected
        fitted = self.run.step(
            f"{step}-fit", lambda: self.fit(step, self.shards(names), self.shards(heldout_names)), "fitting"
        )
        self.betas = [*([] if self.tilt else self.betas), 1.0]
        judged = self.values_of(fitted, "judged").with_betas(self.betas).with_tilt(self.tilt)
        params = guided(self.config).model_copy(update={"strength": 1.0 if self.tilt else 0.0})
        self.betas[-1], tried = self.validation.choose_beta(step, part, judged, self.betas, params)
        stack = self.on_refitted(self.values_of(fitted, "bundle"))
        self.stack = stack.with_betas(self.betas).with_tilt(self.tilt)
        apart = self.prompts.holds_out_again and isinstance(judged, ValueStack)
        self.judged = judged.with_betas(self.betas) if apart else self.stack
        served = self.serve(step) if validates(self.config, step) else None
        self.validation.rescore = None  # and with it the frozen model, where servers run it
        if served is not None:
            self.stacks[step], self.served[step] = self.stack, served
        valid = None if served is None else served.validated
        searches = [name for name in self.validation.tallies if name not in {*earlier, *tried}]
        row = self.run.step(f"{step}-report", lambda: self.report(step, collected, fitted, tried, searches, valid))
        row |= {"path": row["path"] and str(self.bundle_folder(step))}  # the run's folder may be restored elsewhere
        for rollouts, _ in [*names, *heldout_names]:
            self.run.drop_table(rollouts, PREFIXES)
        return row

    def collect(self, step: int, part: Slice, tilt_round: int = 0) -> Collected:
        """Roll out and grade the slice, shard by shard: its checkpoints, of train and of held-out prompts.

        ``tilt_round``: of the step, whose tilt draws fewer samples; 0: its policy draws.
        """
        batches = {
            self.shard_names(step, kind, number, tilt_round): self.batch(step, shard, tilt_round)
            for kind, prompts in (("train", part.train), ("heldout", part.heldout))
            for number, shard in enumerate(shards_of(prompts, self.config.concurrency))
        }
        label = f"Iteration {step}: rollouts{' of its tilt' if tilt_round else ''}"
        self.collection.collect(batches, label, check_grader=step == 1 and not tilt_round)
        train = len(shards_of(part.train, self.config.concurrency))
        return Collected(list(batches)[:train], list(batches)[train:])

    @staticmethod
    def shard_names(step: int, kind: str, number: int, tilt_round: int) -> ShardNames:
        shard = f"{step}-{numbered('tilted', tilt_round)}{kind}-{number}"
        return ShardNames(f"{shard}-rollouts", f"{shard}-rewards")

    def batch(self, step: int, prompts: Sequence[Prompt], tilt_round: int) -> Batch:
        """Each prompt as often as it is searched."""
        params, searches = (plain(self.config), 1) if step == 1 or self.tilt else exploring(self.config)
        if tilt_round:
            params = params.model_copy(update={"num_successors": tilted_rollouts(self.config.rollouts_per_prompt)})
        if self.tilt:
            params = params.model_copy(update={"strength": 1.0})
        repeated = [(prompt, search) for prompt in prompts for search in range(searches)]
        stream, later = TILTED if tilt_round else ROLLOUTS, [tilt_round] if tilt_round > 1 else []
        seeds = [self.run.derive_seed(stream, step, prompt.index, search, *later) for prompt, search in repeated]
        stack = None if self.tilt else self.stack
        batch = self.validation.batch([prompt for prompt, _ in repeated], seeds, params, stack, self.tilt)
        head_states = self.draws(step) and tilt_round < self.config.tilt_rounds
        return replace(batch, spec=self.learner.spec, head_states=head_states)

    def shards(self, names: Sequence[tuple[str, str]]) -> Shards:
        graded_names = [name for name in names if self.known_rewards([name])]
        if not graded_names:
            raise AlignError("no rollout of an iteration's prompts could be graded", "grader_error", "grader")
        return Shards(self.run, graded_names, self.scale)

    def known_rewards(self, names: Sequence[tuple[str, str]]) -> list[float]:
        rewards = [reward for _, name in names for group in self.run.load(name)["rewards"] for reward in group]
        return [reward for reward in rewards if not math.isnan(reward)]

    def reward_scale(self, names: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Mean and standard deviation of the first rollouts' rewards."""
        if self.config.loss == "bce":
            return {"mean": 0.0, "sd": 1.0}
        rewards = np.array(self.known_rewards(names))
        if len(rewards) < 2 or all_equal(rewards.tolist()) or not rewards.std():
            raise AlignError(
                f"all {len(rewards)} graded rollouts of the frozen model got the same reward: nothing to learn",
                "constant_reward",
                "grader",
            )
        return {"mean": float(rewards.mean()), "sd": float(rewards.std())}

    def fit(self, step: int, train: Shards, heldout: Shards) -> JsonObject:
        """Iteration ``step``'s value function on top of the ones before, as a bundle, and its diagnostics."""
        self.run.emit("message", f"Iteration {step}: fitting the value function")
        seed = self.run.derive_seed(FIT, step)
        before = self.judged if self.tilt is None else None
        bundle, judged, diagnostics = self.executor.fit(self.learner, before, train, heldout, seed)
        if "message" in diagnostics:
            self.run.emit("message", diagnostics["message"])
        trained = sum(map(len, chain(train.completions(), heldout.completions())))
        return diagnostics | {"trained_tokens": trained, "bundle": bundle, "judged": judged}

    def values_of(self, fitted: JsonObject, part: Literal["bundle", "judged"]) -> Stack:
        """The step's fit, betas aside: of all prompts, or ``judged``, of those not held out."""
        return self.bundles.unpack(fitted[part])

    def on_refitted(self, fitted: Stack) -> Stack:
        """The newest value function of ``fitted`` on top of those that are served, not of those that judged it."""
        before = self.stack if self.tilt is None and self.judged is not self.stack else None
        if isinstance(fitted, ValueStack) and isinstance(before, ValueStack):
            return ValueStack([*before.heads, fitted.heads[-1]], [*before.betas, 1.0])
        return fitted

    def save(self, folder: Path, stack: Stack, metrics: JsonObject | None = None) -> None:
        info = self.model.info
        save_bundle(
            folder,
            stack,
            model_hash=info.model_hash,
            template_hash=info.template_hash,
            metrics=jsonable(metrics or {}),
        )

    def baseline(self) -> list[JsonObject]:
        """The frozen model on the validation prompts: ``mean`` is its reward, ``grader_pick`` that of best-of-N."""
        valid = self.validation.validate(
            "0-valid", self.prompts.validation, plain(self.config), None, "the frozen model"
        )
        base, best = (mean_and_error([row[key] for row in valid.rows])[0] for key in ("mean", "grader_pick"))

        def report_baseline() -> None:
            self.run.metrics(
                {
                    "step": 0,
                    "total_steps": self.config.iterations,
                    "full_valid_mean_reward": base,
                    "best_of_n": best,
                    "usage": report.usage(report.length_tally(self.run), {}, valid.finals),
                    "timing": report.timing(self.run, ["lengths"] * self.run.has("lengths"), [], [], valid),
                },
                f"The frozen model: full validation mean reward={base:.3f} (best of {self.config.rollouts_per_prompt}, "
                f"picked by the grader: {best:.3f})"
                if math.isfinite(base)
                else "The frozen model got no reward",
            )
            emit_samples(self.run, 0, self.prompts.validation, valid.rows)

        self.run.step("0-report", report_baseline)
        return valid.rows

    def report(
        self,
        step: int,
        collected: Collected,
        fitted: JsonObject,
        tried: list[str],
        searches: list[str],
        valid: Validated | None,
    ) -> JsonObject:
        """Write the iteration's metrics, save the bundle where it was validated, and tell who follows.

        ``tried``: steps that chose β. ``searches``: those that chose a tilt or a way to serve, of which ``valid``.
        """
        assert self.stack is not None
        shards = [*collected.train, *collected.heldout]
        train = merge(self.run.load(rewards)["tally"] for _, rewards in shards)
        row: JsonObject = {"step": step, "total_steps": self.config.iterations}
        choosing = [name for name in searches if valid is None or name not in valid.steps]
        beta, chosen = (merge(self.validation.tallies[name] for name in names) for names in (tried, choosing))
        row |= report.metrics_row(self.grader, self.known_rewards(shards), train, beta, chosen, valid)
        row["betas"] = list(self.betas)
        row |= {name: fitted["overall"][name] for name in ("correlation", "stack_correlation")}
        row["r2"] = mean_and_error(fitted["r2"])[0]
        folder = self.bundle_folder(step)
        if valid:
            self.save(folder, self.stack, row)
        sampling = [name for names in shards for name in names]
        choosing += chain(*(tilt_round.steps for tilt_round in self.rounds.get(step, [])))
        timing = report.timing(self.run, sampling, [f"{step}-fit", *tried], choosing, valid)
        self.run.metrics(row | {"timing": timing}, report.message(row))
        emit_correlation(self.run, step, fitted["stack_correlation"])
        if valid:
            metrics = row | {"search": self.served[step].params.model_dump()}
            self.run.emit("checkpoint", data={"step": step, "path": str(folder), "metrics": metrics})
            emit_samples(self.run, step, self.prompts.validation, valid.rows)
        by_position = {name: fitted[name] for name in BY_POSITION}
        return row | {
            "timing": timing,
            "path": str(folder) if valid else None,
            "trained_tokens": fitted["trained_tokens"],
            "by_position": by_position,
        }

    def bundle_folder(self, step: int) -> Path:
        return (self.run.folder / "iterations" / str(step)).absolute()

    def final_check(self, best: JsonObject, served: Served) -> None:
        """How far the best iteration is above the frozen model, on prompts that did not choose it."""
        before = self.validation.validate("check-0", self.prompts.check, plain(self.config), None, "the frozen model")
        after = self.validation.validate(
            "check-best",
            self.prompts.check,
            served.params,
            self.stacks[best["step"]],
            f"iteration {best['step']} on other prompts",
            picks=True,
        )
        is_apart = self.prompts.check is not self.prompts.validation
        state_gain(self.run, before.rows, after.rows, self.prompts.check_groups, is_apart)

    def conclude(self, base: list[JsonObject], history: list[JsonObject]) -> JsonObject:
        """The best iteration by validation reward, of those that write like the frozen model if any is above it,
        compared with the frozen model on the check prompts."""
        ranked = report.best(history, report.KEPT_CHECKPOINTS)
        best_steps = [row["step"] for row in ranked]
        candidates = [self.served[step] for step in best_steps]
        best = ranked[first_usual(base, [(each.validated.rows, each.outside) for each in candidates])]
        served = self.served[best["step"]]
        base_mean, base_error = mean_and_error([row["mean"] for row in base])
        self.final_check(best, served)
        if served.outside:
            data = {"code": CODE, "measures": served.outside}
            self.run.emit("message", warning(served.outside), data, level="warn")
        if tilt := distance.far(served.prices):
            data = {"code": distance.CODE, "kl": tilt["kl"], "kl_per_token": tilt["kl_per_token"]}
            self.run.emit("message", distance.warning(tilt, served.strengths), data, level="warn")
        served_mean = mean_and_error([row["value_pick"] for row in served.validated.rows])[0]
        reward = f"{served_mean:.3f}, {base_mean:.3f} of the frozen model"
        spent = report.spent(self.run, self.grading.total)
        self.run.emit(
            "message", f"The best of {len(history)} steps is {best['step']}: validation reward {reward}", spent
        )
        return spent | {
            "best_iteration": best["step"],
            "max_tokens": self.config.max_tokens,
            "search": served.params.model_dump(),
            "prices": served.prices,
            "strengths": served.strengths,
            "over_optimization": served.outside,
            "refused_tilt": self.refused.get(best["step"]),
            "best_checkpoint": best["path"],
            "trained_tokens": sum(row["trained_tokens"] for row in history),
            "baseline": {
                "full_valid_mean_reward": base_mean,
                "full_valid_error": base_error,
                "valid_best_of_n": mean_and_error([row["grader_pick"] for row in base])[0],
            },
            "reward_scale": {"mean": self.scale.mean, "sd": self.scale.sd},
            "history": [row if row["step"] in best_steps else row | {"path": None} for row in history],
        }
