"""DQN, DecQN and AD-DQN on dm_control's point mass (or another task) for several numbers of bins per dimension."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, ClassVar

import numpy as np
import torch
from pydantic import Field, field_validator, model_validator

from rl_suite.agents import Agent, AgentConfig
from rl_suite.control import POINT_MASSES, Bins, DMControl, PointMasses, make_vector
from rl_suite.factors import sizes_of
from rl_suite.single_loop import run_loop
from rl_suite.stats import Estimate, Result, draw_band, interval, iqm, probability_of_improvement, student, verdict
from training.run import Job, JobConfig, Run, check_names, derive_seed
from training.workers import computed_steps, stop_if_asked, workers

AGENTS = {
    "DQN": AgentConfig(),
    "DecQN": AgentConfig(),
    "AD-DQN": AgentConfig(projected=1.0),
}
VARIANTS = {
    "AD-DQN, weighted": AgentConfig(projected=1.0, mixer="weighted"),
    "AD-DQN, MLP": AgentConfig(projected=1.0, mixer="mlp"),
    "AD-DQN, model": AgentConfig(projected=1.0, model=True),
    "AD-DQN, weighted, model": AgentConfig(projected=1.0, mixer="weighted", model=True),
    "AD-DQN, MLP, model": AgentConfig(projected=1.0, mixer="mlp", model=True),
}
VARIANT_RIVALS = ("DecQN", "AD-DQN")  # with which the variants are compared
MOST_JOINT_ACTIONS = 2**20  # of DQN, which has an output for each: half a gigabyte a network


class PointMassConfig(JobConfig):
    """Agents on a task of dm_control, by their bins per dimension."""

    movable: ClassVar[frozenset[str]] = frozenset({"workers"})

    task: str = Field(
        "point_mass-easy",
        description="dm_control's `domain-task`. reacher-hard and cheetah-run are harder than point_mass-easy, "
        "point_mass-dense is easier; walker-stand has six factors.",
    )
    agents: tuple[str, ...] = Field(
        tuple(AGENTS), min_length=1, description="Agents to compare, any of AGENTS and VARIANTS."
    )
    bins: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (9, 17, 33), min_length=1, description="Bins per dimension, one comparison for each."
    )
    variants_at: tuple[int, ...] = Field(
        (17,),
        description="Those of `bins` at which AD-DQN's mixers and models are compared with DecQN and AD-DQN.",
    )
    repeats: int = Field(5, ge=1, description="Seeds of each agent.")
    steps: int = Field(100_000, ge=1, description="Environment steps of a training.")
    evaluations: int = Field(10, ge=1, description="Number of evaluations during a training.")
    episodes: int = Field(8, ge=1, description="Greedy episodes of an evaluation, each of at most 1000 steps.")
    n_step: int = Field(3, ge=1, description="Steps of reward in a target.")
    double: bool = Field(True, description="Double Q-learning.")
    explore: int = Field(30_000, ge=1, description="Steps over which the share of explored actions falls.")
    hold: int = Field(
        100,
        ge=1,
        description="Most steps for which an explored action is held; a random action moves a point mass only if it "
        "is.",
    )
    speed_steps: int = Field(5000, ge=2, description="Steps of the measurement of speed.")
    workers: int = Field(1, ge=1, description="Processes that train agents in parallel; results do not depend on it.")

    @field_validator("agents")
    @classmethod
    def _available(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value, AGENTS | VARIANTS, "agent")
        return value

    @field_validator("task")
    @classmethod
    def _exists(cls, value: str) -> str:
        _factors(value)
        return value

    @model_validator(mode="after")
    def _dqn_fits_in_memory(self) -> PointMassConfig:
        if "DQN" in self.agents and max(self.bins) ** _factors(self.task) > MOST_JOINT_ACTIONS:
            raise ValueError(
                f"bins: {max(self.bins)} bins of {_factors(self.task)} factors make more than {MOST_JOINT_ACTIONS} "
                "joint actions: leave DQN out of agents, or take fewer bins"
            )
        return self

    @model_validator(mode="after")
    def _variants_have_rivals(self) -> PointMassConfig:
        other_bins = [bins for bins in self.variants_at if bins not in self.bins]
        if other_bins:
            raise ValueError(f"variants_at: {_listed(other_bins)} is not in bins, {_listed(self.bins)}")
        rivals = [name for name in VARIANT_RIVALS if name not in self.agents]
        if self.variants_at and rivals:
            raise ValueError(
                f"variants_at: the variants are compared with {_listed(rivals)}, which is not in agents: add it, or "
                "give variants_at=[]"
            )
        return self


@cache
def _factors(task: str) -> int:
    """The number of action factors of a task. Raises ValueError for a task that dm_control lacks."""
    return len(sizes_of(make_vector(task, 1, 2).single_action_space))


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def run(config: PointMassConfig, run: Run) -> Result:
    torch.set_num_threads(1)
    cells = [(bins, name) for bins in config.bins for name in config.agents]
    cells = [*dict.fromkeys([*cells, *((bins, name) for bins in config.variants_at for name in VARIANTS)])]
    run.planned_steps = 2 + len(cells) * config.repeats
    _announce(cells, config, run)
    parity = run.step("parity", _parity)
    run.check("point masses less dm_control's, 200 steps", expected="<= 1e-12", got=parity, holds=parity <= 1e-12)
    speed = run.step("speed", partial(_speed, config, run))
    curves: dict[str, list[list[float]]] = {f"{bins}, {name}": [] for bins, name in cells}
    jobs = {
        f"{bins}-{name}-{n}".replace(", ", "-"): (bins, name, n) for bins, name in cells for n in range(config.repeats)
    }
    check_stop = run.stop_if_asked if config.workers == 1 else stop_if_asked
    calls = {step: partial(train, run.folder / "agents" / step, *job, config, check_stop) for step, job in jobs.items()}

    def report(step: str, curve: list[float]) -> None:
        _report(run, config, *jobs[step], curve)

    with workers(config.workers, run) as submit:
        for step, curve in computed_steps(run, submit, calls, report).items():
            curves[f"{jobs[step][0]}, {jobs[step][1]}"].append(curve)
    table = {cell: _scores(seed_curves, run) for cell, seed_curves in curves.items()}
    for cell, scores in table.items():
        run.emit("message", f"{cell}: area {_text(scores['area'])}, final {_text(scores['final'])}")
    comparisons = _comparisons(curves, run)
    for line in comparisons.values():
        run.emit("message", line["verdict"])
    return {"speed": speed, "curves": curves, "table": table, "comparisons": comparisons}


def options(name: str, config: PointMassConfig, seed: int) -> AgentConfig:
    """The configuration of agent ``name``. DQN puts all factors of the task's action space in one block."""
    agent_config = (AGENTS | VARIANTS)[name]
    if name == "DQN":
        agent_config = replace(agent_config, blocks=(tuple(range(_factors(config.task))),))
    return replace(
        agent_config,
        n_step=config.n_step,
        double=config.double,
        explore=config.explore,
        hold=config.hold,
        seed=seed,
    )


