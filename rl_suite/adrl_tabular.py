"""Action decomposition on finite MDPs: its bias, its cost on ICU-Sepsis, the samples it saves."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from pydantic import Field, PositiveInt, model_validator

from rl_suite.factors import check_blocks
from rl_suite.learners import samples_needed, steps_needed
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
from rl_suite.stats import Result
from training.run import Job, JobConfig, Run

# K factors of n actions each; (2, 8) and (4, 4) share Σ = 16, (2, 16) and (4, 4) Π = 256.
SHAPES = ((2, 2), (2, 4), (2, 8), (2, 16), (3, 2), (3, 3), (3, 4), (3, 6), (4, 2), (4, 3), (4, 4))
RULES = {
    "accuracy": "uniform actions, until Q* is accurate",
    "uniform": "uniform actions, until ε-optimal",
    "rmax": "RMax, until ε-optimal",
    "dyna": "Dyna, until ε-optimal",
}
LEARNERS = ("joint", "projected")
GOLDEN = {"random": 0.7801, "expert": 0.7818, "optimal": 0.8751}


class TabularConfig(JobConfig):
    """The random MDPs, and what counts as learned."""

    shapes: tuple[tuple[PositiveInt, PositiveInt], ...] = Field(
        SHAPES,
        min_length=1,
        description="(K, |A_k|): factors and the actions of each, of the sample-size study.",
    )
    weight: float = Field(
        0.25,
        gt=0,
        description="Weight of each factor's effect, equal for every K, so that shapes differ in Σ|A_k| and Π|A_k| "
        "only.",
    )
    states: int = Field(6, ge=2, description="States of an MDP.")
    repeats: int = Field(12, ge=1, description="Random MDPs for each shape.")
    epsilon: float = Field(0.1, gt=0, description="The loss of expected return that is allowed.")
    accuracy: float = Field(
        0.4,
        gt=0,
        description="The root mean square error of Q that is allowed, as a share of the standard deviation of V* over "
        "states, which sets the noise of a transition.",
    )
    visits: int = Field(
        8,
        ge=1,
        description="RMax's m per joint action, or B times as many per action of each of B blocks, whose errors add "
        "up.",
    )
    most: int = Field(2**16, ge=1, description="Transitions after which a learner is stopped.")
    resamples: int = Field(2000, ge=1, description="Bootstrap samples of the intervals of exponents.")

    @model_validator(mode="after")
    def _can_be_fitted(self) -> TabularConfig:
        check_shapes([k * n for k, n in self.shapes], [n**k for k, n in self.shapes])
        factors = max(k for k, _ in self.shapes)
        if self.weight * factors > 1:
            raise ValueError(f"weight {self.weight:g} times {factors} factors is above 1: at most {1 / factors:.3g}")
        return self


def run(config: TabularConfig, run: Run) -> Result:
    seconds = 0.06 * config.repeats * sum(n**k for k, n in config.shapes)  # measured on two busy cores
    run.emit("message", f"about {math.ceil(seconds / 60)} minutes")
    families = run.step("families", lambda: _families(run))
    sepsis = run.step("sepsis", _sepsis)
    run.planned_steps = 2 + len(config.shapes) * config.repeats
    rows = []
    for k, n in config.shapes:
        counts = [
            run.step(f"samples-{k}x{n}-{repeat}", partial(_samples, k, n, repeat, config, run))
            for repeat in range(config.repeats)
        ]
        rows.append(_row(k, n, counts, config, run))
    fits = {
        f"{rule}_{learner}": exponents(rows, f"{rule}_{learner}", config.resamples, run.rng(5))
        for rule in RULES
        for learner in LEARNERS
    }
    for name, fit in fits.items():
        joint_fit = f"{_power('Σ|A_k|', fit['sum'])} · {_power('Π|A_k|', fit['product'])}"
        single_fits = f"{_power('Σ|A_k|', fit['sum_alone'])}, {_power('Π|A_k|', fit['product_alone'])}"
        run.emit("message", f"{name}: transitions ∝ {joint_fit}; over either alone {single_fits}")
    run.check(
        "product MDPs have no interaction",
        expected="<= 1e-12",
        got=families["product"]["q"],
        holds=families["product"]["q"] <= 1e-12,
    )
    run.check(
        "a joint reward makes factors interact",
        expected="> 0.01",
        got=families["joint_reward"]["q"],
        holds=families["joint_reward"]["q"] > 0.01,
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


def _families(run: Run) -> Result:
    mdps = {
        "product": product_mdp(run.rng(0), (3, 3), (4, 4)),
        "joint_reward": product_mdp(run.rng(0), (3, 3), (4, 4), joint_reward=0.1),
        "separable": separable_mdp(run.rng(1), 6, (4, 4)),
        "interacting": interacting_mdp(run.rng(2), 6, (4, 4)),
    }
    biases = {name: bias(mdp) for name, mdp in mdps.items()}
    for name, family_bias in biases.items():
        run.emit("message", f"{name}: {family_bias}")
    return {name: asdict(family_bias) for name, family_bias in biases.items()}


def _sepsis() -> Result:
    mdp, expert = icu_sepsis()
    q = optimal_q(mdp)
    policies = {"random": uniform(np.ones_like(q, bool)), "expert": expert, "optimal": greedy(q, mdp.admissible)}
    values: Result = {name: expected_return(mdp, policy) for name, policy in policies.items()}
    return values | {"all": asdict(bias(mdp)), "admissible": asdict(bias(mdp, mask=mdp.admissible))}


def _samples(k: int, n: int, repeat: int, config: TabularConfig, run: Run) -> dict[str, int]:
    """Transitions that each rule and learner needs on one separable MDP with ``k`` factors of ``n`` actions."""
    mdp = separable_mdp(run.rng(3, k, n, repeat), config.states, (n,) * k, weight=config.weight)
    best = optimal_q(mdp)
    worth = expected_return(mdp, greedy(best)) - config.epsilon
    tolerance = config.accuracy * best.max(axis=1).std()

    def good(q: np.ndarray) -> bool:
        return expected_return(mdp, greedy(q)) >= worth

    def accurate(q: np.ndarray) -> bool:
        return bool(np.sqrt(np.mean((q - best) ** 2)) <= tolerance)

    counts: dict[str, int] = {}
    for learner, parts in (("joint", check_blocks([range(k)], k)), ("projected", check_blocks(None, k))):
        rng, visits = run.rng(4, k, n, repeat), config.visits * len(parts)
        counts |= {
            f"accuracy_{learner}": samples_needed(mdp, parts, accurate, rng, config.most),
            f"uniform_{learner}": samples_needed(mdp, parts, good, rng, config.most),
            f"rmax_{learner}": steps_needed(mdp, parts, good, rng, config.most, visits),
            f"dyna_{learner}": steps_needed(mdp, parts, good, rng, config.most),
        }
    run.metrics({"step": repeat, "factors": k, "levels": n} | counts)
    return counts


def _row(k: int, n: int, repeat_counts: list[dict[str, int]], config: TabularConfig, run: Run) -> Result:
    counts = {name: [repeat[name] for repeat in repeat_counts] for name in repeat_counts[0]}
    means = {name: math.exp(float(np.mean(np.log(name_counts)))) for name, name_counts in counts.items()}
    text = "; ".join(f"{rule} {means[f'{rule}_joint']:.0f} : {means[f'{rule}_projected']:.0f}" for rule in RULES)
    run.emit("message", f"{k} factors of {n} (Σ {k * n}, Π {n**k}), joint : projected: {text}")
    capped = sum(count == config.most for name_counts in counts.values() for count in name_counts)
    return {"factors": k, "levels": n, "sum": k * n, "product": n**k, "counts": counts, "capped": capped}


def check_shapes(sums: Sequence[int], products: Sequence[int]) -> None:
    """Raises ValueError if these Σ|A_k| and Π|A_k| of shapes do not separate Σ from Π."""
    if np.linalg.matrix_rank(np.stack([np.ones(len(sums)), np.log(sums), np.log(products)])) < 3:
        raise ValueError("these shapes do not tell Σ|A_k| from Π|A_k|: give at least three, with another K among them")


def exponents(rows: list[Result], name: str, resamples: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """α and β of transitions = c (Σ|A_k|)^α (Π|A_k|)^β, and the slope over each of Σ and Π separately.

    [estimate, lower, upper], 95 % by bootstrap over each shape's random MDPs; least squares on logarithms. Raises
    ValueError if the shapes do not separate Σ from Π.
    """
    sums, products = ([row[axis] for row in rows] for axis in ("sum", "product"))
    check_shapes(sums, products)
    intercept, s, p = np.ones(len(rows)), np.log(sums), np.log(products)
    y = np.log(np.array([row["counts"][name] for row in rows], float))  # [shapes, repeats]
    draws = rng.integers(y.shape[1], size=(resamples, *y.shape))
    means = np.take_along_axis(y[None], draws, axis=2).mean(axis=2)  # [resamples, shapes]
    fits = {
        "sum": ([intercept, s, p], 1),
        "product": ([intercept, s, p], 2),
        "sum_alone": ([intercept, s], 1),
        "product_alone": ([intercept, p], 1),
    }
    estimates = {}
    for axis, (columns, i) in fits.items():
        coefficients = np.linalg.pinv(np.stack(columns, axis=1))[i]
        estimates[axis] = [
            float(y.mean(axis=1) @ coefficients),
            *(float(v) for v in np.quantile(means @ coefficients, (0.025, 0.975))),
        ]
    return estimates


def _power(base: str, slope: list[float]) -> str:
    return f"({base})^{slope[0]:.2f} [{slope[1]:.2f}, {slope[2]:.2f}]"


def draw(folder: Path) -> None:
    """Write figures/samples.png from result.json."""
    draw_samples(json.loads((folder / "result.json").read_text()), folder / "figures" / "samples.png")


def draw_samples(result: Result, path: Path) -> None:
    """Transitions needed by shape: ``samples`` and ``exponents`` of a result or a results file.

    A shape of which a learner was stopped at the limit has a hollow point: its mean is too low.
    """
    from matplotlib.figure import Figure

    most = result.get("run", result)["config"]["most"]
    figure = Figure(figsize=(15, 3.8), layout="constrained")
    panels = figure.subplots(1, 4, sharey=True)
    for axes, (rule, title) in zip(panels, RULES.items(), strict=True):
        for learner, axis, colour in (("joint", "product", "C3"), ("projected", "sum", "C0")):
            name = f"{rule}_{learner}"
            x = [row[axis] for row in result["samples"]]
            logs = [np.log(row["counts"][name]) for row in result["samples"]]
            means, errors = [np.mean(y) for y in logs], [1.96 * np.std(y, ddof=1) / len(y) ** 0.5 for y in logs]
            y = np.exp(means)
            bars = [y - np.exp(np.subtract(means, errors)), np.exp(np.add(means, errors)) - y]
            fit = result["exponents"][name]
            label = (
                f"{learner}: Σ^{fit['sum'][0]:.2f} Π^{fit['product'][0]:.2f}, over {'Π' if axis == 'product' else 'Σ'}"
            )
            axes.errorbar(x, y, bars, fmt="o", color=colour, label=label, markersize=4)
            stopped = [i for i, row in enumerate(result["samples"]) if max(row["counts"][name]) >= most]
            axes.plot(
                np.array(x)[stopped], y[stopped], "o", color=colour, markerfacecolor="white", markersize=4, zorder=3
            )
        axes.set(title=title, xlabel="Σ|A_k| (blue), Π|A_k| (red)", xscale="log", yscale="log")
        axes.legend(fontsize=8, loc="lower right")
    panels[0].set_ylabel(f"transitions (hollow: some stopped at {most:,})")
    figure.savefig(path, dpi=110)


JOB = Job(
    name="rl.adrl_tabular",
    summary="Action decomposition on finite MDPs: bias, ICU-Sepsis, and samples to an ε-optimal policy",
    Config=TabularConfig,
    run=run,
    presets={"smoke": {"shapes": ((2, 2), (2, 4), (3, 3)), "repeats": 4}, "two-cores": {}},
    draw=draw,
)
