"""An in-context classification experiment: its config, the models that figures share, and their errors."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import Tensor

from theory.icl.data import Batch, Data, Domain, draw, in_domain, out_of_domain, tasks
from theory.icl.model import Models, Setting, attention, hinge, misclassified, prefix_outputs, train
from theory.lab import LabConfig, Result, check_fraction, check_lengths
from theory.training import AVERAGED_STEPS, train_in_chunks
from training.run import Run


class IclConfig(LabConfig):
    """Patterns, training, pruning and testing."""

    M1: PositiveInt = Field(6, description="In-domain relevant patterns.")
    M2: PositiveInt = Field(24, description="In-domain irrelevant patterns.")
    d: PositiveInt = Field(30, description="Dimension of an input.")
    d_y: PositiveInt = Field(10, description="Dimension of a label.")
    beta: PositiveFloat = Field(3.0, description="β: norm of a pattern.")
    kappa: NonNegativeFloat = Field(
        0.5, description="Range of κ ~ U(−kappa, kappa), the weight of a token's irrelevant pattern."
    )
    odr: int = Field(
        3, ge=3, description="M1': out-of-domain relevant patterns, at least 3: a task's two and another. M1 >= 2 M1'."
    )
    alpha: float = Field(0.8, description="Share of a prompt's examples that share the query's relevant pattern.")
    length: PositiveInt = Field(20, description="l_tr: examples of a training prompt.")
    tasks: PositiveInt = Field(12, description="Training tasks of the M1 (M1 − 1).")
    batch: PositiveInt = Field(256, description="Prompts of an SGD step.")
    rate: PositiveFloat = Field(0.1, description="Step size of SGD.")
    delta: float = Field(0.2, description="W_Q, W_K and W_V start as this times the identity.")
    neurons: PositiveInt = Field(100, description="m: neurons of the hidden layer.")
    std: PositiveFloat = Field(0.02, description="Standard deviation at which W_O starts.")
    iterations: PositiveInt = Field(600, description="SGD steps.")
    models: PositiveInt = Field(10, description="Models trained, with different seeds.")
    pruning_beta: PositiveFloat = Field(1.0, description="β of the pruned models, whose neurons fall into tiers.")
    pruning_rate: PositiveFloat = Field(0.3, description="Step size of SGD of the pruned models.")
    pruning_iterations: PositiveInt = Field(1500, description="SGD steps of the pruned models.")
    prompts: PositiveInt = Field(4000, description="Test prompts for each model.")
    lengths: tuple[PositiveInt, ...] = Field(
        (2, 4, 6, 8, 10, 15, 20, 30, 40), min_length=1, description="Context lengths in testing, in increasing order."
    )
    classical_prompts: PositiveInt = Field(100, description="Test prompts of the comparison with classical methods.")
    rate_alphas: tuple[float, ...] = Field((0.3, 0.45, 0.65, 1.0), min_length=1, description="α of the study of rates.")
    rate_betas: tuple[PositiveFloat, ...] = Field(
        (2.0, 2.3, 2.6, 3.0), min_length=1, description="β of the study of rates."
    )
    rate_patterns: tuple[PositiveInt, ...] = Field(
        (4, 6, 9, 13, 20), min_length=3, description="M1 of the study of scaling: three or more, each at least 4."
    )
    rate_models: PositiveInt = Field(
        5, description="Models for each value of the studies of rates, scaling, tasks and required examples."
    )
    rate_iterations: int = Field(600, ge=AVERAGED_STEPS, description="SGD steps of the studies of rates and scaling.")
    test_alphas: tuple[float, ...] = Field(
        (0.35, 0.5, 0.7, 1.0), min_length=1, description="α' of the study of required test examples."
    )
    train_alphas: tuple[float, ...] = Field(
        (0.12, 0.18, 0.27, 0.4), min_length=1, description="α of the study of required training examples."
    )
    train_lengths: tuple[PositiveInt, ...] = Field(
        (2, 3, 4, 6, 9, 13, 20),
        min_length=1,
        description="l_tr of the study of required training examples, in increasing order.",
    )
    deep_models: PositiveInt = Field(5, description="Models of three layers.")
    deep_batch: PositiveInt = Field(32, description="Prompts of a training step of the three-layer models.")
    deep_iterations: PositiveInt = Field(1000, description="Training steps of the three-layer models.")
    deep_rate: PositiveFloat = Field(1e-3, description="Learning rate of the three-layer models.")

    @field_validator("alpha", "rate_alphas", "test_alphas", "train_alphas")
    @classmethod
    def _fraction(cls, value: float | tuple[float, ...], info: ValidationInfo) -> float | tuple[float, ...]:
        check_fraction(str(info.field_name), value)
        return value

    @field_validator("lengths", "train_lengths")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        check_lengths(value)
        return value

    @model_validator(mode="after")
    def _fits(self) -> IclConfig:
        tasks(self.M1, self.tasks)
        for patterns in self.rate_patterns:
            tasks(patterns, 2 * patterns)
        out_of_domain(np.random.default_rng(0), self.data(), self.odr, 1.0, "mean")
        return self

    def data(self, beta: float | None = None) -> Data:
        return Data(self.M1, self.M2, self.d, self.d_y, beta or self.beta, self.kappa)

    def setting(
        self, alphas: Tensor, count: int | None = None, beta: float | None = None, rate: float | None = None
    ) -> Setting:
        """Training at ``alphas`` [R], on ``count`` tasks, with another ``beta`` or ``rate`` than the config's."""
        pairs, _ = tasks(self.M1, count or self.tasks)
        lengths = torch.full((len(alphas),), self.length)
        return Setting(
            self.data(beta),
            alphas,
            lengths,
            pairs,
            self.batch,
            self.rate if rate is None else rate,
            self.delta,
            self.neurons,
            self.std,
        )


