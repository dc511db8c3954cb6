"""The quality benchmark's saved finals, summed up: means, paired gains with 95 % intervals, the figure."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from benchmarks.tables import interval_text
from iro_server import JsonObject
from training.intervals import band

Final = JsonObject
PICKS: dict[str, Callable[[list[Final]], Final]] = {
    "reward": lambda finals: max(finals, key=lambda final: final["reward"]),
    "value": lambda finals: finals[0],
}
AIMS = {"reward": 1.5, "value": 0.5}


def load(out: Path, seeds: int) -> list[JsonObject]:
    return [json.loads((out / f"seed-{seed}" / "eval.json").read_text()) for seed in range(seeds)]


def summarise(out: Path, seeds: int) -> JsonObject:
    """Everything that is printed and drawn. Intervals: ``interval_of_seeds``."""
    runs = load(out, seeds)
    names = list(runs[0]["methods"])
    chosen = {
        (n, p): [[pick(f) for f in run["methods"][n]] for run in runs] for n in names for p, pick in PICKS.items()
    }
    reward = {key: matrix(finals, "reward") for key, finals in chosen.items()}
    base = np.array([[np.mean([f["reward"] for f in fs]) for fs in run["methods"]["best-of-16"]] for run in runs])
    rows = [{"method": "base, one sample", "pick": "none", "reward": interval_of_seeds(base)}]
    for (name, pick), finals in chosen.items():
        rows.append({"method": name, "pick": pick, "reward": interval_of_seeds(reward[name, pick])} | quality(finals))
    best_of_n = reward["best-of-16", "reward"]
    iterations = [name for name in names if name.startswith("IRO-")]
    gains = [
        {"method": name, "pick": pick, "over": "best-of-16, reward pick"}
        | interval_of_seeds(reward[name, pick] - best_of_n)
        | {"by_seed": (reward[name, pick] - best_of_n).mean(axis=1).tolist()}
        for name in names
        for pick in PICKS
        if (name, pick) != ("best-of-16", "reward")
    ]
    steps = [
        {"method": later, "pick": pick, "over": earlier}
        | interval_of_seeds(reward[later, pick] - reward[earlier, pick])
        for earlier, later in pairwise(iterations)
        for pick in PICKS
    ]
    controls = [
        {"method": iterations[-1], "pick": pick, "over": control}
        | interval_of_seeds(reward[iterations[-1], pick] - reward[control, pick])
        for control in names
        if control not in iterations and control != "best-of-16"
        for pick in PICKS
    ]
    judges = judge_gains(chosen, iterations)
    return {
        "seeds": seeds,
        "prompts": int(base.size),
        "methods": rows,
        "gains": gains,
        "steps": steps,
        "controls": controls,
        "betas": [run["history"][-1]["betas"] for run in runs],
        "judges": judges,
        "diversity": {
            name: float(
                np.mean([distinct([f["tokens"] for f in fs], 2) for run in runs for fs in run["methods"][name]])
            )
            for name in names
        },
        "correlation": correlations(runs),
        "checks": checks(gains, [*steps, *controls], judges),
    }


def matrix(finals: Sequence[Sequence[Final]], key: str) -> np.ndarray:
    """[seeds, prompts] of one number of each pick."""
    return np.array([[final[key] for final in run] for run in finals])


def interval(values_SP: np.ndarray, draws: int = 4000) -> dict[str, float]:
    """Mean of [seeds, prompts] and its 95 % interval: percentile bootstrap over seeds, then prompts within a seed.

    Too narrow for several seeds that differ (``interval_of_seeds``); of one seed it is over prompts alone.
    """
    rng = np.random.default_rng(0)
    seeds, prompts = values_SP.shape
    picked_S = rng.integers(seeds, size=(draws, seeds))
    picked_P = rng.integers(prompts, size=(draws, seeds, prompts))
    means = values_SP[picked_S[:, :, None], picked_P].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values_SP.mean()), "low": float(low), "high": float(high)}


def interval_of_seeds(values_SP: np.ndarray, draws: int = 4000) -> dict[str, float]:
    """Mean of [seeds, prompts] and its 95 % interval: the bootstrap's, or Student's over the seeds' means where that
    reaches further. Of five seeds it covers as much as it states however much seeds differ."""
    return wider(interval(values_SP, draws), values_SP.mean(axis=1))


def wider(bootstrapped: dict[str, float], means_S: ArrayLike) -> dict[str, float]:
    """A bootstrap interval, and at each end the Student interval over seeds' means where that reaches further."""
    student = band(means_S)
    return bootstrapped | {
        "low": min(bootstrapped["low"], student["low"]),
        "high": max(bootstrapped["high"], student["high"]),
    }


def widened(content: JsonObject) -> JsonObject:
    """Differences and checks of a results file whose intervals were bootstrapped alone, from the gains ``by_seed``.

    Rewards and judges keep their intervals: the file does not have them by seed.
    """
    gains = [gain | wider(gain, gain["by_seed"]) for gain in content["gains"]]
    by_seed = {(gain["method"], gain["pick"]): np.array(gain["by_seed"]) for gain in gains}
    steps, controls = (
        [row | wider(row, by_seed[row["method"], row["pick"]] - by_seed[row["over"], row["pick"]]) for row in rows]
        for rows in (content["steps"], content["controls"])
    )
    checked = checks(gains, [*steps, *controls], content["judges"])
    return {"gains": gains, "steps": steps, "controls": controls, "checks": checked}


def quality(finals: Sequence[Sequence[Final]]) -> JsonObject:
    """What would show reward hacking: other judges, log-probability under the frozen model, repeated word pairs."""
    logprob = matrix(finals, "logprob")
    return {
        "vader": interval_of_seeds(matrix(finals, "vader")),
        "minilm": interval_of_seeds(matrix(finals, "minilm")),
        "logprob": interval_of_seeds(logprob),
        "perplexity": float(np.exp(-logprob.mean())),
        "distinct_2": float(np.mean([distinct([f["tokens"]], 2) for run in finals for f in run])),
    }


