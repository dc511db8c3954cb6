"""A comparison of server rules on a task: selects each rule's step, then runs all rules with all seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Annotated, ClassVar, TypeVar

from pydantic import Field, field_validator, model_validator

from training.federated.comparison_checks import agreements
from training.federated.comparison_summary import Choices, Results, end, summary
from training.federated.delays import DELAYS, TRACE, read_trace
from training.federated.experiment import METHODS, Curve, FederatedTask, Trial, curve
from training.federated.schedule import Participation, horizon, participation, retimed, schedule
from training.run import Run, check_names
from training.workers import computed_steps, workers

ServerStep = Annotated[float, Field(gt=0, allow_inf_nan=False)]
T = TypeVar("T", tuple[str, ...], dict[str, float], dict[str, tuple[float, ...]])


class ComparisonConfig(FederatedTask):
    """The rules and delays to compare."""

    movable: ClassVar[frozenset[str]] = frozenset({"workers"})

    methods: tuple[str, ...] = Field(tuple(METHODS), min_length=1, description="Server rules to compare.")
    delays: tuple[str, ...] = Field(
        tuple(DELAYS), min_length=1, description="Delay models to compare: mild, large, heavy-tailed, trace."
    )
    grids: dict[str, tuple[ServerStep, ...]] = Field(
        {}, description="The server's steps to try by method, where they are not those of METHODS."
    )
    steps: dict[str, ServerStep] = Field({}, description="The server's step by method, for methods without selection.")
    seeds: int = Field(5, ge=1, description="Seeds of each run; the selection has a separate seed.")
    updates: int = Field(2500, ge=1, description="Client updates of a run, a multiple of evaluate_every.")
    tuning_updates: int = Field(
        500, ge=1, description="Client updates of a run that selects the server's step, a multiple of evaluate_every."
    )
    workers: int = Field(2, ge=1, description="Processes.")
    golden: dict[str, float] = Field({}, description="Expected final accuracies, by `delays, method`.")

    @field_validator("methods", "grids", "steps")
    @classmethod
    def _methods(cls, value: T) -> T:
        check_names(value, METHODS, "method")
        return value

    @field_validator("delays")
    @classmethod
    def _delays(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        check_names(value, (*DELAYS, TRACE), "delay model")
        return value

    @field_validator("methods", "delays")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        repeated = sorted({name for name in value if value.count(name) > 1})
        if repeated:
            raise ValueError(f"{', '.join(repeated)} is named twice")
        return value

    @field_validator("golden")
    @classmethod
    def _golden(cls, value: dict[str, float]) -> dict[str, float]:
        for key in value:
            delays, _, method = key.partition(", ")
            check_names([delays], (*DELAYS, TRACE), "delay model")
            check_names([method], METHODS, "method")
        return value

    @field_validator("grids")
    @classmethod
    def _grids(cls, value: dict[str, tuple[float, ...]]) -> dict[str, tuple[float, ...]]:
        empty = [method for method, steps in value.items() if not steps]
        if empty:
            raise ValueError(f"the grid of {', '.join(empty)} has no step to try")
        return value

    @model_validator(mode="after")
    def _enough_clients_for_a_round(self) -> ComparisonConfig:
        few = [method for method in self.methods if METHODS[method].waits == "for few"]
        if few and self.buffer_size > self.clients:
            raise ValueError(
                f"a round of {', '.join(few)} takes buffer_size clients, {self.buffer_size}, more than the "
                f"{self.clients} there are"
            )
        return self

    @model_validator(mode="after")
    def _trace_with_every_client(self) -> ComparisonConfig:
        if TRACE in self.delays:
            if self.trace is None:
                raise ValueError(f"the delay model {TRACE} takes a file: set trace")
            durations = read_trace(self.trace, self.clients).durations
            if any(math.isinf(duration) for client in durations for duration in client):
                raise ValueError(f"{self.trace} has answers that never came, for which a synchronous round would wait")
        return self

    @model_validator(mode="after")
    def _ends_with_an_evaluation(self) -> ComparisonConfig:
        selects = any(method not in self.steps for method in self.methods)
        for name in ("updates", "tuning_updates") if selects else ("updates",):
            if getattr(self, name) % self.evaluate_every:
                every = self.evaluate_every
                raise ValueError(f"{name} must be a multiple of evaluate_every, {every}, unlike {getattr(self, name)}")
        return self

    def tried_steps(self, method: str) -> tuple[float, ...]:
        return self.grids.get(method, METHODS[method].steps)

    def trains(self, method: str, delays: str) -> bool:
        """Whether to train: a synchronous method learns the same under all delays, which affect its times only."""
        return METHODS[method].waits == "no" or delays == self.delays[0]

    @property
    def runs(self) -> int:
        """How many runs train, without those that select steps."""
        return self.seeds * sum(self.trains(method, delays) for method in self.methods for delays in self.delays)


def compare(config: ComparisonConfig, task: FederatedTask, run: Run) -> tuple[Choices, Results]:
    """The chosen steps, and the results by delays; with the agreements as checks of the run."""
    for check in agreements(task):
        run.check(**check)
    selection = tuning_trials(config, task, run)
    chosen = choose(selection, run_all(selection, config, run), config)
    trials = all_trials(chosen, config, task, run)
    curves = all_curves(trials, config, run)
    return chosen, {
        delays: summary(curves[delays], chosen[delays], participations(selection.values(), trials.values(), delays))
        for delays in config.delays
    }


def tuning_trials(config: ComparisonConfig, task: FederatedTask, run: Run) -> dict[str, Trial]:
    """By name; on development examples, with a separate seed."""
    seed, updates = run.derive_seed(0), config.tuning_updates
    return {
        f"tune-{delays}-{method}-{step:g}": Trial(task, method, step, delays, seed, updates, "development")
        for method in config.methods
        for delays in config.delays
        if method not in config.steps and config.trains(method, delays)
        for step in config.tried_steps(method)
    }


def choose(trials: Mapping[str, Trial], curves: Mapping[str, Curve], config: ComparisonConfig) -> Choices:
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


Trials = dict[tuple[str, str, int], Trial]  # by delays, method and index of the seed


def all_trials(chosen: Choices, config: ComparisonConfig, task: FederatedTask, run: Run) -> Trials:
    """The runs to compare, with seeds as the outer loop: an interrupted run has all methods.

    Each is evaluated with the model that it has at the horizon, a synchronous one after every round until then.
    """
    trials = {
        (delays, method, i): Trial(
            task, method, chosen[delays][method]["step"], delays, run.derive_seed(1, i), config.updates
        )
        for i in range(config.seeds)
        for delays in config.delays
        for method in config.methods
    }
    horizons = {
        delays: horizon([trial for trial in trials.values() if trial.delays == delays]) for delays in config.delays
    }
    rounds = {key: schedule(trial).rounds_until(horizons[trial.delays]) for key, trial in trials.items()}

    def also_after(delays: str, method: str, i: int) -> tuple[int, ...]:
        if METHODS[method].waits == "no":
            return (rounds[delays, method, i],)
        return tuple(range(1, max(rounds[name, method, i] for name in config.delays) + 1))

    return {key: replace(trial, also_after=also_after(*key)) for key, trial in trials.items()}


def participations(selection: Iterable[Trial], trials: Iterable[Trial], delays: str) -> dict[str, Participation]:
    """Of runs under one delay model that select steps ("selection"), if any, and of the others ("runs")."""
    groups = {"selection": selection, "runs": trials}
    parts = {name: [trial for trial in group if trial.delays == delays] for name, group in groups.items()}
    return {name: participation(part) for name, part in parts.items() if part}


def all_curves(trials: Trials, config: ComparisonConfig, run: Run) -> dict[str, dict[str, list[Curve]]]:
    """By delays and method, one curve per seed."""
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


def run_all(trials: Mapping[str, Trial], config: ComparisonConfig, run: Run) -> dict[str, Curve]:
    """The curve of each trial, as one step of the run; in ``workers`` processes if there are several."""
    missing = [name for name in trials if not run.has(name)]
    calls = {name: partial(curve, trial) for name, trial in trials.items()}
    with workers(config.workers if len(missing) > 1 else 1, run) as submit:
        return computed_steps(run, submit, calls, partial(_report, run))


def _report(run: Run, name: str, trained: Curve) -> None:
    accuracy, time, oldest = end(trained), trained["times"][-1], max(trained["staleness"])
    row = {"trial": name, "accuracy": accuracy, "time": time, "oldest": oldest}
    run.metrics(row, f"{name}: accuracy {accuracy:.3f} at time {time:.0f}, oldest update {oldest} rounds")


def client_updates(config: ComparisonConfig) -> int:
    """Of all runs."""
    tuning_runs = sum(
        len(config.tried_steps(method))
        for method in config.methods
        for delays in config.delays
        if method not in config.steps and config.trains(method, delays)
    )
    return config.runs * config.updates + tuning_runs * config.tuning_updates
