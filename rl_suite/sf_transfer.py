"""Transfer curves of each method and seed: four rooms with tables, the reacher with networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import gymnasium as gym
import numpy as np

from rl_suite.sf_dqn import DQNAgent, DQNSettings
from rl_suite.sf_tabular import TabularAgent
from rl_suite.sf_tasks import Q_FRESH, Q_GPI, Q_WARM, SF, SF_WARM, UVFA, Family, four_room, reacher
from rl_suite.stats import Result, interval, iqm, probability_of_improvement, profile, student
from training.run import Run
from training.workers import computed_steps

TABULAR = {"SFQL": SF, "SFQL without GPI": SF_WARM, "QL-GPI": Q_GPI, "warm QL": Q_WARM, "QL": Q_FRESH}
DEEP = {"SF-DQN": SF, "SF-DQN without GPI": SF_WARM, "DQN-GPI": Q_GPI, "warm DQN": Q_WARM, "UVFA": UVFA}
TRAINING_TASKS = 4  # of the reacher
EPISODE = 50  # mo-reacher-v5's time limit


Submit = Callable[..., Callable[[], Any]]  # as `training.workers.workers` gives it
CheckStop = Callable[[], None]  # raises Cancelled once the run was asked to stop; called where an agent trains


def four_room_scores(
    run: Run, submit: Submit, check_stop: CheckStop, seeds: int, tasks: int, steps: int
) -> dict[str, np.ndarray]:
    """[tasks, seeds, 1] for each method: the reward collected while learning each task for ``steps`` transitions."""
    family = four_room(run.rng(10), tasks)
    agents = {f"four-room-{_slug(name)}-{seed}": (name, seed) for name in TABULAR for seed in range(seeds)}
    calls = {
        step: partial(_four_room, family, name, run.derive_seed(11, seed), steps, check_stop)
        for step, (name, seed) in agents.items()
    }

    def report(step: str, collected: list[float]) -> None:
        name, seed = agents[step]
        row = {"environment": "four-room", "method": name, "agent_seed": seed, "collected": collected}
        run.metrics(row, f"four rooms, {name}, seed {seed}: {np.mean(collected):.0f} a task")

    rows = computed_steps(run, submit, calls, report)
    return {
        name: np.array([rows[step] for step, (method, _) in agents.items() if method == name]).T[:, :, None]
        for name in TABULAR
    }


def _four_room(family: Family, name: str, seed: int, steps: int, check_stop: CheckStop) -> list[float]:
    agent = TabularAgent(family.make(), family.train, TABULAR[name], seed=seed)
    collected = []
    for task in range(len(family.train)):
        collected.append(agent.learn(task, steps))
        check_stop()
    return collected


class ReacherPlan(NamedTuple):
    """The four training tasks are learnt in order, ``steps`` each, with an evaluation every ``evaluate_every``."""

    steps: int
    evaluate_every: int
    settings: DQNSettings


class ReacherRow(TypedDict):
    """``returns``: of a greedy episode on each training and test task; ``train_return``: the mean while learning."""

    step: int
    returns: list[float]
    train_return: float


@dataclass(frozen=True)
class ReacherAgent:
    """A method with a seed. ``seeds``: of its training and its evaluations. ``folder``: of agents that ended a task."""

    method: str
    number: int
    seeds: tuple[int, int]
    folder: Path
    plan: ReacherPlan

    def step(self, task: int) -> str:
        return f"reacher-{_slug(self.method)}-{self.number}-{task}"

    def path(self, task: int) -> Path:
        return self.folder / f"{_slug(self.method)}-{self.number}-{task}.pt"

    def learn(self, task: int, check_stop: CheckStop) -> list[ReacherRow]:
        family, plan = reacher(), self.plan
        agent = DQNAgent(family.make(), family.train, DEEP[self.method], plan.settings, seed=self.seeds[0])
        if task:
            agent.load(self.path(task - 1))
        weights = np.concatenate([family.train, family.test])
        envs = [family.make() for _ in weights]
        rows: list[ReacherRow] = []
        for part in range(plan.steps // plan.evaluate_every):
            train_returns = agent.learn(task, plan.evaluate_every)
            step = task * plan.steps + (part + 1) * plan.evaluate_every
            returns = evaluate(agent, envs, weights, self.seeds[1])
            rows.append(ReacherRow(step=step, returns=returns, train_return=float(np.mean(train_returns))))
            check_stop()
        agent.save(self.path(task))
        return rows


def reacher_scores(
    run: Run, submit: Submit, check_stop: CheckStop, seeds: int, plan: ReacherPlan
) -> dict[str, np.ndarray]:
    """[T, seeds, 4 + 8] for each method: the return of a greedy episode on each training and each test task.

    All agents learn a task before any learns the next. The agent saved at the end of a task is kept until the end of
    the next, so that an interrupted run resumes there.
    """
    folder = run.folder / "agents"
    folder.mkdir(exist_ok=True)
    seeds_of = [(run.derive_seed(21, number), run.derive_seed(22, number)) for number in range(seeds)]
    agents = [ReacherAgent(name, number, seeds_of[number], folder, plan) for name in DEEP for number in range(seeds)]
    curves: dict[ReacherAgent, list[list[float]]] = {agent: [] for agent in agents}
    for task in range(TRAINING_TASKS):
        learners = {agent.step(task): agent for agent in agents}
        calls = {step: partial(agent.learn, task, check_stop) for step, agent in learners.items()}
        report = partial(_report_reacher, run, learners)
        for step, rows in computed_steps(run, submit, calls, report).items():
            curves[learners[step]] += [row["returns"] for row in rows]
            learners[step].path(task - 1).unlink(missing_ok=True)
    by_method = {name: [curves[agent] for agent in agents if agent.method == name] for name in DEEP}
    return {name: np.array(method_curves).transpose(1, 0, 2) for name, method_curves in by_method.items()}


def _report_reacher(run: Run, learners: Mapping[str, ReacherAgent], step: str, rows: list[ReacherRow]) -> None:
    agent = learners[step]
    for row in rows:
        run.metrics({"environment": "reacher", "method": agent.method, "agent_seed": agent.number} | row)
    unseen_return = np.mean(rows[-1]["returns"][TRAINING_TASKS:])
    run.emit("message", f"{step}: {unseen_return:.1f} on unseen tasks")


def while_learning(curve: np.ndarray) -> list[float]:
    """[seeds]: the return on the task being learnt, on average over the evaluations of the tasks after the first.

    ``curve`` [T, seeds, tasks], T a multiple of the four training tasks.
    """
    by_task = np.split(curve, TRAINING_TASKS)
    return np.mean([part[:, :, task].mean(axis=0) for task, part in enumerate(by_task) if task], axis=0).tolist()


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
    """Curves, final scores, profiles and the probability that ``ours`` improves, from scores [T, seeds, tasks]. Means
    have Student intervals, the rest those of the percentile bootstrap.

    ``final`` maps scores to the final scores [seeds, tasks]; ``per_seed`` of the summary is their mean over tasks.
    """
    final_scores = {name: final(curves) for name, curves in scores.items()}
    levels = np.linspace(min(x.min() for x in final_scores.values()), max(x.max() for x in final_scores.values()), 41)
    return {
        "curves": {name: interval(iqm, curves, rng=rng).plain() for name, curves in scores.items()},
        "final": {name: interval(iqm, curves, rng=rng).plain() for name, curves in final_scores.items()},
        "final_mean": {name: student(curves).plain() for name, curves in final_scores.items()},
        "per_seed": {name: curves.mean(axis=1).tolist() for name, curves in final_scores.items()},
        "profile_levels": levels.tolist(),
        "profiles": {name: interval(profile(levels), curves, rng=rng).plain() for name, curves in final_scores.items()},
        "probability_of_improvement": {
            name: interval(probability_of_improvement, final_scores[ours], curves, rng=rng).plain()
            for name, curves in final_scores.items()
            if name != ours
        },
    }
