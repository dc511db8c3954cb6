"""The checks of a comparison: agreements of its parts, and statements about its results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from training.federated.buffered import FederatedSettings, explain_divergence
from training.federated.clients import LocalSGD
from training.federated.comparison_summary import Results
from training.federated.delays import LARGE, Trace, official
from training.federated.experiment import FederatedTask, local_sgd
from training.federated.rules import Adaptive, Update
from training.federated.simulator import Simulator
from training.intervals import band
from training.run import Check, rng_of
from training.workers import one_thread

RULE = Adaptive(lr=1e-3)


def agreements(task: FederatedTask) -> list[Check]:
    """On the clients of a run: batched against sequential, lockstep against synchronous, and one seed twice."""
    with one_thread(), explain_divergence("the first rounds", "local_lr"):
        clients, params = local_sgd(task, task.splits()["train"], 0)
        return [_batched(task, clients, params), _lockstep(task, clients, params), _repeated(task, clients, params)]


def _batched(task: FederatedTask, clients: LocalSGD, params: Tensor) -> Check:
    cohort = list(range(min(5, task.clients)))
    batched = clients(params, cohort, cohort)
    sequential = clients.one_by_one(params, cohort, cohort, task.network())
    error = max(float((a - b).abs().max()) for (a, _), (b, _) in zip(batched, sequential, strict=True))
    name = "clients trained in one batch learn what each learns alone: largest difference in Δ"
    return {"name": name, "expected": "<= 1e-5", "got": error, "holds": error <= 1e-5}


def _lockstep(task: FederatedTask, train: LocalSGD, params: Tensor, rounds: int = 3) -> Check:
    cohorts = []

    def recorded(params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        cohorts.append((clients, seeds))
        return train(params, clients, seeds)

    size = min(task.buffer_size, task.clients)
    settings = FederatedSettings(clients=task.clients, concurrency=size, buffer_size=size)
    simulator = Simulator(settings, RULE, recorded, Trace([[1.0]] * task.clients), params)
    simulator.run(rounds)
    state, plain = RULE.init(params), params
    for cohort, seeds in cohorts:
        trained = zip(cohort, train(plain, cohort, seeds), strict=True)
        updates = [Update(client, delta, plain, examples=count) for client, (delta, count) in trained]
        state, plain = RULE.step(state, plain, updates)
    error = float((plain - simulator.params).abs().max())
    name = "M equally fast clients at work are synchronous FedAMSGrad: largest difference"
    return {"name": name, "expected": 0, "got": error, "holds": error == 0 and len(cohorts) == rounds}


def _repeated(task: FederatedTask, clients: LocalSGD, params: Tensor, rounds: int = 5) -> Check:
    """The second run stops after three rounds and continues from a snapshot."""
    settings = FederatedSettings(
        clients=task.clients, concurrency=task.concurrency, buffer_size=task.buffer_size, together="all"
    )
    delays = official(task.clients, LARGE, rng_of(0))
    uninterrupted, stopped, resumed = (Simulator(settings, RULE, clients, delays, params) for _ in range(3))
    events = uninterrupted.run(rounds)
    before = stopped.run(3)
    resumed.restore(stopped.snapshot())
    same = before + resumed.run(rounds) == events
    error = float((uninterrupted.params - resumed.params).abs().max())
    name = "one seed twice, stopped and gone on with the second time: same events, largest difference in parameters"
    return {"name": name, "expected": [True, 0], "got": [same, error], "holds": same and error == 0}


def min_never_binds(results: Results) -> list[Check]:
    checks: list[Check] = []
    for delays, result in results.items():
        if "FADAS" in result["methods"]:
            lower = result["methods"]["FADAS"]["binding_min_rounds"]
            name = f"{delays} delays: rounds in which min(η, 1/τ_max) is below η (none: it is FADAS)"
            checks.append({"name": name, "expected": 0, "got": lower, "holds": lower == 0})
    return checks


def as_earlier(results: Results, earlier: Mapping[str, float]) -> list[Check]:
    """Final accuracies against ``earlier`` ones by method, and FADAS against FedBuff."""
    checks: list[Check] = []
    for delays, result in results.items():
        methods = result["methods"]
        for method, accuracy in earlier.items():
            if method in methods:
                got, bound = [methods[method]["end"][part] for part in ("mean", "low", "high")], accuracy - 0.03
                name = f"{delays} delays: {method}, accuracy of the last evaluations ({accuracy} was seen elsewhere)"
                checks.append({"name": name, "expected": f">= {bound:.2f}", "got": got, "holds": got[0] >= bound})
        if "FedBuff" in methods and "FADAS" in methods:
            gain = band(np.subtract(methods["FADAS"]["per_seed"], methods["FedBuff"]["per_seed"]))
            got = [gain[part] for part in ("mean", "low", "high")]
            name = f"{delays} delays: FADAS less FedBuff, paired by seed"
            checks.append({"name": name, "expected": "> 0", "got": got, "holds": got[0] > 0})
    return checks


def golden(results: Results, expected: Mapping[str, float], within: float = 0.02) -> list[Check]:
    """Recorded final accuracies of these settings: ``expected`` by "delays, method"."""
    checks: list[Check] = []
    for delays, result in results.items():
        for method, row in result["methods"].items():
            if (key := f"{delays}, {method}") in expected:
                got, wanted = row["end"]["mean"], expected[key]
                name = f"golden: {key}"
                checks.append(
                    {"name": name, "expected": f"{wanted} ± {within}", "got": got, "holds": abs(got - wanted) <= within}
                )
    return checks
