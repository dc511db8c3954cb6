"""`iro run federated.fadas`: FADAS against other server rules on Fashion-MNIST (arXiv:2407.18365)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import ClassVar, TypeVar

from pydantic import Field, field_validator

from training.fashion_mnist import digests
from training.federated.experiment import DELAYS, METHODS, Curve, FederatedTask, Trial, curve, retimed
from training.federated.fadas_checks import agreements, claims, golden
from training.federated.fadas_figures import draw
from training.federated.fadas_summary import Choices, end, summary
from training.run import Job, Run, check_names, jsonable

T = TypeVar("T", tuple[str, ...], dict[str, float])


class FadasConfig(FederatedTask):
    """``updates`` of clients in a run, ``tuning_updates`` in a run that selects the server's step.

    ``steps``: the server's step by method, for methods without selection. ``seeds``: of each run; the selection has a
    separate seed. ``workers``: processes. ``golden``: expected final accuracies, by "delays, method".
    """

    movable: ClassVar[frozenset[str]] = frozenset({"workers"})

    methods: tuple[str, ...] = Field(tuple(METHODS), min_length=1)
    delays: tuple[str, ...] = Field(tuple(DELAYS), min_length=1)
    steps: dict[str, float] = Field({})
    seeds: int = Field(5, ge=1)
    updates: int = Field(2500, ge=1)
    tuning_updates: int = Field(500, ge=1)
    workers: int = Field(2, ge=1)
    golden: dict[str, float] = Field({})

    @field_validator("methods", "steps")
    @classmethod
    def _methods(cls, value: T) -> T:
        check_names(value, METHODS, "method")
        return value

    @field_validator("delays")
    @classmethod
    def _delays(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value, DELAYS, "delay model")
        return value

    @property
    def task(self) -> FederatedTask:
        return FederatedTask(**{name: getattr(self, name) for name in FederatedTask.model_fields})

    def trains(self, method: str, delays: str) -> bool:
        """Whether to train: a synchronous method learns the same under all delays, which affect its times only."""
        return METHODS[method].waits == "no" or delays == self.delays[0]


def run(config: FadasConfig, run: Run) -> dict[str, object]:
    data, choices = digests(config.data), tuning_trials(config, run)
    trained = sum(config.trains(method, delays) for method in config.methods for delays in config.delays)
    run.planned_steps = len(choices) + trained * config.seeds
    run.emit("message", f"expect about {expected_minutes(config):.1f} minutes on two cores")
    for check in agreements(config.task):
        run.check(**check)
    chosen = choose(choices, run_all(choices, config, run), config)
    curves = all_curves(chosen, config, run)
    results = {delays: summary(curves[delays], chosen[delays]) for delays in config.delays}
    for check in [*claims(results, config.updates), *golden(results, config.golden)]:
        run.check(**check)
    result: dict[str, object] = jsonable({"data": data, "steps": chosen, "results": results})
    return result


def tuning_trials(config: FadasConfig, run: Run) -> dict[str, Trial]:
    """By name; on development examples, with a separate seed."""
    seed, updates = run.derive_seed(0), config.tuning_updates
    return {
        f"tune-{delays}-{method}-{step:g}": Trial(config.task, method, step, delays, seed, updates, "development")
        for method in config.methods
        for delays in config.delays
        if method not in config.steps and config.trains(method, delays)
        for step in METHODS[method].steps
    }


def choose(trials: Mapping[str, Trial], curves: Mapping[str, Curve], config: FadasConfig) -> Choices:
    """The step with the highest accuracy on development examples, by delays and method."""
    choices: Choices = {
        delays: {method: {"step": step} for method, step in config.steps.items()} for delays in config.delays
    }
    for name, trial in trials.items():
        choice = choices[trial.delays].setdefault(trial.method, {"tried": {}})
        choice["tried"][trial.step] = end(curves[name])
    for methods in choices.values():
        for choice in methods.values():
            if "tried" in choice:
                tried = choice["tried"]
                choice["step"] = max(tried, key=tried.__getitem__)
                choice["at_edge"] = choice["step"] in (min(tried), max(tried))
    first = choices[config.delays[0]]
    return {
        delays: {method: methods.get(method, first[method]) for method in config.methods}
        for delays, methods in choices.items()
    }


def all_curves(chosen: Choices, config: FadasConfig, run: Run) -> dict[str, dict[str, list[Curve]]]:
    """By delays and method, one curve per seed. Seeds are the outer loop: an interrupted run has all methods."""
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

    def curve_of(delays: str, method: str, i: int) -> Curve:
        if config.trains(method, delays):
            return trained[names[delays, method, i]]
        return retimed(trained[names[config.delays[0], method, i]], trials[delays, method, i])

    return {
        delays: {method: [curve_of(delays, method, i) for i in range(config.seeds)] for method in config.methods}
        for delays in config.delays
    }


def run_all(trials: Mapping[str, Trial], config: FadasConfig, run: Run) -> dict[str, Curve]:
    """The curve of each trial, as one step of the run; in ``workers`` processes if there are several."""
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
    trained = results[name]()
    accuracy, time, oldest = end(trained), trained["times"][-1], max(trained["staleness"])
    row = {"trial": name, "accuracy": accuracy, "time": time, "oldest": oldest}
    run.metrics(row, f"{name}: accuracy {accuracy:.3f} at time {time:.0f}, oldest update {oldest} rounds")
    return trained


def expected_minutes(config: FadasConfig) -> float:
    """From rates on two busy cores; a CNN takes about eight times as long as an MLP."""
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
TWO_CORES = {"seeds": 10, "updates": 1000, "tuning_updates": 300, "hidden": 32, "weight_decay": 0.0}
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
    Config=FadasConfig,
    run=run,
    presets={"smoke": SMOKE, "two-cores": TWO_CORES, "cnn": CNN, "paper": PAPER},
    draw=draw,
)
