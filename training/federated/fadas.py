"""`iro run federated.fadas`: FADAS against other server rules on Fashion-MNIST (arXiv:2407.18365)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from pydantic import Field, field_validator

from training.fashion_mnist import digests
from training.federated.experiment import DELAYS, METHODS, Task, Trial, curve, retimed
from training.federated.fadas_checks import agreements, claims, golden
from training.federated.fadas_figures import draw
from training.federated.fadas_summary import end, summary
from training.run import Job, Run, jsonable

Curve = dict[str, Any]


class Config(Task):
    """``updates`` of clients in a run, ``tuning_updates`` in one to choose the server's step.

    ``steps``: the server's step by method, for methods whose step is not to be chosen. ``seeds``: of each run, after
    the one that steps are chosen with. ``workers``: processes. ``golden``: accuracies at the end to expect, by
    "delays, method".
    """

    movable: ClassVar[frozenset[str]] = frozenset({"workers"})

    methods: tuple[str, ...] = tuple(METHODS)
    delays: tuple[str, ...] = tuple(DELAYS)
    steps: dict[str, float] = Field({})
    seeds: int = Field(5, ge=1)
    updates: int = Field(2500, ge=1)
    tuning_updates: int = Field(500, ge=1)
    workers: int = Field(2, ge=1)
    golden: dict[str, float] = Field({})

    @field_validator("methods", "delays", "steps")
    @classmethod
    def _known(cls, value: Any, info: Any) -> Any:
        known = DELAYS if info.field_name == "delays" else METHODS
        unknown = [each for each in value if each not in known]
        if unknown or (info.field_name != "steps" and not value):
            raise ValueError(f"{unknown or 'nothing'} among {info.field_name}; there are {', '.join(known)}")
        return value

    @property
    def task(self) -> Task:
        return Task(**{name: getattr(self, name) for name in Task.model_fields})

    def trains(self, method: str, delays: str) -> bool:
        """Delays decide only when the answers come that a method waits for: it learns the same under all of them."""
        return METHODS[method].waits == "no" or delays == self.delays[0]


def run(config: Config, run: Run) -> dict[str, Any]:
    data, choices = digests(config.data), tuning_trials(config, run)
    trained = sum(config.trains(method, delays) for method in config.methods for delays in config.delays)
    run.planned_steps = len(choices) + trained * config.seeds
    run.emit("message", f"expect about {expected_minutes(config):.1f} minutes on two cores")
    for check in agreements(config.task):
        run.check(**check)
    chosen = choose(choices, run_all(choices, config, run), config)
    curves = all_curves(chosen, config, run)
    found = {delays: summary(curves[delays], chosen[delays]) for delays in config.delays}
    for check in [*claims(found, config.updates), *golden(found, config.golden)]:
        run.check(**check)
    return jsonable({"data": data, "steps": chosen, "results": found})


def tuning_trials(config: Config, run: Run) -> dict[str, Trial]:
    """By name; on development examples, with a seed that no other trial has."""
    how: dict[str, Any] = {"seed": run.derive_seed(0), "updates": config.tuning_updates, "on": "development"}
    return {
        f"tune-{delays}-{method}-{step:g}": Trial(config.task, method, step, delays, **how)
        for method in config.methods
        for delays in config.delays
        if method not in config.steps and config.trains(method, delays)
        for step in METHODS[method].steps
    }


def choose(trials: Mapping[str, Trial], curves: Mapping[str, Curve], config: Config) -> dict[str, dict[str, Any]]:
    """By delays and method: the "step" with the highest accuracy on development examples, the accuracies of all that
    were "tried", and whether it is the smallest or largest of them."""
    found: dict[str, dict[str, Any]] = {
        delays: {method: {"step": step} for method, step in config.steps.items()} for delays in config.delays
    }
    for name, trial in trials.items():
        tried = found[trial.delays].setdefault(trial.method, {"tried": {}})["tried"]
        tried[trial.step] = end(curves[name])
    for one in (each for methods in found.values() for each in methods.values() if "tried" in each):
        one["step"] = max(one["tried"], key=one["tried"].get)
        one["at the edge"] = one["step"] in (min(one["tried"]), max(one["tried"]))
    first = found[config.delays[0]]
    return {
        delays: {method: own.get(method, first[method]) for method in config.methods} for delays, own in found.items()
    }


def all_curves(chosen: Mapping[str, Any], config: Config, run: Run) -> dict[str, dict[str, list[Curve]]]:
    """By delays and method, a curve a seed. Seeds are the outer loop: a run that is cut short has all methods."""
    trials = {
        (delays, method, i): Trial(
            config.task, method, chosen[delays][method]["step"], delays, run.derive_seed(1, i), config.updates
        )
        for i in range(config.seeds)
        for delays in config.delays
        for method in config.methods
    }
    names = {key: "-".join(map(str, key)) for key in trials if config.trains(key[1], key[0])}
    trained = run_all({name: trials[key] for key, name in names.items()}, config, run)

    def of(delays: str, method: str, i: int) -> Curve:
        if config.trains(method, delays):
            return trained[names[delays, method, i]]
        return retimed(trained[names[config.delays[0], method, i]], trials[delays, method, i])

    return {
        delays: {method: [of(delays, method, i) for i in range(config.seeds)] for method in config.methods}
        for delays in config.delays
    }


def run_all(trials: Mapping[str, Trial], config: Config, run: Run) -> dict[str, Curve]:
    """The curve of each trial: a step of the run each, in processes of their own where there are several."""
    missing = {name: trial for name, trial in trials.items() if not run.has(name)}
    with _started(missing, config.workers) as results:
        return {name: run.step(name, partial(_reported, name, results, run)) for name in trials}


@contextmanager
def _started(trials: Mapping[str, Trial], workers: int) -> Iterator[Mapping[str, Callable[[], Curve]]]:
    if workers == 1 or len(trials) < 2:
        yield {name: partial(curve, trial) for name, trial in trials.items()}
        return
    with ProcessPoolExecutor(min(workers, len(trials)), multiprocessing.get_context("spawn")) as pool:
        try:
            yield {name: pool.submit(curve, trial).result for name, trial in trials.items()}
        finally:
            pool.shutdown(cancel_futures=True)


def _reported(name: str, results: Mapping[str, Callable[[], Curve]], run: Run) -> Curve:
    found = results[name]()
    row = {"trial": name, "accuracy": end(found), "time": found["times"][-1], "oldest": max(found["staleness"])}
    run.metrics(row, "{trial}: accuracy {accuracy:.3f} at time {time:.0f}, oldest update {oldest} rounds".format(**row))
    return found


def expected_minutes(config: Config) -> float:
    """From rates on two busy cores, halved for an MLP by what benchmarks.federated measured since; a CNN takes some
    eight times as long."""
    updates = 0
    for method in config.methods:
        tuning = 0 if method in config.steps else len(METHODS[method].steps) * config.tuning_updates
        times = sum(config.trains(method, delays) for delays in config.delays)
        updates += times * (config.seeds * config.updates + tuning)
    step = (50e-6 + 4e-6 * config.batch) * config.hidden / 64
    seconds = updates * (config.local_steps * step + 0.03 / config.evaluate_every)
    return (10 + seconds * (8 if config.model == "cnn" else 1) / min(config.workers, 2)) / 60


SMOKE = {
    "methods": ("FADAS", "FADAS, delay-adaptive", "FedBuff", "FedAMS"),
    "delays": ("large",),
    "steps": {"FADAS": 1e-3, "FADAS, delay-adaptive": 6e-3, "FedBuff": 0.5, "FedAMS": 8e-3},
    "seeds": 2,
    "updates": 200,
    "hidden": 32,
    "workers": 1,
    "golden": {
        "large, FADAS": 0.702,
        "large, FADAS, delay-adaptive": 0.703,
        "large, FedBuff": 0.661,
        "large, FedAMS": 0.794,
    },
}
TWO_CORES = {"updates": 1000, "tuning_updates": 300, "hidden": 32, "weight_decay": 0.0}
CNN = {
    "model": "cnn",
    "hidden": 32,
    "methods": ("FADAS", "FADAS, delay-adaptive", "FedBuff"),
    "delays": ("large",),
    "seeds": 3,
    "updates": 500,
    "tuning_updates": 200,
    "weight_decay": 0.0,
}
PAPER = {"local_steps": 40, "batch": 50, "hidden": 200}  # 500 rounds; two epochs a client, on average

JOB = Job(
    name="federated.fadas",
    summary="FADAS and other federated rules, asynchronous and in step, on Fashion-MNIST under mild and large delays",
    Config=Config,
    run=run,
    presets={"smoke": SMOKE, "two-cores": TWO_CORES, "cnn": CNN, "paper": PAPER},
    draw=draw,
)
