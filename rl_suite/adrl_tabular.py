"""Action decomposition on finite MDPs: its bias, its cost on ICU-Sepsis, the samples it saves."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rl_suite.factors import Blocks, check_blocks
from rl_suite.learners import samples_needed
from rl_suite.mdp import (
    expected_return,
    greedy,
    icu_sepsis,
    interacting_mdp,
    optimal_q,
    product_mdp,
    separable_mdp,
    uniform,
)
from rl_suite.projection import bias
from training.run import Job, JobConfig, Run

GOLDEN = {"random": 0.7801, "expert": 0.7818, "optimal": 0.8751}


class Config(JobConfig):
    """``levels``: |A_k| of each of two factors in the sample-size study; ``repeats``: MDPs for each."""

    levels: tuple[int, ...] = (2, 3, 4, 6, 8)
    states: int = 6
    repeats: int = 20
    epsilon: float = 0.01
    most: int = 2**17


def run(config: Config, run: Run) -> dict[str, Any]:
    families = run.step("families", lambda: _families(run))
    sepsis = run.step("sepsis", _sepsis)
    rows = [run.step(f"samples-{n}", partial(_samples, n, config, run)) for n in config.levels]
    fits = {
        f"{learner} over {axis}": _exponent(rows, learner, axis)
        for learner in ("joint", "projected")
        for axis in ("sum", "product")
    }
    run.check(
        "product MDPs have no interaction",
        expected="<= 1e-12",
        got=families["product"]["q"],
        holds=families["product"]["q"] <= 1e-12,
    )
    run.check(
        "a joint reward makes factors interact",
        expected="> 0.01",
        got=families["joint reward"]["q"],
        holds=families["joint reward"]["q"] > 0.01,
    )
    for name, expected in GOLDEN.items():
        run.check(f"ICU-Sepsis {name}", expected=expected, got=sepsis[name], holds=abs(sepsis[name] - expected) < 1e-4)
    worst, best = sepsis["all"]["decomposed"]
    run.check(
        "additive greedy, all actions, as ties fall", expected=0.835, got=[worst, best], holds=worst <= 0.835 <= best
    )
    got = sepsis["admissible"]["decomposed"][0]
    run.check("additive greedy, admissible actions", expected=0.872, got=got, holds=abs(got - 0.872) < 1e-3)
    return {"families": families, "sepsis": sepsis, "samples": rows, "exponents": fits}


def _families(run: Run) -> dict[str, Any]:
    made = {
        "product": product_mdp(run.rng(0), (3, 3), (4, 4)),
        "joint reward": product_mdp(run.rng(0), (3, 3), (4, 4), joint_reward=0.1),
        "separable": separable_mdp(run.rng(1), 6, (4, 4)),
        "interacting": interacting_mdp(run.rng(2), 6, (4, 4)),
    }
    found = {name: bias(mdp) for name, mdp in made.items()}
    for name, one in found.items():
        run.emit("message", f"{name}: {one}")
    return {name: asdict(one) for name, one in found.items()}


def _sepsis() -> dict[str, Any]:
    mdp, expert = icu_sepsis()
    q = optimal_q(mdp)
    policies = {"random": uniform(np.ones_like(q, bool)), "expert": expert, "optimal": greedy(q, mdp.admissible)}
    values: dict[str, Any] = {name: expected_return(mdp, policy) for name, policy in policies.items()}
    return values | {"all": asdict(bias(mdp)), "admissible": asdict(bias(mdp, mask=mdp.admissible))}


def _samples(n: int, config: Config, run: Run) -> dict[str, Any]:
    """Transitions to an ε-optimal policy on separable MDPs with two factors of ``n`` actions: geometric means."""
    blocks: dict[str, Blocks] = {"joint": check_blocks([(0, 1)], 2), "projected": check_blocks(None, 2)}
    counts: dict[str, list[int]] = {learner: [] for learner in blocks}
    for repeat in range(config.repeats):
        mdp = separable_mdp(run.rng(3, n, repeat), config.states, (n, n))
        optimal = expected_return(mdp, greedy(optimal_q(mdp)))
        for learner, parts in blocks.items():
            rng = run.rng(4, n, repeat)
            counts[learner].append(samples_needed(mdp, parts, optimal, config.epsilon, rng, config.most))
    row = {learner: math.exp(float(np.mean(np.log(found)))) for learner, found in counts.items()}
    row |= {"sum": 2 * n, "product": n * n, "capped": sum(c == config.most for found in counts.values() for c in found)}
    run.metrics(
        {"step": n} | row, f"{n}×{n} actions: joint {row['joint']:.0f}, projected {row['projected']:.0f} transitions"
    )
    return row


def _exponent(rows: list[dict[str, Any]], learner: str, axis: str) -> float:
    """The slope of log samples against log Σ|A_k| or log Π|A_k|."""
    return float(np.polyfit(np.log([row[axis] for row in rows]), np.log([row[learner] for row in rows]), 1)[0])


def draw(folder: Path) -> None:
    """Write figures/samples.png from result.json."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    result = json.loads((folder / "result.json").read_text())
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for learner in ("joint", "projected"):
        slope = result["exponents"][f"{learner} over sum"]
        rows = result["samples"]
        axes.loglog(
            [r["sum"] for r in rows], [r[learner] for r in rows], "o-", label=f"{learner}: (Σ|A_k|)^{slope:.2f}"
        )
    axes.set(xlabel="Σ|A_k|", ylabel="transitions to an ε-optimal policy")
    axes.legend()
    figure.savefig(folder / "figures" / "samples.png", dpi=150)
    plt.close(figure)


JOB = Job(
    name="rl.adrl_tabular",
    summary="Action decomposition on finite MDPs: bias, ICU-Sepsis, and samples to an ε-optimal policy",
    Config=Config,
    run=run,
    presets={"smoke": {"levels": (2, 4), "repeats": 5, "most": 2**14}, "paper": {}},
    draw=draw,
)
