"""`iro run federated.fadas`: FADAS against other server rules on Fashion-MNIST (arXiv:2407.18365)."""

from __future__ import annotations

from pydantic import Field

from training.fashion_mnist import digests
from training.federated.comparison import ComparisonConfig, client_updates, compare, tuning_trials
from training.federated.comparison_checks import as_earlier, golden, min_never_binds
from training.federated.comparison_figures import draw
from training.federated.fashion import FashionTask
from training.run import Job, Run, jsonable

EARLIER = {
    "FedBuff": 0.71,
    "FADAS": 0.79,
    "FADAS, delay-adaptive": 0.81,
}  # earlier: 300 rounds, two seeds
ENOUGH_UPDATES = 1000


class FadasConfig(ComparisonConfig, FashionTask):
    """FADAS and other rules on Fashion-MNIST."""

    delays: tuple[str, ...] = Field(("mild", "large"), min_length=1, description="Delay models to compare.")

    @property
    def task(self) -> FashionTask:
        return FashionTask(**{name: getattr(self, name) for name in FashionTask.model_fields})


def run(config: FadasConfig, run: Run) -> dict[str, object]:
    data = digests(config.data)
    run.planned_steps = len(tuning_trials(config, config.task, run)) + config.runs
    run.emit("message", f"expect about {expected_minutes(config):.1f} minutes on two cores")
    chosen, results = compare(config, config.task, run)
    checks = [*min_never_binds(results), *golden(results, config.golden)]
    if config.updates >= ENOUGH_UPDATES:
        checks += as_earlier(results, EARLIER)
    for check in checks:
        run.check(**check)
    result: dict[str, object] = jsonable({"data": data, "steps": chosen, "results": results})
    return result


def expected_minutes(config: FadasConfig) -> float:
    """From rates on two busy cores; a CNN takes about eight times as long as an MLP."""
    step = (50e-6 + 4e-6 * config.batch) * config.hidden / 64
    seconds = client_updates(config) * (config.local_steps * step + 0.03 / config.evaluate_every)
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
        "large, FADAS": 0.699,
        "large, FADAS, delay-adaptive": 0.690,
        "large, FedBuff": 0.693,
        "large, FedAMS": 0.792,
    },
}
# Steps are selected in runs in which slow clients answer too: under large delays they take 50 to 80 units, and 1,000
# updates end near 100.
TWO_CORES = {"seeds": 10, "updates": 1000, "tuning_updates": 1000, "hidden": 32, "weight_decay": 0.0}
CNN = {
    "model": "cnn",
    "hidden": 32,
    "methods": ("FADAS", "FADAS, delay-adaptive", "FedBuff"),
    "delays": ("large",),
    "updates": 1000,
    "tuning_updates": 1000,
    "weight_decay": 0.0,
    "grids": {
        "FADAS": (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3),
        "FADAS, delay-adaptive": (3e-3, 6e-3, 1.2e-2, 2.4e-2, 4.8e-2),
        "FedBuff": (0.125, 0.25, 0.5, 1.0, 2.0),
    },
}
PAPER = {  # 500 rounds; 1.8 epochs a client, on average
    "tuning_updates": 1000,
    "local_steps": 40,
    "batch": 50,
    "hidden": 200,
    "grids": {
        "FADAS": (1e-4, 2.5e-4, 5e-4, 1e-3),
        "FADAS, delay-adaptive": (7.5e-4, 1.5e-3, 3e-3, 6e-3),
        "FedBuff": (0.06, 0.125, 0.25, 0.5),
        "CA2FL": (0.06, 0.125, 0.25, 0.5),
    },
}

JOB = Job(
    name="federated.fadas",
    summary="FADAS and other federated rules, asynchronous and in step, on Fashion-MNIST under mild and large delays",
    Config=FadasConfig,
    run=run,
    presets={"smoke": SMOKE, "two-cores": TWO_CORES, "cnn": CNN, "paper": PAPER},
    draw=draw,
)
