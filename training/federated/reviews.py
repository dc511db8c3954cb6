"""`iro run federated.reviews`: FADAS against other server rules on LoRA adapters of MiniLM (arXiv:2407.18365).

Sentiment of sentences from film reviews. MiniLM's lower layers are frozen, and their outputs are computed once; clients
train LoRA adapters of the last layers and a linear head.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from training.checkpoints import open_checkpoints
from training.federated import minilm
from training.federated.comparison import ComparisonConfig, ServerStep, client_updates, compare, tuning_trials
from training.federated.comparison_checks import golden
from training.federated.comparison_figures import draw
from training.federated.experiment import SPLIT, Examples, FederatedTask, Splits
from training.run import Job, Run, jsonable, rng_of
from training.workers import one_thread

SPLITS = ("test", "development", "train")
GRIDS: dict[str, tuple[float, ...]] = {
    "FADAS": (3e-4, 1e-3, 3e-3, 1e-2),
    "FADAS, delay-adaptive": (1e-3, 3e-3, 1e-2, 3e-2),
    "FedBuff": (0.25, 0.5, 1.0, 2.0),
    "FedAvg": (0.25, 0.5, 1.0, 2.0),
    "FedAvg, all places": (0.5, 1.0, 2.0, 4.0),
}


class ReviewsTask(FederatedTask):
    """MiniLM with LoRA on sentences of film reviews."""

    evaluation_batch: ClassVar[int] = 100

    layers: int = Field(
        1, ge=1, le=minilm.LAYERS, description="MiniLM's last layers, which get LoRA on query and value."
    )
    rank: int = Field(8, ge=1, description="Rank of LoRA.")
    tokens: int = Field(64, ge=4, le=512, description="Tokens to which texts are cut.")
    train: int = Field(6000, ge=100, description="Sentences of the clients.")
    development: int = Field(1000, ge=100, description="Sentences to select steps.")
    test: int = Field(1500, ge=100, description="Sentences of the results.")

    @property
    def smallest_client(self) -> int:
        """Of two classes, few partitions of many clients give each a batch."""
        return (self.batch + 1) // 2

    def network(self) -> nn.Module:
        return minilm.classifier(self.layers, self.rank)


class CachedReviews(ReviewsTask):
    """``location`` of the checkpoints that hold the outputs of MiniLM's lower layers."""

    location: str

    def splits(self) -> Splits:
        return _load(self.location)


class ReviewsConfig(ComparisonConfig, ReviewsTask):
    """FADAS and other rules on LoRA adapters of MiniLM."""

    methods: tuple[str, ...] = Field(tuple(GRIDS), min_length=1, description="Server rules to compare.")
    grids: dict[str, tuple[ServerStep, ...]] = Field(GRIDS, description="The server's steps to try, by method.")

    def cached(self, location: str) -> CachedReviews:
        return CachedReviews(location=location, **{name: getattr(self, name) for name in ReviewsTask.model_fields})


def run(config: ReviewsConfig, run: Run) -> dict[str, object]:
    task = config.cached(run.checkpoints.location)
    run.planned_steps = len(SPLITS) + len(tuning_trials(config, task, run)) + config.runs
    run.emit("message", f"expect about {expected_minutes(config):.1f} minutes on two cores")
    for split in SPLITS:
        run.step(_step(split), partial(lower_outputs, config, split))
    chosen, results = compare(config, task, run)
    for check in golden(results, config.golden):
        run.check(**check)
    result: dict[str, object] = jsonable({"steps": chosen, "results": results})
    return result


def lower_outputs(task: ReviewsTask, split: str) -> dict[str, Tensor]:
    """Outputs of MiniLM's lower layers and labels of a split; one shuffle splits the sentences for all seeds.

    Raises ValueError where there are not as many sentences, and MissingPackage.
    """
    from iro_server.cli.demo.data import labelled_reviews

    reviews = labelled_reviews("rotten_tomatoes")
    sizes = {name: getattr(task, name) for name in SPLITS}
    if sum(sizes.values()) > len(reviews.texts):
        raise ValueError(f"{sizes} sentences are needed, there are {len(reviews.texts)}: lower train")
    start = sum(sizes[name] for name in SPLITS[: SPLITS.index(split)])
    rows = rng_of(0, SPLIT).permutation(len(reviews.texts))[start : start + sizes[split]]
    with one_thread():
        inputs = minilm.lower_outputs([reviews.texts[row] for row in rows], task.layers, task.tokens)
    return {"inputs": inputs, "labels": torch.from_numpy(reviews.labels[rows])}


@lru_cache(maxsize=1)
def _load(location: str) -> Splits:
    checkpoints = open_checkpoints(location)
    return {split: Examples(**checkpoints.load(_step(split))) for split in SPLITS}


def _step(split: str) -> str:
    return f"lower-{split}"


def expected_minutes(config: ReviewsConfig) -> float:
    """From the time of a layer for a token on two busy cores; training takes 1.7 times as long as evaluation."""
    texts = 1.7 * config.local_steps * config.batch + config.test / config.evaluate_every
    upper = config.layers * client_updates(config) * texts / min(config.workers, 2)
    lower = (minilm.LAYERS - config.layers) * (config.train + config.development + config.test)
    return (20 + 6e-5 * config.tokens * (upper + lower)) / 60


SMOKE = {
    "methods": ("FADAS", "FADAS, delay-adaptive", "FedBuff", "FedAvg"),
    "delays": ("heavy-tailed",),
    "steps": {"FADAS": 1e-3, "FADAS, delay-adaptive": 3e-3, "FedBuff": 1.0, "FedAvg": 1.0},
    "seeds": 1,
    "updates": 24,
    "evaluate_every": 12,
    "clients": 12,
    "concurrency": 6,
    "buffer_size": 3,
    "batch": 4,
    "local_steps": 2,
    "tokens": 16,
    "train": 600,
    "development": 100,
    "test": 200,
    "workers": 1,
}
TWO_CORES = {
    "tokens": 32,
    "updates": 250,
    "tuning_updates": 150,
    "evaluate_every": 50,
    "local_steps": 5,
    "batch": 6,
    "weight_decay": 0.0,
}
ROUNDS_150 = TWO_CORES | {
    "methods": ("FADAS", "FADAS, delay-adaptive", "FedBuff"),
    "updates": 750,
    "tuning_updates": 225,
    "evaluate_every": 75,
}

JOB = Job(
    name="federated.reviews",
    summary="FADAS and other federated rules on LoRA adapters of MiniLM: sentiment of film reviews, three delay laws",
    Config=ReviewsConfig,
    run=run,
    presets={"smoke": SMOKE, "two-cores": TWO_CORES, "150-rounds": ROUNDS_150},
    draw=draw,
)
