"""A chain-of-thought experiment: its config, the models that all test figures share, and their errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from pydantic import ValidationInfo, field_validator, model_validator
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
from theory.lab import LabConfig, Result, check_fraction
from theory.patterns import orthonormal_combinations
from theory.training import train_in_chunks
from training.run import Run

Transitions = tuple[tuple[tuple[float, ...], ...], ...]


class CotConfig(LabConfig):
    """Training: ``d``, ``M`` TRR patterns, ``steps`` K, ``alpha``, ``length`` l_tr, ``batch``, ``rate``, ``delta``.

    Testing: ``patterns`` M' TSR patterns whose coefficients sum to ``coefficient_sum``, ``noise`` (a norm), and the
    values ``test_alpha``, ``tau``, ``rho``, ``tau_o``, ``rho_o`` of the parameters that a figure does not vary.
    ``models``: the number trained, with different seeds. ``transitions``: the matrices of study "matrices".
    ``rate_steps``, ``rate_patterns``: K and M of study "scaling".
    """

    d: int = 30
    M: int = 20
    steps: int = 2
    alpha: float = 0.4
    length: int = 20
    batch: int = 200
    rate: float = 1.0
    delta: float = 0.3
    iterations: int = 1000
    models: int = 10
    patterns: int = 10
    coefficient_sum: float = 1.0
    noise: float = 0.1
    test_alpha: float = 0.6
    tau: float = 0.4
    rho: float = 0.8
    tau_o: float = 0.4
    rho_o: float = 0.5
    prompts: int = 2000
    required_prompts: int = 500
    lengths: tuple[int, ...] = (2, 5, 10, 15, 20, 30, 40, 50, 60, 80, 100)
    transitions: Transitions = tuple(map(lambda A: tuple(map(tuple, A)), SLIDES.matrices))
    rate_alphas: tuple[float, ...] = (0.1, 0.15, 0.25, 0.4, 0.65)
    rate_models: int = 5
    rate_iterations: int = 2000
    rate_steps: tuple[int, ...] = (1, 2, 3, 4, 6)
    rate_patterns: tuple[int, ...] = (5, 10, 20, 40)
    scaling_iterations: int = 800
    deep_models: int = 5
    deep_length: int = 10
    deep_batch: int = 32
    deep_iterations: int = 1500
    deep_rate: float = 1e-3

    @field_validator("alpha", "test_alpha")
    @classmethod
    def _fraction(cls, value: float, info: ValidationInfo) -> float:
        check_fraction(str(info.field_name), value)
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
