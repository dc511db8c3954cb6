"""What `federated.fadas` states about itself: that its parts agree, and what its results say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from training.federated.clients import LocalSGD
from training.federated.delays import LARGE, Trace, official
from training.federated.experiment import Task, examples, local_sgd, one_thread
from training.federated.fashion import MODELS
from training.federated.rules import Adaptive, Update
from training.federated.simulator import Settings, Simulator
from training.intervals import band
from training.run import rng_of

Check = dict[str, Any]
SEEN = {"FedBuff": 0.71, "FADAS": 0.79, "FADAS, delay-adaptive": 0.81}  # elsewhere: 300 rounds, two seeds
ENOUGH = 1000  # client updates
RULE = Adaptive(lr=1e-3)


def agreements(task: Task) -> list[Check]:
    """On the real clients: batched against one by one, in step against synchronous, and one seed twice."""
    with one_thread():
        clients, params = local_sgd(task, examples(task.data, task.development)["train"], 0)
        return [_batched(task, clients, params), _in_step(task, clients, params), _repeated(task, clients, params)]


def _batched(task: Task, clients: LocalSGD, params: Tensor) -> Check:
    who = list(range(min(5, task.clients)))
    together = clients(params, who, who)
    alone = clients.one_by_one(params, who, who, MODELS[task.model](task.hidden))
    error = max(float((one - other).abs().max()) for (one, _), (other, _) in zip(together, alone, strict=True))
    name = "clients trained in one batch learn what each learns alone: largest difference in Δ"
    return {"name": name, "expected": "<= 1e-5", "got": error, "holds": error <= 1e-5}


def _in_step(task: Task, train: LocalSGD, params: Tensor, rounds: int = 3) -> Check:
    cohorts = []

    def recorded(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        cohorts.append((clients, seeds))
        return train(params, clients, seeds)

    size = min(task.buffer_size, task.clients)
    how = Settings(clients=task.clients, concurrency=size, buffer_size=size)
    ours = Simulator(how, RULE, recorded, Trace([[1.0]] * task.clients), params)
    ours.run(rounds)
    state, plain = RULE.init(params), params
    for who, seeds in cohorts:
        trained = zip(who, train(plain, who, seeds), strict=True)
        updates = [Update(client, delta, plain, examples=count) for client, (delta, count) in trained]
        state, plain = RULE.step(state, plain, updates)
    error = float((plain - ours.params).abs().max())
    name = "M equally fast clients at work are synchronous FedAMSGrad: largest difference"
    return {"name": name, "expected": 0, "got": error, "holds": error == 0 and len(cohorts) == rounds}


def _repeated(task: Task, clients: LocalSGD, params: Tensor, rounds: int = 5) -> Check:
    """The second time stopped after three of the rounds, and gone on with from a snapshot."""
    how = Settings(clients=task.clients, concurrency=task.concurrency, buffer_size=task.buffer_size, together="all")
    delays = official(task.clients, LARGE, rng_of(0))
    whole, stopped, resumed = (Simulator(how, RULE, clients, delays, params) for _ in range(3))
    events = whole.run(rounds)
    before = stopped.run(3)
    resumed.restore(stopped.snapshot())
    same = before + resumed.run(rounds) == events
    error = float((whole.params - resumed.params).abs().max())
    name = "one seed twice, stopped and gone on with the second time: same events, largest difference in parameters"
    return {"name": name, "expected": [True, 0], "got": [same, error], "holds": same and error == 0}


def claims(found: Mapping[str, Mapping[str, Any]], updates: int) -> list[Check]:
    """That the two delay-adaptive forms differ and how, and after enough ``updates`` what was seen elsewhere."""
    checks: list[Check] = []
    for delays, result in found.items():
        methods = result["methods"]
        if "FADAS" in methods:
            lower = methods["FADAS"]["rounds with 1/τ_max below the step"]
            name = f"{delays} delays: rounds in which min(η, 1/τ_max) is below η (none: it is FADAS)"
            checks.append({"name": name, "expected": 0, "got": lower, "holds": lower == 0})
        if updates >= ENOUGH:
            checks += _as_seen(delays, methods)
    return checks


def _as_seen(delays: str, methods: Mapping[str, Any]) -> list[Check]:
    checks: list[Check] = []
    for method, seen in SEEN.items():
        if method in methods:
            got, least = [methods[method]["end"][part] for part in ("mean", "low", "high")], seen - 0.03
            name = f"{delays} delays: {method}, accuracy at the end ({seen} was seen elsewhere)"
            checks.append({"name": name, "expected": f">= {least:.2f}", "got": got, "holds": got[0] >= least})
    if "FedBuff" in methods and "FADAS" in methods:
        gain = band(np.subtract(methods["FADAS"]["per seed"], methods["FedBuff"]["per seed"]))
        got = [gain[part] for part in ("mean", "low", "high")]
        name = f"{delays} delays: FADAS less FedBuff, paired by seed"
        checks.append({"name": name, "expected": "> 0", "got": got, "holds": got[0] > 0})
    return checks


def golden(found: Mapping[str, Mapping[str, Any]], expected: Mapping[str, float], within: float = 0.02) -> list[Check]:
    """Accuracies at the end that were seen at these settings: ``expected`` by "delays, method"."""
    checks = []
    for delays, result in found.items():
        for method, one in result["methods"].items():
            if (key := f"{delays}, {method}") in expected:
                got, wanted = one["end"]["mean"], expected[key]
                name = f"golden: {key}"
                checks.append(
                    {"name": name, "expected": f"{wanted} ± {within}", "got": got, "holds": abs(got - wanted) <= within}
                )
    return checks