def _announce(cells: list[tuple[int, str]], config: PointMassConfig, run: Run) -> None:
    """Emit the expected duration, from 2,500 steps/s with evaluations measured on one busy core, half with a model."""
    per_run = config.steps / 2500
    total = sum(per_run * (2 if "model" in name else 1) for _, name in cells) * config.repeats / config.workers
    run.emit(
        "message",
        f"{len(cells)} agents × {config.repeats} seeds × {config.steps} steps: about {math.ceil(total / 60)} minutes",
    )


def train(
    folder: Path, bins: int, name: str, n: int, config: PointMassConfig, check_stop: Callable[[], None]
) -> list[float]:
    """Mean greedy return at each evaluation; resumes after the last one saved in ``folder`` where the environments'
    state can be saved, and else begins anew, so that the result is the same.

    ``check_stop`` is called before each evaluation and may raise.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seed, evaluation_seed = (derive_seed(config.seed, stream, n) % 2**31 for stream in (0, 1))
    agent_config = options(name, config, seed)
    envs = make_vector(config.task, agent_config.envs, bins)
    scores = folder / "curve.json"  # written after the agent it describes
    curve = json.loads(scores.read_text()) if scores.exists() and hasattr(envs, "state_dict") else []
    agent = Agent.load(folder / f"{len(curve)}.pt", envs) if curve else Agent(envs, agent_config)
    while len(curve) < config.evaluations:
        check_stop()
        agent.learn(config.steps * (len(curve) + 1) // config.evaluations - agent.steps)
        curve.append(evaluate(agent, config.task, bins, config.episodes, evaluation_seed))
        agent.save(folder / f"{len(curve)}.pt")
        partial_scores = scores.with_suffix(".partial")
        partial_scores.write_text(json.dumps(curve))
        os.replace(partial_scores, scores)
        (folder / f"{len(curve) - 1}.pt").unlink(missing_ok=True)
    return curve


def _report(run: Run, config: PointMassConfig, bins: int, name: str, n: int, curve: list[float]) -> None:
    for i, score in enumerate(curve, 1):
        steps_done = config.steps * i // config.evaluations
        run.metrics({"step": steps_done, "bins": bins, "agent": name, "repeat": n, "return": score})
    run.emit("message", f"{bins} bins, {name}, seed {n}: {' '.join(f'{score:.0f}' for score in curve)}")


def evaluate(agent: Agent, task: str, bins: int, episodes: int, seed: int) -> float:
    """The mean return of parallel greedy episodes, the first of each environment."""
    envs = make_vector(task, episodes, bins)
    obs, _ = envs.reset(seed=seed)
    total, going = np.zeros(episodes), np.ones(episodes, bool)
    while going.any():
        obs, rewards, terminated, truncated, _ = envs.step(agent.predict(obs))
        total += going * rewards
        going &= ~(terminated | truncated)
    return float(total.mean())


def _parity() -> float:
    """The largest difference between PointMasses and dm_control's own environment under random actions.

    Five starts within 1.5 cm of the target on each axis, because the reward is zero far from it.
    """
    batched, single = PointMasses(1, 9), DMControl("point_mass", "easy")
    rng, levels, worst = np.random.default_rng(0), np.linspace(-1, 1, 9), 0.0
    for start in rng.uniform(-0.015, 0.015, (5, 2)):
        batched.reset(seed=0)
        batched._data[0].qpos[:] = start
        batched._mujoco.mj_forward(batched._model, batched._data[0])
        single.reset(seed=0)
        with single._env.physics.reset_context():
            single._env.physics.data.qpos[:] = start
        for _ in range(40):
            action = rng.integers(9, size=(1, 2))
            obs, rewards, *_ = batched.step(action)
            expected, reward, *_ = single.step(levels[action[0]])
            worst = max(worst, float(np.abs(obs[0] - expected).max()), abs(float(rewards[0]) - reward))
    return worst


def _speed(config: PointMassConfig, run: Run) -> dict[str, float]:
    """Environment steps per second of DecQN in this package and in the plain loop with the same network and updates.

    Best of three alternating measurements each.
    """
    rates: dict[str, list[float]] = {"agent": [], "loop": []}
    domain, _, task = ("point_mass-easy" if config.task in POINT_MASSES else config.task).partition("-")
    bins = config.bins[0]
    for _ in range(3):
        agent_config = options("DecQN", config, 0)
        agent = Agent(make_vector(config.task, agent_config.envs, bins), agent_config)
        agent.learn(agent_config.start)
        began = time.perf_counter()
        agent.learn(config.speed_steps)
        rates["agent"].append(config.speed_steps / (time.perf_counter() - began))
        loop = run_loop(Bins(DMControl(domain, task), bins), agent_config, agent_config.start + config.speed_steps // 2)
        rates["loop"].append(loop)
    best = {name: max(values) for name, values in rates.items()}
    ratio = best["agent"] / best["loop"]
    run.emit("message", f"{best['agent']:.0f} steps/s, a CleanRL-style loop {best['loop']:.0f}: ratio {ratio:.2f}")
    return best | {"ratio": ratio}


def _scores(curves: list[list[float]], run: Run) -> Result:
    """Means over seeds of the area under the curve (its mean height) and of the last evaluation; IQM per evaluation."""
    returns = np.array(curves)  # [seeds, evaluations]
    summaries = {"area": returns.mean(axis=1), "final": returns[:, -1]}
    return {name: student(scores[:, None]).plain() for name, scores in summaries.items()} | {
        "iqm": interval(iqm, returns.T[:, :, None], rng=run.rng(1)).plain()
    }


def _comparisons(curves: dict[str, list[list[float]]], run: Run) -> Result:
    """AD-DQN and its variants against DecQN, DecQN and AD-DQN against DQN: area under the curve at the same bins,
    paired by seed; the probability of improvement is that of independent runs."""
    comparisons = {}
    for cell, x in curves.items():
        bins, _, name = cell.partition(", ")
        baselines = {"DQN": (), "DecQN": ("DQN",), "AD-DQN": ("DQN", "DecQN")}.get(name, VARIANT_RIVALS)
        for baseline in (other for other in baselines if f"{bins}, {other}" in curves):
            a, b = (np.array(returns).mean(axis=1)[:, None] for returns in (x, curves[f"{bins}, {baseline}"]))
            gap = student(a - b)
            better = interval(probability_of_improvement, a, b, rng=run.rng(3))
            area = verdict(gap, name, baseline, len(a), "+.1f")
            line = f"{bins} bins, {name} less {baseline}: area {area}"
            line += f"; P(better) {better:.2f}" if len(a) > 1 else ""
            comparisons[f"{cell} / {baseline}"] = {"gap": gap.plain(), "better": better.plain(), "verdict": line}
    return comparisons


def _text(estimate: Result) -> str:
    return f"{Estimate(**estimate):.0f}"


def draw(folder: Path) -> None:
    """Write figures/curves.png from result.json."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    config = result["config"]
    x = config["steps"] * np.arange(1, config["evaluations"] + 1) / config["evaluations"]
    panels = [(f"{bins} bins", [(f"{bins}, {name}", name) for name in config["agents"]]) for bins in config["bins"]]
    for bins in config["variants_at"]:
        cells = [(f"{bins}, {name}", name) for name in (*VARIANT_RIVALS, *VARIANTS)]
        panels.append((f"{bins} bins: mixers and models", cells))
    figure, panel_axes = plt.subplots(
        1, len(panels), figsize=(4 * len(panels), 3.6), layout="constrained", squeeze=False
    )
    for axes, (title, cells) in zip(panel_axes[0], panels, strict=True):
        for cell, name in cells:
            draw_band(axes, x, result["table"][cell]["iqm"], name)
        axes.set(title=title, xlabel="environment steps", ylabel="return (IQM of seeds)")
        axes.legend(fontsize=7)
    figure.savefig(folder / "figures" / "curves.png", dpi=90)
    plt.close(figure)


TWO_CORES = {
    "task": "point_mass-dense",
    "agents": ("DecQN", "AD-DQN", "AD-DQN, weighted"),
    "bins": (17,),
    "variants_at": (),
    "repeats": 20,
    "steps": 24_000,
    "evaluations": 4,
    "episodes": 4,
    "explore": 8000,
    "workers": 2,
}
SIX_FACTORS = TWO_CORES | {"task": "walker-stand", "bins": (3,), "explore": 6000, "hold": 4}
SMOKE = {
    "bins": (9,),
    "variants_at": (),
    "repeats": 2,
    "steps": 2000,
    "evaluations": 2,
    "episodes": 2,
    "speed_steps": 500,
}
JOB = Job(
    name="rl.adrl_pointmass",
    summary="DQN, DecQN and AD-DQN on a dm_control task in 9, 17 and 33 bins a dimension; steps per second",
    Config=PointMassConfig,
    run=run,
    presets={
        "smoke": SMOKE,
        "two-cores": TWO_CORES,
        "six-factors": SIX_FACTORS,
        "paper": {},
    },
    draw=draw,
)
