"""SF-DQN with GPI (arXiv:2405.15920): bounds, convergence, transfer, and the speed of batching tasks."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, PositiveInt

from rl_suite.sf_dqn import DQNAgent, DQNSettings
from rl_suite.sf_exact import distance_study, random_family, transfer
from rl_suite.sf_figures import draw
from rl_suite.sf_speed import LoopedUpdate, per_second
from rl_suite.sf_tasks import reacher
from rl_suite.sf_teacher import TeacherStudy, slope, train
from rl_suite.sf_transfer import (
    DEEP,
    EPISODE,
    TABULAR,
    ReacherPlan,
    four_room_scores,
    reacher_scores,
    summary,
    while_learning,
)
from rl_suite.stats import Result
from training.run import Job, JobConfig, Run, jsonable
from training.workers import one_thread, stop_if_asked, workers

STATES, ACTIONS, FEATURES, KNOWN_TASKS, GAMMA = 20, 4, 4, 5, 0.95  # of the random MDPs
LATE = 5  # the tasks at the end of four rooms that count as late
# The reacher's tasks by kind.
PARTS = {"trained": slice(0, 4), "several": slice(4, 8), "away": slice(8, 12), "all": slice(0, 12)}


class SuccessorFeaturesConfig(JobConfig):
    """The bounds, the synthetic studies, and agents in four rooms and on the reacher."""

    movable: ClassVar[frozenset[str]] = frozenset({"workers"})

    mdps: int = Field(200, ge=2, description="Random MDPs for the bounds.")
    repeats: int = Field(10, ge=1, description="Repetitions of each synthetic study.")
    teacher_steps: int = Field(16_384, ge=512, description="Steps of the study of teacher and student.")
    agents: int = Field(5, ge=1, description="Seeds of each method.")
    four_room_tasks: int = Field(20, ge=1, description="Tasks in the four rooms.")
    four_room_steps: int = Field(20_000, ge=1, description="Transitions per task in the four rooms.")
    reacher_steps: int = Field(100_000, description="Transitions per task of the reacher.")
    evaluate_every: int = Field(5_000, ge=EPISODE, description="Transitions between two evaluations.")
    update_every: int = Field(1, ge=1, description="Transitions per update.")
    hidden: tuple[PositiveInt, ...] = Field(
        (256, 256), min_length=1, description="Widths of the network's hidden layers."
    )
    speed_seconds: float = Field(5.0, gt=0, description="Seconds of each measurement of speed.")
    workers: int = Field(1, ge=1, description="Processes that train agents in parallel; results do not depend on it.")


def run(config: SuccessorFeaturesConfig, run: Run) -> Result:
    if config.reacher_steps < config.evaluate_every or config.reacher_steps % config.evaluate_every:
        raise ValueError("reacher_steps must be a multiple of evaluate_every, and at least that")
    run.planned_steps = 4 + config.agents * (len(TABULAR) + 4 * len(DEEP))
    run.emit("message", f"about {math.ceil(expected_minutes(config))} minutes on two cores")
    studies = {"bounds": _bounds, "distance": _distance, "teacher": _teacher, "speed": _speed}
    results: Result = {name: run.step(name, partial(_plain, study, config, run)) for name, study in studies.items()}
    settings = DQNSettings(hidden=config.hidden, update_every=config.update_every)
    plan = ReacherPlan(config.reacher_steps, config.evaluate_every, settings)
    check_stop = run.stop_if_asked if config.workers == 1 else stop_if_asked
    with one_thread(), workers(config.workers, run) as submit:
        rooms = four_room_scores(run, submit, check_stop, config.agents, config.four_room_tasks, config.four_room_steps)
        arms = reacher_scores(run, submit, check_stop, config.agents, plan)
    results["four_rooms"] = summary(rooms, "SFQL", run.rng(30), lambda curve: curve[-LATE:, :, 0].T)
    for number, (name, part) in enumerate(PARTS.items()):
        returns = {method: curve[:, :, part] for method, curve in arms.items()}
        results[f"reacher_{name}"] = summary(returns, "SF-DQN", run.rng(31, number), lambda curve: curve[-1])
    results["reacher_while_learning"] = {"per_seed": {method: while_learning(curve) for method, curve in arms.items()}}
    _check(results, run)
    return results


def _plain(
    study: Callable[[SuccessorFeaturesConfig, Run], Result], config: SuccessorFeaturesConfig, run: Run
) -> Result:
    return jsonable(study(config, run))


def expected_minutes(config: SuccessorFeaturesConfig) -> float:
    """From rates measured on two busy cores: a tabular transition, a reacher transition, an update of four tasks."""
    rooms = len(TABULAR) * config.four_room_tasks * config.four_room_steps * 35e-6
    seconds_per_transition = 0.5e-3 + 2.5e-3 * (max(config.hidden) / 256) / config.update_every
    evaluations = 4 * config.reacher_steps / config.evaluate_every * 0.2
    arms = len(DEEP) * (4 * config.reacher_steps * seconds_per_transition + evaluations)
    studies = config.repeats * 8 * config.teacher_steps * 0.3e-3 + config.mdps * 0.02 + 3 * config.speed_seconds
    return (config.agents * (rooms + arms) / min(config.workers, 2) + studies) / 60


def _bounds(config: SuccessorFeaturesConfig, run: Run) -> Result:
    rows = []
    for i in range(config.mdps):
        rng, epsilon = run.rng(1, i), 0.0 if i % 2 == 0 else 0.05
        family = random_family(rng, STATES, ACTIONS, FEATURES, KNOWN_TASKS, GAMMA)
        rows.append([transfer(*family, 0.0, rng), transfer(*family, epsilon, rng)])
    exact, noisy = zip(*rows, strict=True)
    slack = {
        "improvement": min(outcome.improvement for pair in rows for outcome in pair),
        "loss": min(outcome.loss for pair in rows for outcome in pair),
        "exact": min(outcome.exact for outcome in exact),
    }
    gaps = {name: float(np.mean([getattr(outcome, name) for outcome in exact])) for name in ("sf_gpi", "dqn_gpi")}
    noisy_gap = float(np.mean([outcome.sf_gpi for outcome in noisy[1::2]]))
    run.metrics(
        {"gaps": gaps, "slack": slack}, f"gaps to Q*: SF-GPI {gaps['sf_gpi']:.2f}, DQN-GPI {gaps['dqn_gpi']:.2f}"
    )
    return {"mdps": config.mdps, "gaps": gaps, "noisy_gap": noisy_gap, "slack": slack}


def _distance(config: SuccessorFeaturesConfig, run: Run) -> Result:
    distances = 0.2 * 2.0 ** np.arange(5)
    rows = distance_study(run.rng(2), distances, 5 * config.repeats, (STATES, ACTIONS, FEATURES), GAMMA)
    slopes = {name: slope(distances, np.array([row[name] for row in rows])) for name in ("sf_gpi", "q")}
    return {"rows": rows, "slopes": slopes}


def _teacher(config: SuccessorFeaturesConfig, run: Run) -> Result:
    """Log-log slopes of the student's error, each over medians of ``repeats`` teachers."""
    steps, noisy, exact = config.teacher_steps, TeacherStudy(), TeacherStudy(noise=0.0)

    def median(key: int, study: TeacherStudy = noisy, **settings: Any) -> list[np.ndarray]:
        traces = [train(study, run.rng(3, key, i), **settings) for i in range(config.repeats)]
        return [np.median(part, axis=0) for part in zip(*traces, strict=True)]

    t, distance, _ = median(0, steps=steps)
    late = t >= steps / 32
    replays, errors = np.array([250, 1000, 4000, 16_000]), np.array([0.25, 0.5, 1.0, 2.0])
    by_replay = [median(1, steps=steps, replay=int(n))[1][-1] for n in replays]
    by_w = [median(2, exact, steps=64, w_error=float(e), start=0.0)[2][-1] for e in errors]
    studies = {
        "time": {"x": t.tolist(), "y": distance.tolist(), "slope": slope(t[late], distance[late])},
        "replay": {
            "x": replays.tolist(),
            "y": np.array(by_replay).tolist(),
            "slope": slope(replays, np.array(by_replay)),
        },
        "w_error": {"x": errors.tolist(), "y": np.array(by_w).tolist(), "slope": slope(errors, np.array(by_w))},
    }
    slopes = {name: row["slope"] for name, row in studies.items()}
    run.metrics({"slopes": slopes}, f"teacher and student, log-log slopes: {slopes}")
    return studies


