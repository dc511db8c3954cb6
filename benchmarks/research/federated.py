"""The claims of FADAS (arXiv:2407.18365), from the results of ``federated.fadas`` and ``federated.reviews``, and those
of federated value functions, from ``federated.values``. Differences are paired by seed, but those in time of older
results, which have no values by seed: theirs are Welch's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.research import claims as research
from benchmarks.research.claims import Claim, against, cell_text, estimate, number, positive, welch
from benchmarks.tables import table
from iro_server import JsonObject
from training.federated.comparison_summary import LAST
from training.federated.experiment import METHODS

ADAPTIVE = "FADAS, delay-adaptive"
IN_TIME = "in time"
BY_SEED = "at_horizon_per_seed"
LAST_EVALUATIONS = f"last {LAST} evaluations"
Pairs = tuple[tuple[str, str], ...]
FADAS_PAIRS: Pairs = (
    ("FADAS", "FedBuff"),
    ("FADAS", "FedAsync"),
    ("FADAS", "CA2FL"),
    (ADAPTIVE, "FADAS"),
    (ADAPTIVE, "FedBuff"),
)
REVIEWS_PAIRS: Pairs = (
    ("FADAS", "FedBuff"),
    ("FADAS", "FedAvg"),
    ("FADAS", "FedAvg, all places"),
    (ADAPTIVE, "FADAS"),
    (ADAPTIVE, "FedBuff"),
)


def fadas(result: JsonObject) -> JsonObject:
    return _comparison(result, FADAS_PAIRS, ("FedAMS, all places", "FedAvg, all places"))


def reviews(result: JsonObject) -> JsonObject:
    return _comparison(result, REVIEWS_PAIRS, ("FedAvg", "FedAvg, all places"))


def _comparison(result: JsonObject, pairs: Pairs, synchronous: tuple[str, ...]) -> JsonObject:
    """Claims, by delays and method the mean accuracy of the last evaluations ("end") and the accuracy when the first
    asynchronous run ends, the steps that were tried, and the clients that answered.

    ``pairs``: (better, worse) by the last evaluations. ``synchronous``: rules that ADAPTIVE exceeds when that run ends.
    A claim needs several seeds, and the methods that it compares.
    """
    rows: list[Claim] = []
    accuracy: JsonObject = {}
    for delays, by_delays in result["results"].items():
        methods = by_delays["methods"]
        accuracy[delays] = {
            name: {
                "step": row["step"],
                "end": row["end"] | {"seeds": len(row["per_seed"])},
                "at_horizon": row["at_horizon"] | {"seeds": len(row["per_seed"])},
                "rounds_at_horizon": row["rounds_at_horizon"],
            }
            for name, row in methods.items()
        }
        if all(len(row["per_seed"]) > 1 for row in methods.values()):
            rows += [*_paired(delays, methods, pairs), *_in_time(delays, methods, synchronous)]
    participation = {delays: by_delays["participation"] for delays, by_delays in result["results"].items()}
    return {
        "claims": rows,
        "accuracy": accuracy,
        "tuning": _tuning(result["steps"]),
        "participation": participation,
    }


def _tuning(choices: JsonObject) -> list[JsonObject]:
    """The steps that were tried, with the accuracy on development examples."""
    return [
        {"delays": delays, "method": method, "step": float(step), "accuracy": value}
        for delays, methods in choices.items()
        for method, choice in methods.items()
        for step, value in choice.get("tried", {}).items()
    ]


def _paired(delays: str, methods: Mapping[str, JsonObject], pairs: Pairs) -> list[Claim]:
    rows = []
    for better, worse in (pair for pair in pairs if methods.keys() >= set(pair)):
        rows.append(_above(f"{delays} delays: {better} above {worse}", methods, (better, worse), "per_seed"))
    return rows


def _above(paper: str, methods: Mapping[str, JsonObject], pair: tuple[str, str], values: str) -> Claim:
    """That the first of ``pair`` is above the second, by their ``values`` of the same seeds."""
    gap = estimate(np.subtract(*(methods[name][values] for name in pair)))
    return positive(paper, [gap], against(gap, 0))


def _in_time(delays: str, methods: Mapping[str, JsonObject], synchronous: tuple[str, ...]) -> list[Claim]:
    """Not tested where a synchronous run has no round at that time: its model is untrained."""
    rows: list[Claim] = []
    for method in (name for name in synchronous if methods.keys() >= {name, ADAPTIVE}):
        cells = [methods[name]["at_horizon"] | {"seeds": len(methods[name]["per_seed"])} for name in (ADAPTIVE, method)]
        rounds = methods[method]["rounds_at_horizon"]
        paper = f"{delays} delays, {IN_TIME}: {ADAPTIVE} above {method}, which has {span(rounds)} rounds"
        if min(rounds) > 0 and BY_SEED in methods[method]:
            rows.append(_above(paper, methods, (ADAPTIVE, method), BY_SEED))
        elif min(rounds) > 0:
            rows.append(positive(paper, cells, welch(*cells)))
        else:
            because = f"{method} has no round in {rounds.count(0)} of {len(rounds)} seeds"
            rows.append({"paper": paper, "ours": cells, "verdict": f"not shown at this scale, because {because}"})
    return rows


def span(values: Sequence[float]) -> str:
    """The smallest and the largest value."""
    low, high = (number(bound) for bound in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def claims(content: JsonObject) -> str:
    """The table of claims. Without ``rounds_at_horizon`` those in time are left out: accuracies were interpolated.

    A tested claim of two means is of an older result, and names its test.
    """
    cells = [cell for methods in content["accuracy"].values() for cell in methods.values()]
    evaluated = all("rounds_at_horizon" in cell for cell in cells)
    rows = [
        claim | {"paper": f"{claim['paper']} (Welch's t)"} if "test" in claim and len(claim["ours"]) == 2 else claim
        for claim in content["claims"]
        if evaluated or IN_TIME not in claim["paper"]
    ]
    return research.claims(content | {"claims": rows})


def accuracy(content: JsonObject) -> str:
    """By method: step, mean accuracy of the last evaluations and accuracy in time, for each delay model."""
    delays = list(content["accuracy"])
    head = ["", *(f"{name} delays, {part}" for name in delays for part in ("step", LAST_EVALUATIONS, IN_TIME))]
    rows = []
    for method in content["accuracy"][delays[0]]:
        cells = [content["accuracy"][name][method] for name in delays]
        texts = (text for c in cells for text in (f"{c['step']:.2g}", cell_text(c["end"]), in_time_text(method, c)))
        rows.append([method, *texts])
    return table(head, rows)


def in_time_text(method: str, cell: JsonObject) -> str:
    """With a synchronous method's finished rounds; where these were not recorded, it was not evaluated in time."""
    if METHODS[method].waits == "no":
        return cell_text(cell["at_horizon"])
    if "rounds_at_horizon" not in cell:
        return "not evaluated"
    return f"{cell_text(cell['at_horizon'])} after {span(cell['rounds_at_horizon'])} rounds"


