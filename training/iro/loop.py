"""IRO (arXiv:2506.17828): rollouts with the current stack → rewards → value fit → held-out reward, and again.

Every step leaves a checkpoint, so that a killed job goes on from its last finished one. Steps and iterations count
from 1. With the paper: disjoint prompts an iteration, plain rollouts first and guided ones later. Beyond it: several
rollouts a prompt, all finals kept and weighed equally within their prompt, an early stop on held-out reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from iro_server.decoding.base import SearchParams
from iro_server.graders import Grader, parse_grader
from training.iro.config import AlignConfig, default_feature_spec
from training.iro.data import AlignError, Prompt, TokenizingEngine, split
from training.iro.diagnostics import mean_and_error
from training.iro.fit import Scale, Shards
from training.iro.learners import HeadLearner, Learner, LoraLearner, Stack
from training.iro.rollouts import grade, guided, pack, plain, rewards_of, roll_out
from training.run import Run, jsonable
from value_heads import load_bundle, save_bundle
from value_heads.threads import on_fresh_thread

BETA_GRID = (1.0, 0.5, 2.0)  # of equally good ones the first is taken
BETA_PROMPTS = 8
SPLIT, ROLLOUTS, BETA, VALIDATION, FIT = range(5)  # purposes that seeds are derived for


def align(config: AlignConfig, run: Run, engine: TokenizingEngine) -> dict[str, Any]:
    """The whole job. Returns what result.json holds beside the config; raises AlignError where it cannot go on."""
    with parse_grader(config.grader) as grader:
        return Alignment(config, run, engine, grader).run_all()


class Alignment:
    def __init__(self, config: AlignConfig, run: Run, engine: TokenizingEngine, grader: Grader):
        self.config, self.run, self.engine, self.grader = config, run, engine, grader
        self.slices, self.validation = split(config, engine, run.rng(SPLIT))
        self.learner = self.make_learner()
        self.scale = Scale()
        self.stack: Stack | None = None
        self.betas: list[float] = []

    def make_learner(self) -> Learner:
        if self.config.value_model == "lora":
            return LoraLearner(self.config, {p.index: p for part in self.slices for p in [*part.train, *part.heldout]})
        spec = self.config.feature_spec
        return HeadLearner(
            self.config, spec or default_feature_spec(self.engine.info.num_layers, self.config.max_tokens)
        )

    def run_all(self) -> dict[str, Any]:
        base = self.run.step("0-valid", self.baseline)
        history: list[dict[str, Any]] = []
        for step in range(1, self.config.iterations + 1):
            history.append(self.iterate(step))
            if self.config.early_stop and step > 1 and not _rises(history):
                self.run.emit("message", f"Held-out reward no longer rises: stopping after iteration {step}")
                break
        return self.conclude(base, history)

    def iterate(self, step: int) -> dict[str, Any]:
        """One iteration: its history row."""
        names = self.collect(step, "train", self.slices[step - 1].train)
        heldout_names = self.collect(step, "heldout", self.slices[step - 1].heldout)
        if step == 1:
            self.scale = Scale(**self.run.step("scale", lambda: self.reward_scale([*names, *heldout_names])))
        fitted = self.run.step(f"{step}-fit", lambda: self.fit(step, self.shards(names), self.shards(heldout_names)))
        self.betas.append(1.0)
        self.stack = self.values_of(step).with_betas(self.betas)
        self.betas[-1] = self.run.step(f"{step}-beta", lambda: self.choose_beta(step))
        self.stack = self.stack.with_betas(self.betas)
        valid = self.run.step(f"{step}-valid", lambda: self.evaluate(guided(self.config), f"iteration {step}"))
        train_rewards = [*self.known_rewards(names), *self.known_rewards(heldout_names)]
        return self.run.step(f"{step}-report", lambda: self.report(step, train_rewards, fitted, valid))

    def collect(self, step: int, part: str, prompts: Sequence[Prompt]) -> list[tuple[str, str]]:
        """Roll out and grade ``prompts``, shard by shard. Returns the names of the shards' checkpoints."""
        names = []
        size = self.config.concurrency
        shards = [prompts[i : i + size] for i in range(0, len(prompts), size)]
        with self.run.progress(f"Iteration {step}: {part} rollouts", len(shards)) as advance:
            for number, shard in enumerate(shards):
                rollouts, rewards = (f"{step}-{part}-{number}-{what}" for what in ("rollouts", "rewards"))
                first = (step, part, number) == (1, "train", 0)
                tokens = self.run.step(rollouts, partial(self.roll_out, step, shard))["tokens"]
                self.run.step(rewards, partial(self.rewards, shard, tokens, first))
                names.append((rollouts, rewards))
                advance()
        return names

    def roll_out(self, step: int, prompts: Sequence[Prompt]) -> dict[str, Any]:
        params = plain(self.config) if step == 1 else guided(self.config)
        layers = self.learner.layers
        finals = roll_out(
            self.engine,
            prompts,
            self.config,
            params,
            self.stack,
            lambda index: self.run.derive_seed(ROLLOUTS, step, index),
            layers,
        )
        return pack(prompts, finals, layers)

    def rewards(
        self, prompts: Sequence[Prompt], tokens: Sequence[Sequence[Sequence[int]]], first: bool = False
    ) -> list[list[float]]:
        grades = grade(self.engine, self.grader, prompts, tokens)
        rewards = rewards_of(grades, first, lambda message: self.run.emit("message", message, level="warn"))
        outside = next((reward for group in rewards for reward in group if reward < 0 or reward > 1), None)
        if self.config.loss == "bce" and outside is not None:
            raise AlignError(f"loss bce takes rewards in [0, 1]; the grader gave {outside}", "invalid_reward", "loss")
        return rewards

    def shards(self, names: Sequence[tuple[str, str]]) -> Shards:
        kept = [name for name in names if self.known_rewards([name])]
        if not kept:
            raise AlignError("no rollout of an iteration's prompts could be graded", "grader_error", "grader")
        return Shards(self.run, kept, self.scale)

    def known_rewards(self, names: Sequence[tuple[str, str]]) -> list[float]:
        rewards = [reward for _, name in names for group in self.run.load(name) for reward in group]
        return [reward for reward in rewards if not math.isnan(reward)]

    def reward_scale(self, names: Sequence[tuple[str, str]]) -> dict[str, float]:
        """Mean and standard deviation of the first rollouts' rewards."""
        if self.config.loss == "bce":
            return {"mean": 0.0, "sd": 1.0}
        rewards = np.array(self.known_rewards(names))
        if len(rewards) < 2 or rewards.std() == 0:
            raise AlignError(
                f"all {len(rewards)} graded rollouts of the frozen model got the same reward: nothing to learn",
                "constant_reward",
                "grader",
            )
        return {"mean": float(rewards.mean()), "sd": float(rewards.std())}

    def fit(self, step: int, train: Shards, heldout: Shards) -> dict[str, Any]:
        """Fit iteration ``step``'s value function, save it on top of the ones before, and return its diagnostics."""
        self.run.emit("message", f"Iteration {step}: fitting the value function")
        seed = self.run.derive_seed(FIT, step)
        stack, report = on_fresh_thread(lambda: self.learner.fit(self.stack, train, heldout, seed))
        self.save(self.run.folder / "values" / str(step), stack)
        return report

    def values_of(self, step: int) -> Stack:
        """What the step's fit saved, betas aside."""
        info = self.engine.info
        return load_bundle(
            self.run.folder / "values" / str(step),
            model_hash=info.model_hash,
            template_hash=info.template_hash,
            backbone_dir=self.config.model_dir,
        )

    def save(self, folder: Path, stack: Stack, metrics: dict[str, Any] | None = None) -> None:
        info = self.engine.info
        save_bundle(
            folder,
            stack,
            model_hash=info.model_hash,
            template_hash=info.template_hash,
            metrics=jsonable(metrics or {}),
        )

    def choose_beta(self, step: int) -> float:
        """β of the newest value function: the one whose guided finals are best on prompts held out of its fit.

        Reconstruction: the paper gives schedules. With one value function, rules that rank do not depend on β.
        """
        if self.config.betas != "auto":
            return self.config.betas[step - 1]
        if step == 1 and self.config.selection != "smc":
            return 1.0
        assert self.stack is not None
        prompts = self.slices[step - 1].heldout[:BETA_PROMPTS]
        scores = {}
        for beta in BETA_GRID:
            stack = self.stack.with_betas([*self.betas[:-1], beta])
            rows = self.search(prompts, guided(self.config), stack, (BETA, step))
            scores[beta] = mean_and_error([row["mean"] for row in rows])[0]
        self.run.emit("message", f"Iteration {step}: mean held-out reward by beta {jsonable(scores)}")
        return max(scores, key=lambda beta: -math.inf if math.isnan(scores[beta]) else scores[beta])

    def baseline(self) -> list[dict[str, Any]]:
        """The frozen model on the validation prompts: ``mean`` is its reward, ``grader_pick`` that of best-of-N."""
        rows = self.evaluate(plain(self.config), "the frozen model")
        base, best = (mean_and_error([row[key] for row in rows])[0] for key in ("mean", "grader_pick"))
        self.run.metrics(
            {"step": 0, "total_steps": self.config.iterations, "full_valid_mean_reward": base, "best_of_n": best},
            f"The frozen model: full validation mean reward={base:.3f} (best of {self.config.rollouts_per_prompt}, "
            f"picked by the grader: {best:.3f})",
        )
        return rows

    def evaluate(self, params: SearchParams, what: str) -> list[dict[str, Any]]:
        """The validation prompts, one row each; the same seeds every time, so that iterations compare pairwise."""
        size = self.config.concurrency
        shards = [self.validation[i : i + size] for i in range(0, len(self.validation), size)]
        rows: list[dict[str, Any]] = []
        with self.run.progress(f"Validation of {what}", len(shards)) as advance:
            for shard in shards:
                rows += self.search(shard, params, self.stack, (VALIDATION,))
                advance()
        return rows

    def search(
        self, prompts: Sequence[Prompt], params: SearchParams, stack: Stack | None, purpose: tuple[int, ...]
    ) -> list[dict[str, Any]]:
        """Rewards of each prompt's finals: of the value's pick, of the grader's pick, and their mean."""
        finals = roll_out(
            self.engine, prompts, self.config, params, stack, lambda index: self.run.derive_seed(*purpose, index)
        )
        rewards = self.rewards(prompts, [[final.tokens for final in group] for group in finals])
        return [
            {
                "prompt": prompt.index,
                "value_pick": of_prompt[0],
                "grader_pick": max((r for r in of_prompt if not math.isnan(r)), default=math.nan),
                "mean": mean_and_error(of_prompt)[0],
                "text": self.engine.tokenizer.decode(group[0].tokens, skip_special_tokens=True),
            }
            for prompt, group, of_prompt in zip(prompts, finals, rewards, strict=True)
        ]

    def report(
        self, step: int, train_rewards: Sequence[float], fitted: dict[str, Any], valid: list[dict[str, Any]]
    ) -> dict[str, Any]:
        """Save the bundle, write the iteration's metrics and tell who follows."""
        assert self.stack is not None
        total = self.config.iterations
        row: dict[str, Any] = {"step": step, "total_steps": total}
        row["train_mean_reward"] = mean_and_error(train_rewards)[0]
        row["full_valid_mean_reward"], row["full_valid_error"] = mean_and_error([v["value_pick"] for v in valid])
        row["valid_grader_pick"], row["valid_grader_pick_error"] = mean_and_error([v["grader_pick"] for v in valid])
        row["valid_mean_of_finals"] = mean_and_error([v["mean"] for v in valid])[0]
        row["betas"] = list(self.betas)
        for name in ("correlation", "stack_correlation", "r2"):
            row[name] = mean_and_error(fitted[name])[0]
        folder = (self.run.folder / "iterations" / str(step)).absolute()
        self.save(folder, self.stack, row)
        message = (
            f"Step {step}/{total}, train mean reward={row['train_mean_reward']:.3f}, "
            f"full validation mean reward={row['full_valid_mean_reward']:.3f}"
        )
        self.run.metrics(row, message)
        self.run.emit("checkpoint", data={"step": step, "path": str(folder), "metrics": row})
        by_position = {name: fitted[name] for name in ("correlation", "stack_correlation", "r2", "calibration")}
        return row | {"path": str(folder), "by_position": by_position}

    def conclude(self, base: list[dict[str, Any]], history: list[dict[str, Any]]) -> dict[str, Any]:
        """The best iteration by held-out reward; none, if it does not beat the frozen model."""
        best = max(history, key=lambda row: row["full_valid_mean_reward"])
        base_mean, base_error = mean_and_error([row["mean"] for row in base])
        pick = self.run.load(f"{best['step']}-valid")
        gains = [row["value_pick"] - before["mean"] for row, before in zip(pick, base, strict=True)]
        gain, error = mean_and_error(gains)
        self.run.check(
            "held-out reward of the aligned model, without calling the grader, less the frozen model's",
            expected="95 % interval above 0",
            got=f"{gain:.3f} ± {1.96 * error:.3f}",
            holds=gain - 1.96 * error > 0,
        )
        rises = gain > 0
        return {
            "best_iteration": best["step"] if rises else None,
            "best_checkpoint": best["path"] if rises else None,
            "baseline": {
                "full_valid_mean_reward": base_mean,
                "full_valid_error": base_error,
                "valid_best_of_n": mean_and_error([row["grader_pick"] for row in base])[0],
            },
            "reward_scale": {"mean": self.scale.mean, "sd": self.scale.sd},
            "history": history,
        }


def _rises(history: Sequence[dict[str, Any]]) -> bool:
    """Whether the last iteration's held-out reward is above that of every iteration before."""
    *before, last = (row["full_valid_mean_reward"] for row in history)
    return last > max(before)
