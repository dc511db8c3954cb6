"""Offline learners on two sepsis MDPs with known exact values: true values of their policies beside estimates."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import numpy as np
from gymnasium import spaces
from pydantic import Field

from rl_suite.bcq import THRESHOLDS, OfflineAgent, OfflineConfig, Threshold
from rl_suite.mdp import MDP, expected_return, greedy, icu_sepsis, optimal_q, uniform
from rl_suite.offline import Episodes, collect, pareto
from rl_suite.ope import fqe, soften, wis
from rl_suite.projection import bias
from rl_suite.sepsis_sim import HORIZON, arrival_rewards, sepsis_mdp, variables
from rl_suite.stats import Estimate, Result, student, verdict
from training.run import Job, JobConfig, Run

NATURAL = ((0, 2), (1,))  # of the simulator: antibiotics and vasopressors meet in the blood pressure
LEARNERS = {
    "BC": OfflineConfig(kind="bc"),
    "BCQ": OfflineConfig(kind="bcq"),
    "BCQf": OfflineConfig(kind="bcqf"),
    "AD-BCQ": OfflineConfig(kind="ad-bcq"),
    "AD-BCQ, natural blocks": OfflineConfig(kind="ad-bcq", blocks=NATURAL),
}
GOLDEN = {"ICU-Sepsis": {"optimal": 0.8751, "behaviour": 0.7818}, "simulator": {"optimal": 0.7418}}


class SepsisConfig(JobConfig):
    """Datasets, learners and their evaluation."""

    datasets: int = Field(5, ge=1, description="Independent datasets and networks.")
    episodes: int = Field(1000, ge=1, description="Episodes in each of a dataset's three parts.")
    thresholds: tuple[Threshold, ...] = Field(
        THRESHOLDS,
        min_length=1,
        description="τ, one policy for each: an action is allowed where π_b(a|s) > τ max π_b.",
    )
    updates: int = Field(2000, ge=1, description="Updates of a learner.")
    polyak: float = Field(0.005, gt=0, le=1, description="Share by which the target network moves in an update.")
    epsilon: float = Field(0.01, ge=0, le=1, description="ε: evaluated policies are (1 − ε) greedy + ε π_b.")
    min_ess: float = Field(50.0, ge=0, description="The effective sample size that selection by WIS requires.")


@dataclass(frozen=True)
class Patients:
    """``features`` [S, J]: active features of a state; ``arrival`` [S]: reward on entry; ``behaviour`` [S, A]: π_b."""

    mdp: MDP
    features: np.ndarray
    arrival: np.ndarray
    behaviour: np.ndarray
    horizon: int


@cache
def patients(name: str) -> Patients:
    """ICU-Sepsis under its clinicians, or the simulator under half a myopic (γ = 0.5) and half a uniform policy."""
    if name == "ICU-Sepsis":
        mdp, expert = icu_sepsis()
        survival = np.zeros(len(mdp.R))
        survival[714] = 1.0
        return Patients(mdp, np.arange(len(mdp.R))[:, None], survival, expert, 1000)
    mdp, v = sepsis_mdp(), variables()
    levels = v.max(axis=0) + 1
    features = v + np.concatenate([[0], levels.cumsum()[:-1]])
    myopic = greedy(optimal_q(replace(mdp, gamma=0.5)))
    behaviour = 0.5 * myopic + 0.5 * uniform(np.ones(mdp.R.shape, bool))
    return Patients(mdp, features, arrival_rewards(), behaviour, HORIZON)


def run(config: SepsisConfig, run: Run) -> Result:
    run.planned_steps = 2 + (2 * len(LEARNERS) - 1) * config.datasets
    policies = 7 * len(config.thresholds) + 2  # of a dataset of each kind: seven learners by threshold, and BC's
    seconds = config.datasets * policies * (0.2 + 2e-3 * config.updates)  # as seen on two busy cores
    run.emit("message", f"about {math.ceil(seconds / 60)} minutes")
    exact = {name: run.step(f"exact-{i}", partial(_exact, name)) for i, name in enumerate(GOLDEN)}
    for name, golden in GOLDEN.items():
        for policy, expected in golden.items():
            got = exact[name][policy]
            run.check(f"{name} {policy}", expected=expected, got=got, holds=abs(got - expected) < 1e-4)
    worse, better = (exact["simulator"]["bias"][blocks]["decomposed"][1] for blocks in ("each_alone", "natural"))
    run.check("the natural blocks lose less", expected=f"> {worse:.4f}", got=better, holds=better > worse)
    results: Result = {}
    for i, name in enumerate(GOLDEN):
        learners = [learner for learner in LEARNERS if name == "simulator" or learner != "AD-BCQ, natural blocks"]
        dataset_rows = []
        for n in range(config.datasets):
            steps = [f"learn-{i}-{n}-{learner}".replace(", ", "-").replace(" ", "-") for learner in learners]
            learner_rows = [
                run.step(step, partial(_learn, name, n, learner, config, run))
                for step, learner in zip(steps, learners, strict=True)
            ]
            dataset_rows.append([row for rows in learner_rows for row in rows])
        results[name] = {"rows": [row for rows in dataset_rows for row in rows]} | _summary(
            dataset_rows, config.min_ess
        )
        for line in results[name]["verdicts"]:
            run.emit("message", f"{name}: {line}")
    return {"exact": exact, "results": results}


def _exact(name: str) -> Result:
    cohort = patients(name)
    q = optimal_q(cohort.mdp)
    policies = {
        "optimal": greedy(q, cohort.mdp.admissible),
        "behaviour": cohort.behaviour,
        "random": uniform(np.ones_like(q, bool)),
    }
    values: Result = {key: expected_return(cohort.mdp, policy) for key, policy in policies.items()}
    blocks = {"each_alone": None} | ({"natural": NATURAL} if name == "simulator" else {})
    return values | {"bias": {key: asdict(bias(cohort.mdp, parts)) for key, parts in blocks.items()}}


def _learn(name: str, n: int, learner: str, config: SepsisConfig, run: Run) -> list[Result]:
    """A row per threshold, learnt from one dataset, with estimates on its validation and test parts."""
    cohort = patients(name)
    rng = run.rng(0, list(GOLDEN).index(name), n)
    train, *evaluation_parts = (
        collect(cohort.mdp, cohort.arrival, cohort.behaviour, config.episodes, rng, cohort.horizon)
        for _ in ("train", "validate", "test")
    )
    taus = config.thresholds if learner != "BC" else (0.0,)
    agent = OfflineAgent(
        spaces.MultiDiscrete(np.array(cohort.mdp.sizes)),
        cohort.features,
        replace(
            LEARNERS[learner],
            thresholds=taus,
            updates=config.updates,
            polyak=config.polyak,
            gamma=cohort.mdp.gamma,
            seed=run.derive_seed(1, n),
        ),
    )
    policies = agent.learn(train).greedy()
    rows = [
        {"learner": learner, "dataset": n, "threshold": tau} | _evaluate(cohort, actions, evaluation_parts, config)
        for tau, actions in zip(taus, policies, strict=True)
    ]
    for row in rows:
        run.metrics({"step": n, "patients": name} | row)
    return rows


def _evaluate(cohort: Patients, actions: np.ndarray, parts: list[Episodes], config: SepsisConfig) -> dict[str, float]:
    policy = np.eye(cohort.behaviour.shape[1])[actions]
    soft, gamma = soften(policy, cohort.behaviour, config.epsilon), cohort.mdp.gamma
    row = {"true": expected_return(cohort.mdp, soft)}
    for part, data in zip(("validation", "test"), parts, strict=True):
        row[f"{part}_wis"], row[f"{part}_ess"] = wis(data, soft, gamma)
        row[f"{part}_fqe"] = fqe(data, soft, cohort.mdp.start, gamma)
    return row


def select(rows: list[Result], min_ess: float) -> Result:
    """The row of the highest validation WIS among those with ``min_ess``, or of the highest ESS if there are none."""
    enough = [row for row in rows if row["validation_ess"] >= min_ess]
    if enough:
        return max(enough, key=lambda row: row["validation_wis"])
    return max(rows, key=lambda row: row["validation_ess"])


def _summary(dataset_rows: list[list[Result]], min_ess: float) -> Result:
    learners = list(dict.fromkeys(row["learner"] for row in dataset_rows[0]))
    selected = {
        learner: [select([row for row in rows if row["learner"] == learner], min_ess) for rows in dataset_rows]
        for learner in learners
    }
    columns = ("true", "test_wis", "test_ess", "test_fqe")
    table = {
        learner: {column: _interval([row[column] for row in rows]) for column in columns}
        | {"thresholds": [row["threshold"] for row in rows]}
        | {"below_min_ess": sum(row["validation_ess"] < min_ess for row in rows)}
        for learner, rows in selected.items()
    }
    differences, verdicts = {}, []
    for x, y in combinations(learners, 2):
        gaps = [a["true"] - b["true"] for a, b in zip(selected[x], selected[y], strict=True)]
        differences[f"{x} less {y}"] = _interval(gaps)
        gap = Estimate(**differences[f"{x} less {y}"])
        verdicts.append(f"{x} less {y}: {verdict(gap, x, y, len(gaps), '+.4f')}")
    return {"selected": table, "differences": differences, "verdicts": verdicts}


def _interval(scores: list[float]) -> Result:
    return student(np.array(scores)[:, None]).plain()


def draw(folder: Path) -> None:
    """Write figures/sepsis.png from result.json: WIS against ESS over thresholds, and the true values beside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    figure, panels = plt.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for (front_axes, value_axes), (name, summary) in zip(panels, result["results"].items(), strict=True):
        exact = result["exact"][name]
        for i, learner in enumerate(summary["selected"]):
            rows = [row for row in summary["rows"] if row["learner"] == learner]
            points = [(row["validation_ess"], row["validation_wis"]) for row in rows]
            front = sorted(points[j] for j in pareto(points))
            front_axes.plot(*zip(*points, strict=True), ".", color=f"C{i}", alpha=0.3)
            front_axes.plot(*zip(*front, strict=True), "o-", color=f"C{i}", label=learner, markersize=4)
            for column, marker, shift in (("true", "o", -0.2), ("test_wis", "x", 0.0), ("test_fqe", "^", 0.2)):
                estimate = summary["selected"][learner][column]
                bars = [[estimate["value"] - estimate["low"]], [estimate["high"] - estimate["value"]]]
                label = {"true": "true value", "test_wis": "WIS", "test_fqe": "FQE"}[column] if i == 0 else None
                value_axes.errorbar([i + shift], [estimate["value"]], bars, fmt=marker, color=f"C{i}", label=label)
        for axes in (front_axes, value_axes):
            axes.axhline(exact["behaviour"], color="grey", linestyle=":")
            axes.axhline(exact["optimal"], color="grey", linestyle="--")
        front_axes.set(
            title=f"{name}: fronts over thresholds, all datasets", xlabel="ESS", ylabel="WIS (validation)", xscale="log"
        )
        value_axes.set(title="selected by WIS (test); behaviour dotted, optimal dashed", ylabel="value")
        value_axes.set_xticks(range(len(summary["selected"])), list(summary["selected"]), fontsize=7)
        for axes in (front_axes, value_axes):
            axes.legend(fontsize=7)
    figure.savefig(folder / "figures" / "sepsis.png", dpi=100)
    plt.close(figure)


JOB = Job(
    name="rl.adrl_sepsis",
    summary="BC, BCQ, BCQf and AD-BCQ on ICU-Sepsis and a sepsis simulator: true values beside WIS, ESS and FQE",
    Config=SepsisConfig,
    run=run,
    presets={
        "smoke": {"datasets": 2, "episodes": 300, "thresholds": (0.01, 0.3), "updates": 100, "min_ess": 10.0},
        "two-cores": {"thresholds": (0.01, 0.1, 0.3, 0.75), "updates": 1000, "polyak": 0.01},
        "paper": {},
    },
    draw=draw,
)