def judge_gains(chosen: dict[tuple[str, str], list[list[Final]]], iterations: Sequence[str]) -> list[JsonObject]:
    """Each iteration's gain over best-of-16 by the judges the job never saw."""
    return [
        {"method": name, "pick": pick, "judge": judge}
        | interval_of_seeds(matrix(chosen[name, pick], judge) - matrix(chosen["best-of-16", "reward"], judge))
        for name in iterations
        for pick in PICKS
        for judge in ("vader", "minilm")
    ]


def distinct(rows: Sequence[Sequence[int]], n: int) -> float:
    """Distinct n-grams of tokens as a share of all."""
    grams = [tuple(row[i : i + n]) for row in rows for i in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def correlations(runs: Sequence[JsonObject]) -> dict[str, list[list[float | None]]]:
    """Within-prompt correlation with the final reward by token, and the share of the newest value function's
    within-prompt variance by token, mean over seeds: a row an iteration.

    None where no seed has one: early in guided rollouts all finals of a prompt may still share their tokens.
    """
    by_name: dict[str, list[list[float | None]]] = {}
    for name in ("correlation", "stack_correlation", "variance_share"):
        by_iteration = zip(*[[row["by_position"][name] for row in run["history"]] for run in runs], strict=True)
        by_name[name] = [
            np.ma.masked_invalid(np.array(seeds, dtype=float)).mean(axis=0).tolist() for seeds in by_iteration
        ]
    return by_name


def checks(gains: Sequence[JsonObject], steps: Sequence[JsonObject], judges: Sequence[JsonObject]) -> list[JsonObject]:
    """The best iteration's gain over best-of-16 beside its aim; each iteration over the last; the other judges."""
    check_rows = []
    for pick, aim in AIMS.items():
        best = max((g for g in gains if g["pick"] == pick and g["method"].startswith("IRO-")), key=lambda g: g["mean"])
        name = f"{best['method']}, {pick} pick, less best-of-16 picked by reward"
        check_rows.append(
            {"name": name, "expected": f">= {aim:+.1f}", "got": interval_text(best, "+"), "holds": best["mean"] >= aim}
        )
        rises = [(f"{s['method']} less {s['over']}, {pick} pick", s) for s in steps if s["pick"] == pick]
        others = [(f"{j['method']}, {pick} pick, less best-of-16 by {j['judge']}", j) for j in judges]
        others = [(n, j) for n, j in others if (j["method"], j["pick"]) == (best["method"], pick)]
        for name, row in rises + others:
            got, holds = interval_text(row, "+"), row["low"] > 0
            check_rows.append({"name": name, "expected": "95 % interval above 0", "got": got, "holds": holds})
    return check_rows


def print_table(summary: JsonObject) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    title = f"Held-out reward, {summary['prompts']} prompts over {summary['seeds']} seeds, 16 x 48 base tokens each"
    table = Table("method", "pick", "reward", "VADER", "MiniLM", "log p/token", "distinct-2", title=title)
    for row in summary["methods"]:
        cells = [interval_text(row[key]) if key in row else "" for key in ("reward", "vader", "minilm", "logprob")]
        table.add_row(row["method"], row["pick"], *cells, f"{row['distinct_2']:.3f}" if "distinct_2" in row else "")
    console.print(table)
    for row in [*summary["gains"], *summary["steps"], *summary["controls"], *summary["judges"]]:
        over = row.get("over") or f"best-of-16 by {row['judge']}"
        console.print(f"{row['method']}, {row['pick']} pick, less {over}: {interval_text(row, '+')}", highlight=False)
    for check in summary["checks"]:
        mark = "holds" if check["holds"] else "falls short"
        console.print(f"{check['name']}: {check['got']}, aim {check['expected']}: {mark}", highlight=False)


def draw(summary: JsonObject, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (reward_axes, correlation_axes) = plt.subplots(1, 2, figsize=(11, 4.2))
    names = list(dict.fromkeys(row["method"] for row in summary["methods"]))
    for pick, colour, shift in (("none", "grey", 0), ("reward", "C0", -0.12), ("value", "C1", 0.12)):
        rows = [row for row in summary["methods"] if row["pick"] == pick]
        positions = [names.index(row["method"]) + shift for row in rows]
        means = [row["reward"]["mean"] for row in rows]
        errors = [[row["reward"][side] for row in rows] for side in ("low", "high")]
        spread = [np.subtract(means, errors[0]), np.subtract(errors[1], means)]
        label = {"none": None, "reward": "picked by reward", "value": "picked by value"}[pick]
        reward_axes.errorbar(positions, means, yerr=spread, fmt="o", color=colour, capsize=3, label=label)
    reward_axes.set_xticks(range(len(names)), names, rotation=20, ha="right")
    reward_axes.set_ylabel("held-out reward (logit)")
    reward_axes.set_title("equal base tokens, 95 % intervals")
    reward_axes.legend()
    for t, curve in enumerate(summary["correlation"]["stack_correlation"], 1):
        finite_values = {
            token: value for token, value in enumerate(curve, 1) if value is not None and np.isfinite(value)
        }
        correlation_axes.plot(
            list(finite_values),
            list(finite_values.values()),
            label=f"sum of V_1..V_{t} on the rollouts of iteration {t}",
        )
    correlation_axes.set_xlabel("token of the response")
    correlation_axes.set_ylabel("within-prompt correlation\nwith the final reward")
    correlation_axes.set_title("what the value functions know, and when (means over seeds)")
    correlation_axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=130)
