"""A chain-of-thought experiment: its config, the models that all test figures share, and their errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

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

from theory.cot.data import (
    SLIDES,
    Chain,
    TrainingBatch,
    chain_of,
    check_dimension,
    check_transitions,
    output_chain_of,
    training_steps,
)
from theory.cot.inference import attention_shares, cot_errors, draw_prompts, icl_errors
from theory.cot.model import Models, Setting, train
from theory.lab import LabConfig, Result, check_fraction, check_lengths
from theory.patterns import orthonormal_combinations
from theory.training import AVERAGED_STEPS, train_in_chunks
from training.run import Run

Transitions = tuple[tuple[tuple[float, ...], ...], ...]


class CotConfig(LabConfig):
    """Training, and testing where a figure does not vary it."""

    d: PositiveInt = Field(30, description="Dimension of patterns and position codes, which are orthogonal.")
    M: int = Field(20, ge=2, description="Training-relevant (TRR) patterns.")
    steps: PositiveInt = Field(2, description="K: reasoning steps.")
    alpha: float = Field(0.4, description="Share of a training prompt's examples that start from the query's pattern.")
    length: PositiveInt = Field(20, description="l_tr: examples of a training prompt.")
    batch: PositiveInt = Field(200, description="Prompts of an SGD step.")
    rate: PositiveFloat = Field(1.0, description="Step size of SGD.")
    delta: float = Field(0.3, description="W_Q and W_K start as this times the identity.")
    iterations: PositiveInt = Field(1000, description="SGD steps.")
    models: PositiveInt = Field(10, description="Models trained, with different seeds.")
    patterns: int = Field(10, ge=3, description="M': testing-relevant (TSR) patterns.")
    coefficient_sum: float = Field(1.0, description="What the coefficients of a TSR pattern sum to.")
    noise: NonNegativeFloat = Field(0.1, description="Norm of the random vector that is added to a state in testing.")
    test_alpha: float = Field(
        0.6,
        description="α' where a figure does not vary it: as alpha, in testing. The studies condition and matrices take "
        ".8.",
    )
    tau: float = Field(
        0.4, gt=0, le=1, description="τ where a figure does not vary it: the probability of the correct chain of steps."
    )
    rho: float = Field(
        0.8,
        ge=0,
        le=1,
        description="ρ where a figure does not vary it: by which share a step's runner-up is below its likeliest "
        "state.",
    )
    tau_o: float = Field(
        0.4, gt=0, le=1, description="τ_o where a figure does not vary it: as τ, of the product of the steps."
    )
    rho_o: float = Field(
        0.5, ge=0, le=1, description="ρ_o where a figure does not vary it: as ρ, of the product of the steps."
    )
    prompts: PositiveInt = Field(2000, description="Test prompts for each model.")
    required_prompts: PositiveInt = Field(
        500, description="Test prompts for each model in the study of required examples."
    )
    lengths: tuple[int, ...] = Field(
        (2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100),
        min_length=1,
        description="Numbers of examples of a test prompt, in increasing order.",
    )
    transitions: Transitions = Field(
        tuple(map(lambda A: tuple(map(tuple, A)), SLIDES.matrices)), description="The matrices of the study matrices."
    )
    rate_alphas: tuple[float, ...] = Field(
        (0.1, 0.15, 0.25, 0.4, 0.65), min_length=1, description="α of the study of rates."
    )
    rate_models: PositiveInt = Field(5, description="Models for each α, K or M of the studies of rates and scaling.")
    rate_iterations: int = Field(2000, ge=AVERAGED_STEPS, description="SGD steps of the study of rates.")
    rate_steps: tuple[PositiveInt, ...] = Field((1, 2, 3, 4, 6), min_length=1, description="K of the study of scaling.")
    rate_patterns: tuple[Annotated[int, Field(ge=2)], ...] = Field(
        (5, 10, 20, 40), min_length=1, description="M of the study of scaling."
    )
    scaling_iterations: int = Field(800, ge=AVERAGED_STEPS, description="SGD steps of the study of scaling.")
    deep_models: PositiveInt = Field(5, description="Models of three layers.")
    deep_length: PositiveInt = Field(10, description="Examples of a training prompt of the three-layer models.")
    deep_batch: PositiveInt = Field(32, description="Prompts of a training step of the three-layer models.")
    deep_iterations: PositiveInt = Field(1500, description="Training steps of the three-layer models.")
    deep_rate: PositiveFloat = Field(1e-3, description="Learning rate of the three-layer models.")

    @field_validator("alpha", "test_alpha", "rate_alphas")
    @classmethod
    def _fraction(cls, value: float | tuple[float, ...], info: ValidationInfo) -> float | tuple[float, ...]:
        check_fraction(str(info.field_name), value)
        return value

    @field_validator("lengths")
    @classmethod
    def _increasing(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        check_lengths(value)
        return value

    @field_validator("transitions")
    @classmethod
    def _distributions(cls, value: Transitions) -> Transitions:
        check_transitions(np.array(value))
        return value

    @model_validator(mode="after")
    def _fits(self) -> CotConfig:
        check_dimension(self.d, self.M, self.steps)
        orthonormal_combinations(np.random.default_rng(0), self.M, self.patterns, self.coefficient_sum)
        self.chain()
        self.output_chain()
        return self

    def setting(self, alphas: Tensor) -> Setting:
        lengths = torch.full((len(alphas),), self.length)
        return Setting(alphas, lengths, self.d, self.M, self.steps, self.batch, self.rate, self.delta)

    def chain(self, tau: float | None = None, rho: float | None = None) -> Chain:
        return chain_of(tau or self.tau, rho or self.rho, self.patterns, self.steps)

    def output_chain(self, tau_o: float | None = None, rho_o: float | None = None) -> Chain:
        return output_chain_of(tau_o or self.tau_o, rho_o or self.rho_o, self.patterns, self.steps)


def trained(config: CotConfig, run: Run, chunk: int = 100) -> tuple[Models, list[Result]]:
    """The models that all test figures share, and the rows recorded during training; saved every ``chunk`` steps."""
    setting = config.setting(torch.full((config.models,), config.alpha))
    attention_of = _attention_recorder(config, run)

    def train_chunk(state: Result, begin: int, end: int) -> Result:
        rows: list[Result] = []

        def record(step: int, models: Models, loss: Tensor, batch: TrainingBatch) -> None:
            if step % 20 == 0 or step == config.iterations - 1:
                rows.append({"step": step, "loss": loss.tolist()} | attention_of(models))
                run.metrics({"step": step, "loss": float(loss.mean())})

        steps = training_steps(run.derive_seed(0), config.M)
        models = Models(state["Q"], state["K"])
        models = train(models, setting, steps, lambda step: run.derive_seed(1, step), begin, end, record)
        return {"Q": models.Q, "K": models.K, "rows": rows}

    start = Models.start(setting)
    state, rows = train_in_chunks(
        run, "models", "training", config.iterations, chunk, {"Q": start.Q, "K": start.K}, train_chunk
    )
    return Models(state["Q"], state["K"]), rows


def _attention_recorder(config: CotConfig, run: Run) -> Callable[[Models], Result]:
    """A function that gives the attention shares of all models on testing prompts of the training length."""
    generator = torch.Generator().manual_seed(run.derive_seed(2))
    chain, patterns = config.chain(), _patterns(config, run, 0)
    prompts = draw_prompts(generator, chain, patterns, config.alpha, config.length, 200, config.noise)

    def attention_of(models: Models) -> Result:
        shares = [attention_shares(product, prompts, patterns, config.M) for product in models.product]
        return {name: [share[name] for share in shares] for name in shares[0]}

    return attention_of


def _patterns(config: CotConfig, run: Run, model: int, count: int | None = None) -> Tensor:
    """One model's testing patterns [M', d]."""
    coefficients = orthonormal_combinations(
        run.rng(3, model), config.M, count or config.patterns, config.coefficient_sum
    )
    return torch.as_tensor(np.pad(coefficients, ((0, 0), (0, config.d - config.M))), dtype=torch.float32)


def evaluate(
    config: CotConfig,
    run: Run,
    models: Models,
    kind: str,
    chain: Chain,
    alpha: float,
    lengths: tuple[int, ...],
    key: int,
) -> np.ndarray:
    """Errors [models, lengths] of ``kind`` ("cot" or "icl"), each model on different prompts."""
    errors = cot_errors if kind == "cot" else icl_errors
    rows = []
    for i, product in enumerate(models.product):
        run.stop_if_asked()
        patterns = _patterns(config, run, i, chain.patterns)
        generator = torch.Generator().manual_seed(run.derive_seed(4, key, i))
        parts, prompts_done = [], 0
        while prompts_done < config.prompts:
            count = min(250, config.prompts - prompts_done)
            prompts = draw_prompts(generator, chain, patterns, alpha, max(lengths), count, config.noise)
            parts.append(count * errors(product, prompts, chain, patterns, config.M, list(lengths)).numpy())
            prompts_done += count
        rows.append(np.sum(parts, axis=0) / config.prompts)
    return np.array(rows)
