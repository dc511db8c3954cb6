"""Transfer curves of each method and seed: four rooms with tables, the reacher with networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np

from rl_suite.sf_dqn import DQNAgent, DQNSettings
from rl_suite.sf_tabular import TabularAgent
from rl_suite.sf_tasks import Q_FRESH, Q_GPI, Q_WARM, SF, SF_WARM, UVFA, Family, four_room, reacher
from rl_suite.stats import Result, interval, iqm, mean, probability_of_improvement, profile
from training.run import Run

TABULAR = {"SFQL": SF, "SFQL without GPI": SF_WARM, "QL-GPI": Q_GPI, "warm QL": Q_WARM, "QL": Q_FRESH}
DEEP = {"SF-DQN": SF, "SF-DQN without GPI": SF_WARM, "DQN-GPI": Q_GPI, "warm DQN": Q_WARM, "UVFA": UVFA}
TRAINING_TASKS = 4  # of the reacher
EPISODE = 50  # mo-reacher-v5's time limit


def four_room_scores(run: Run, seeds: int, tasks: int, steps: int) -> dict[str, np.ndarray]:
    """[tasks, seeds, 1] for each method: the reward collected while learning each task for ``steps`` transitions."""
    family = four_room(run.rng(10), tasks)
    scores = {}
    for name in TABULAR:
        steps_of = [partial(_four_room, run, family, name, seed, steps) for seed in range(seeds)]
        rows = [run.step(f"four-room-{_slug(name)}-{seed}", compute) for seed, compute in enumerate(steps_of)]
        scores[name] = np.array(rows).T[:, :, None]
    return scores


def _four_room(run: Run, family: Family, name: str, seed: int, steps: int) -> list[float]:
    agent = TabularAgent(family.make(), family.train, TABULAR[name], seed=run.derive_seed(11, seed))
    collected = []
    for task in range(len(family.train)):
        collected.append(agent.learn(task, steps))
        run.stop_if_asked()
    row = {"environment": "four-room", "method": name, "agent_seed": seed, "collected": collected}
    run.metrics(row, f"four rooms, {name}, seed {seed}: {np.mean(collected):.0f} a task")
    return collected


def reacher_scores(
    run: Run, seeds: int, steps: int, evaluate_every: int, settings: DQNSettings
) -> dict[str, np.ndarray]:
    """[T, seeds, 4 + 8] for each method: the return of a greedy episode on each training and each test task.

    The four training tasks are learnt in order, ``steps`` each, with an evaluation every ``evaluate_every``. The agent
    saved at the end of a task is kept until the end of the next, so that an interrupted run resumes there.
    """
    family = reacher()
    (run.folder / "agents").mkdir(exist_ok=True)
    scores = {}
    for name in DEEP:
        curves = []
        for seed in range(seeds):
            curve: list[list[float]] = []
            for task in range(len(family.train)):
                compute = partial(_reacher, run, family, settings, name, seed, task, steps, evaluate_every)
                curve += run.step(f"reacher-{_slug(name)}-{seed}-{task}", compute)
                _agent(run, name, seed, task - 1).unlink(missing_ok=True)
            curves.append(curve)
        scores[name] = np.array(curves).transpose(1, 0, 2)
    return scores


def _reacher(
    run: Run, family: Family, settings: DQNSettings, name: str, seed: int, task: int, steps: int, evaluate_every: int
) -> list[list[float]]:
    agent = DQNAgent(family.make(), family.train, DEEP[name], settings, seed=run.derive_seed(21, seed))
    if task:
        agent.load(_agent(run, name, seed, task - 1))
    weights = np.concatenate([family.train, family.test])
    envs = [family.make() for _ in weights]
    rows = []
    for part in range(steps // evaluate_every):
        returns = agent.learn(task, evaluate_every)
        rows.append(evaluate(agent, envs, weights, run.derive_seed(22, seed)))
        step = task * steps + (part + 1) * evaluate_every
        row = {"environment": "reacher", "method": name, "agent_seed": seed, "step": step, "returns": rows[-1]}
        run.metrics(row | {"train_return": float(np.mean(returns))})
        run.stop_if_asked()
    agent.save(_agent(run, name, seed, task))
    unseen_return = np.mean(rows[-1][len(family.train) :])
    run.emit("message", f"reacher, {name}, seed {seed}, task {task + 1}: {unseen_return:.1f} on unseen tasks")
    return rows


def while_learning(curve: np.ndarray) -> list[float]:
    """[seeds]: the return on the task being learnt, on average over the evaluations of the tasks after the first.

    ``curve`` [T, seeds, tasks], T a multiple of the four training tasks.
    """
    by_task = np.split(curve, TRAINING_TASKS)
    return np.mean([part[:, :, task].mean(axis=0) for task, part in enumerate(by_task) if task], axis=0).tolist()


def _agent(run: Run, name: str, seed: int, task: int) -> Path:
    return run.folder / "agents" / f"{_slug(name)}-{seed}-{task}.pt"


def _slug(name: str) -> str:
    return name.lower().replace(" ", "-")


def evaluate(agent: DQNAgent, envs: Sequence[gym.Env], weights: np.ndarray, seed: int) -> list[float]:
    """The undiscounted return of one greedy episode for each of ``weights``, in parallel environments."""
    observations = np.stack([env.reset(seed=seed % 2**31 + i)[0] for i, env in enumerate(envs)])
    total = np.zeros(len(envs))
    for _ in range(EPISODE):
        actions = agent.predict(observations, weights)
        for i, (env, action, w) in enumerate(zip(envs, actions, weights, strict=True)):
            observations[i], phi, *_ = env.step(int(action))
            total[i] += np.asarray(phi) @ w
    return total.tolist()


def summary(
    scores: dict[str, np.ndarray], ours: str, rng: np.random.Generator, final: Callable[[np.ndarray], np.ndarray]
) -> Result:
    """Curves, final scores, profiles and the probability that ``ours`` improves, from scores [T, seeds, tasks].

    ``final`` maps scores to the final scores [seeds, tasks]; ``per_seed`` of the summary is their mean over tasks.
    """
    final_scores = {name: final(curves) for name, curves in scores.items()}
    levels = np.linspace(min(x.min() for x in final_scores.values()), max(x.max() for x in final_scores.values()), 41)
    return {
        "curves": {name: interval(iqm, curves, rng=rng).plain() for name, curves in scores.items()},
        "final": {name: interval(iqm, curves, rng=rng).plain() for name, curves in final_scores.items()},
        "final_mean": {name: interval(mean, curves, rng=rng).plain() for name, curves in final_scores.items()},
        "per_seed": {name: curves.mean(axis=1).tolist() for name, curves in final_scores.items()},
        "profile_levels": levels.tolist(),
        "profiles": {name: interval(profile(levels), curves, rng=rng).plain() for name, curves in final_scores.items()},
        "probability_of_improvement": {
            name: interval(probability_of_improvement, final_scores[ours], curves, rng=rng).plain()
            for name, curves in final_scores.items()
            if name != ours
        },
    }
