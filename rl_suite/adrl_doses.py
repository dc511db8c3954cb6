"""Offline learners against the number of joint actions: n × n doses, one log size, exact values of what they learn."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
from gymnasium import spaces
from pydantic import Field, PositiveInt

from rl_suite.bcq import OfflineAgent, OfflineConfig, Threshold
from rl_suite.dose_sim import GAMMA, HORIZON, LEVELS, arrival_rewards, clinicians, dose_mdp, severities
from rl_suite.mdp import MDP, expected_return, greedy, optimal_q
from rl_suite.offline import collect
from rl_suite.stats import Result, draw_band, student
from training.run import Job, JobConfig, Run

LEARNERS = {
    "BCQ": OfflineConfig(kind="bcq"),
    "BCQf": OfflineConfig(kind="bcqf"),
    "AD-BCQ": OfflineConfig(kind="ad-bcq"),
}


class DoseConfig(JobConfig):
    """MDPs of two drugs, and learners from logs of the clinicians."""

    sizes: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (5, 9, 14), min_length=1, description="n: the doses of each of two drugs."
    )
    interactions: tuple[Annotated[float, Field(ge=0, allow_inf_nan=False)], ...] = Field(
        (0.0, 0.5), min_length=1, description="Strengths of the drugs' interaction, as in dose_mdp."
    )
    datasets: int = Field(10, ge=2, description="Logs of the clinicians' episodes, the same for every learner.")
    tuning_datasets: int = Field(
        3,
        ge=1,
        description="Separate logs, on whose mean true value the threshold and the number of updates are chosen, for "
        "each n and interaction.",
    )
    episodes: int = Field(300, ge=1, description="Episodes of a log.")
    thresholds: tuple[Threshold, ...] = Field(
        (0.1, 0.3, 0.6), min_length=1, description="τ to choose from: an action is allowed where π_b(a|s) > τ max π_b."
    )
    updates: tuple[PositiveInt, ...] = Field(
        (100, 200, 400), min_length=1, description="Numbers of updates to choose from."
    )
    polyak: float = Field(0.02, gt=0, le=1, description="Share by which the target network moves in an update.")


def run(config: DoseConfig, run: Run) -> Result:
    cells = [(interaction, n) for interaction in config.interactions for n in config.sizes]
    logs = config.datasets + config.tuning_datasets
    run.planned_steps = len(cells) * logs
    run.emit("message", f"about {len(cells) * logs * 0.25 * max(config.updates) / 400:.0f} minutes on one busy core")
    rows = []
    for i, (interaction, n) in enumerate(cells):
        values = [
            run.step(f"log-{interaction:g}-{n}-{log}", partial(_learn, interaction, n, i, log, config, run))
            for log in range(logs)
        ]
        rows.append(_summary(interaction, n, values, config))
        run.emit("message", _message(rows[-1]))
    for row in rows:
        got, optimal = max(row["behaviour"], *(max(x["values"]) for x in row["learners"].values())), row["optimal"]
        name = f"interaction {row['interaction']:g}, n = {row['doses']}: no policy is above the optimal one"
        run.check(name, expected=f"<= {optimal:.4f}", got=got, holds=got <= optimal + 1e-9)
    return {"rows": rows}


def _learn(interaction: float, n: int, cell: int, log: int, config: DoseConfig, run: Run) -> Result:
    """True values [updates][thresholds] of each learner from one log."""
    mdp, behaviour = dose_mdp(n, interaction), clinicians(n, interaction)
    data = collect(mdp, arrival_rewards(), behaviour, config.episodes, run.rng(0, cell, log), HORIZON)
    result: Result = {"transitions": len(data.states)}
    for learner, learner_config in LEARNERS.items():
        agent = OfflineAgent(
            spaces.MultiDiscrete([n, n]),
            severities() + np.array([0, LEVELS]),
            replace(
                learner_config,
                thresholds=config.thresholds,
                polyak=config.polyak,
                gamma=GAMMA,
                seed=run.derive_seed(1, cell, log),
            ),
        )
        result[learner] = []
        for updates in sorted(config.updates):
            run.stop_if_asked()
            agent.learn(data, updates - agent.updates)
            result[learner].append([_value(mdp, actions) for actions in agent.greedy()])
        run.metrics({"interaction": interaction, "doses": n, "log": log, "learner": learner, "values": result[learner]})
    return result


def _value(mdp: MDP, actions: np.ndarray) -> float:
    return expected_return(mdp, np.eye(mdp.R.shape[1])[actions])


def _summary(interaction: float, n: int, values: list[Result], config: DoseConfig) -> Result:
    """Each learner's true values [datasets] at the setting that its tuning logs choose."""
    mdp = dose_mdp(n, interaction)
    learners: Result = {}
    for learner in LEARNERS:
        by_log = np.array([log[learner] for log in values])  # [logs, updates, thresholds]
        tuning = by_log[config.datasets :].mean(axis=0)
        u, t = np.unravel_index(int(tuning.argmax()), tuning.shape)
        setting = {"updates": sorted(config.updates)[u], "threshold": config.thresholds[t]}
        at_edge = bool(u in (0, len(config.updates) - 1) or t in (0, len(config.thresholds) - 1))
        learners[learner] = setting | {"at_edge": at_edge, "values": by_log[: config.datasets, u, t].tolist()}
    return {
        "interaction": interaction,
        "doses": n,
        "transitions": float(np.mean([log["transitions"] for log in values[: config.datasets]])),
        "optimal": expected_return(mdp, greedy(optimal_q(mdp))),
        "behaviour": expected_return(mdp, clinicians(n, interaction)),
        "learners": learners,
    }


def _message(row: Result) -> str:
    means = ", ".join(f"{name} {np.mean(learner['values']):.3f}" for name, learner in row["learners"].items())
    return f"interaction {row['interaction']:g}, {row['doses']} doses: {means}; optimal {row['optimal']:.3f}"


def draw(folder: Path) -> None:
    """Write figures/doses.png from result.json: true values against n."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = json.loads((folder / "result.json").read_text())["rows"]
    interactions = list(dict.fromkeys(row["interaction"] for row in rows))
    figure, panels = plt.subplots(
        1, len(interactions), figsize=(5 * len(interactions), 3.8), layout="constrained", squeeze=False
    )
    for axes, interaction in zip(panels[0], interactions, strict=True):
        of_panel = [row for row in rows if row["interaction"] == interaction]
        doses = [row["doses"] for row in of_panel]
        for learner in LEARNERS:
            values = np.array([row["learners"][learner]["values"] for row in of_panel])[:, :, None]
            draw_band(axes, doses, student(values), learner, marker="o")
        axes.plot(doses, [row["optimal"] for row in of_panel], "k--", label="optimal")
        axes.plot(doses, [row["behaviour"] for row in of_panel], "k:", label="clinicians")
        axes.set(title=f"interaction {interaction:g}", xlabel="doses of each drug, n", ylabel="true value")
        axes.set_xticks(doses)
    panels[0][0].legend(fontsize=8)
    figure.savefig(folder / "figures" / "doses.png", dpi=110)
    plt.close(figure)


JOB = Job(
    name="rl.adrl_doses",
    summary="BCQ, BCQ with factored critics and AD-BCQ against the number of doses, with exact values",
    Config=DoseConfig,
    run=run,
    presets={
        "smoke": {"sizes": (3, 5), "datasets": 2, "tuning_datasets": 1, "episodes": 100, "updates": (30, 60)},
        "two-cores": {},
    },
    draw=draw,
)