def trained(config: IclConfig, run: Run, pruning: bool = False, chunk: int = 100) -> tuple[Models, list[Result]]:
    """The models that figures share and the rows recorded during training; ``pruning``: those that are pruned."""
    alphas = torch.full((config.models,), config.alpha)
    if pruning:
        setting = config.setting(alphas, beta=config.pruning_beta, rate=config.pruning_rate)
    else:
        setting = config.setting(alphas)
    iterations = config.pruning_iterations if pruning else config.iterations

    def train_chunk(state: Result, begin: int, end: int) -> Result:
        rows: list[Result] = []

        def record(step: int, models: Models, loss: Tensor) -> None:
            if step % 20 == 0 or step == iterations - 1:
                rows.append({"step": step, "loss": loss.tolist()} | _mechanism(config, run, setting.data, models))
                run.metrics({"step": step, "hinge": float(loss.mean())})

        models = Models(*state["parameters"])
        models = train(models, setting, lambda step: run.derive_seed(1, pruning, step), begin, end, record)
        return {"parameters": list(models.parameters), "rows": rows}

    start: Result = {"parameters": list(Models.start(setting, run.derive_seed(0, pruning)).parameters)}
    prefix = "pruning-models" if pruning else "models"
    state, rows = train_in_chunks(run, prefix, "training", iterations, chunk, start, train_chunk)
    return Models(*state["parameters"]), rows


def _mechanism(config: IclConfig, run: Run, data: Data, models: Models) -> Result:
    """Query norms and attention of each model on one out-of-domain set of prompts, and the angles of its neurons."""
    domain = out_of_domain(run.rng(2), data, config.odr, 1.0, "orthonormal")
    batch = prompts_of(run, data, _all_pairs(config.odr), config.alpha, config.length, 200, 0, config.odr)
    tokens, same = domain.tokens(batch, data)[0], batch.relevant[0, :, :-1] == batch.relevant[0, :, -1:]
    patterns = torch.nn.functional.pad(domain.relevant, (0, data.d_y))
    neurons = models.neurons
    mean = torch.nn.functional.normalize(torch.ones(data.M1), dim=0)
    large = neurons.norm(dim=-1).argsort(-1)[:, -neurons.shape[1] // 5 :]
    top = neurons.gather(1, large[..., None].expand(-1, -1, data.width))
    x, y = top[..., : data.d], top[..., data.d :]
    to_mean = torch.arccos((x[..., : data.M1] @ mean / x.norm(dim=-1)).clamp(-1, 1))
    to_label = torch.arccos((y[..., 0] / y.norm(dim=-1)).abs().clamp(-1, 1))
    return {
        "query_norm": (patterns @ models.Q.mT).norm(dim=-1).mean(-1).tolist(),
        "attention": [float((attention(models.single(i), tokens) * same).sum(1).mean()) for i in range(len(models.Q))],
        "angle_to_mean": to_mean.mean(-1).tolist(),
        "angle_to_label": to_label.mean(-1).tolist(),
    }


def prompts_of(
    run: Run, data: Data, pairs: Tensor, alpha: float, length: int, count: int, key: int, relevant: int = 0
) -> Batch:
    generator = torch.Generator().manual_seed(run.derive_seed(3, key))
    return draw(generator, data, pairs, torch.tensor([length]), torch.tensor([alpha]), count, relevant)


def evaluate(
    config: IclConfig, run: Run, models: Models, data: Data, place: str, alpha: float, key: int, s1: float = 1.0
) -> dict[str, np.ndarray]:
    """0/1 error and hinge loss [models, lengths], each model on different prompts.

    ``place``: "unseen" for in-domain tasks; "mean" or "orthonormal" out of domain (see `out_of_domain`).
    """
    wrong, loss = [], []
    for i in range(len(models.Q)):
        run.stop_if_asked()
        domain, pairs, relevant = place_of(config, run, data, place, s1, i)
        batch = prompts_of(run, data, pairs, alpha, max(config.lengths), config.prompts, 1000 * key + i, relevant)
        label = batch.label[0, :, -1:]
        outputs = prefix_outputs(models.single(i), domain.tokens(batch, data)[0], list(config.lengths))
        wrong.append(misclassified(outputs, label).mean(0).numpy())
        loss.append(hinge(outputs, label).mean(0).numpy())
    return {"error": np.array(wrong), "hinge": np.array(loss)}


def place_of(config: IclConfig, run: Run, data: Data, place: str, s1: float, model: int) -> tuple[Domain, Tensor, int]:
    if place == "unseen":
        return in_domain(data), tasks(config.M1, config.tasks)[1], 0
    return out_of_domain(run.rng(4, model), data, config.odr, s1, place), _all_pairs(config.odr), config.odr


def _all_pairs(patterns: int) -> Tensor:
    """Every ordered pair (a, b) of different patterns [P(P−1), 2]."""
    return torch.tensor(list(itertools.permutations(range(patterns), 2)))