def _speed(config: SuccessorFeaturesConfig, run: Run, tasks: int = 8) -> Result:
    """Updates per second of ``tasks`` ψ at the reacher's sizes: batched, and by two loops over the tasks."""
    rng = run.rng(4)
    agent = DQNAgent(reacher().make(), rng.standard_normal((tasks, 4)), settings=DQNSettings(hidden=config.hidden))
    agent.learn(0, 300)
    agent.begun = tasks
    batch = agent.replay.sample(agent.settings.batch, rng)
    parameters = (agent.net, agent.w, agent.actions, agent.settings.gamma, agent.settings.rate)
    shared, repeated = (LoopedUpdate(*parameters, shared=shared) for shared in (True, False))
    updates: list[Callable[[], object]] = [partial(learner.update, batch) for learner in (agent, shared, repeated)]
    batched, loop, public = per_second(updates, config.speed_seconds)
    speeds = {"batched": batched, "loop": loop, "loop_repeating_gpi": public, "tasks": tasks}
    speeds |= {
        "ratio_to_loop": batched / loop,
        "ratio_to_loop_repeating_gpi": batched / public,
        "threads": torch.get_num_threads(),
    }
    run.metrics(
        {"speed": speeds}, f"{batched:.0f} updates a second of {tasks} tasks, looped {loop:.0f} and {public:.0f}"
    )
    return speeds