def participation(content: JsonObject) -> str:
    """Of the runs that select steps, and of the others: when they end, who answered, and the oldest update."""
    parts = [(delays, *item) for delays, groups in content["participation"].items() for item in groups.items()]
    speeds = list(dict.fromkeys(speed for _, _, part in parts for speed in part["answered"]))
    rows = [
        [
            f"{delays} delays, {name}",
            span(part["ends"]),
            *(" of ".join(map(str, part["answered"].get(speed, ()))) for speed in speeds),
            str(part["oldest"]),
        ]
        for delays, name, part in parts
    ]
    head = ["", "virtual time at the end", *(f"{speed} clients that answered" for speed in speeds), "oldest update"]
    return table(head, rows)


def tried(content: JsonObject) -> str:
    """Accuracy on development examples by method and step, for each delay model."""
    rows = [[row["method"], row["delays"], f"{row['step']:.3g}", f"{row['accuracy']:.3f}"] for row in content["tuning"]]
    return table(["", "delays", "step", "accuracy"], rows)


VALUE_PAIRS = (("federated", "base"), ("federated", "pooled"), ("federated", "best-of-16"))


def values(result: JsonObject) -> JsonObject:
    """Claims, held-out rewards and correlations within prompts."""
    seeds = result["per_seed"]
    rewards = {name: [float(np.mean(seed["rewards"][name])) for seed in seeds] for name in seeds[0]["rewards"]}
    rows = []
    for better, worse in VALUE_PAIRS:
        gap = estimate(np.subtract(rewards[better], rewards[worse]))
        rows.append(positive(f"held-out reward: {better} above {worse}", [gap], against(gap, 0)))
    correlation = {name: estimate([seed["correlation"][name] for seed in seeds]) for name in seeds[0]["correlation"]}
    gap = estimate([seed["correlation"]["federated"] - seed["correlation"]["alone"] for seed in seeds])
    rows.append(
        positive("correlation with the reward: federated above one client's data alone", [gap], against(gap, 0))
    )
    return {
        "claims": rows,
        "rewards": {name: estimate(row) for name, row in rewards.items()},
        "correlation": correlation,
        "settings": [{name: seed[name] for name in ("seed", "chosen", "at_edge")} for seed in seeds],
    }


def value_rewards(content: JsonObject) -> str:
    """Held-out reward of each method, and the correlation of its value function with the reward within prompts."""
    correlation = content["correlation"]
    rows = [
        [name, cell_text(cell), cell_text(correlation[name]) if name in correlation else ""]
        for name, cell in content["rewards"].items()
    ]
    alone = ["one client's data alone (no decoding)", "", cell_text(correlation["alone"])]
    return table(["method", "held-out reward", "correlation within prompts"], [*rows, alone])