def _check(results: Result, run: Run) -> None:
    bounds, gaps = results["bounds"], results["bounds"]["gaps"]
    smallest_slack = min(bounds["slack"].values())
    run.check(
        f"no GPI bound violated on {bounds['mdps']} random MDPs",
        expected="slack >= -1e-9",
        got=smallest_slack,
        holds=smallest_slack >= -1e-9,
    )
    run.check("gap of SF-GPI (0.16 seen elsewhere)", expected="< 0.5", got=gaps["sf_gpi"], holds=gaps["sf_gpi"] < 0.5)
    run.check("gap of DQN-GPI (9.45 seen elsewhere)", expected="> 5", got=gaps["dqn_gpi"], holds=gaps["dqn_gpi"] > 5)
    slopes = {name: row["slope"] for name, row in results["teacher"].items()}
    run.check(
        "the student converges, and faster with more replay",
        expected="slopes < -0.3",
        got=[slopes["time"], slopes["replay"]],
        holds=max(slopes["time"], slopes["replay"]) < -0.3,
    )
    run.check(
        "an error in w is one in Q, in proportion",
        expected="slope 0.7 to 1.3",
        got=slopes["w_error"],
        holds=0.7 <= slopes["w_error"] <= 1.3,
    )


SMOKE = {
    "repeats": 3,
    "teacher_steps": 1024,
    "agents": 2,
    "four_room_tasks": 3,
    "four_room_steps": 1000,
    "reacher_steps": 300,
    "evaluate_every": 300,
    "update_every": 2,
    "hidden": (32, 32),
    "speed_seconds": 1.0,
}
TWO_CORES = {
    "teacher_steps": 4096,
    "reacher_steps": 25_000,
    "evaluate_every": 5_000,
    "update_every": 4,
    "hidden": (64, 64),
    "workers": 2,
}

JOB = Job(
    name="rl.sf_gpi",
    summary="Successor features with GPI: bounds, a known teacher, transfer on four rooms and the reacher",
    Config=SuccessorFeaturesConfig,
    run=run,
    presets={"smoke": SMOKE, "two-cores": TWO_CORES, "paper": {}},
    draw=draw,
)
