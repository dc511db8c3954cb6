"""A 3-layer transformer on chain-of-thought prompts."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from theory import layers as deep
from theory.cot.data import TrainingBatch, training_batch, training_steps
from theory.cot.experiment import CotConfig
from theory.cot.model import columns, queries
from theory.lab import Result, band
from theory.training import train_in_chunks
from training.run import Run


def layers(config: CotConfig, run: Run, chunk: int = 50) -> Result:
    """A 3-layer, 2-head transformer on shorter prompts: each layer's attention on the same step and pattern."""
    shape, size = deep.Shape(2 * config.d, config.M), config.deep_models
    draw_batch, sample_of = sampler(config, run), sample_reader(config)
    same = torch.empty(0)  # the last batch's, for `record`

    def sample(step: int) -> deep.Sample:
        nonlocal same
        batch = draw_batch(step)
        same = batch.same & (batch.step == batch.query_step[..., None]) & batch.live
        return sample_of(batch)

    def train_chunk(state: Result, begin: int, end: int) -> Result:
        rows: list[Result] = []

        def record(step: int, loss: Tensor, attention: Tensor) -> None:
            if step % 20 == 0:
                shares = (attention[..., :-1] * same[:, None]).sum(-1).mean(-1)  # [R, layers]
                rows.append({"step": step, "loss": loss.tolist(), "same": shares.tolist()})
                run.stop_if_asked()

        return deep.train(shape, state, sample, half_squares, begin, end, record, config.deep_rate) | {"rows": rows}

    start: Result = {"parameters": deep.start(shape, size, run.derive_seed(9)), "adam": {}}
    _, rows = train_in_chunks(run, "layers", "training three layers", config.deep_iterations, chunk, start, train_chunk)
    shares = np.array([row["same"] for row in rows])  # [T, R, layers]
    return {
        "step": [row["step"] for row in rows],
        "loss": band([row["loss"] for row in rows], axis=1),
        "layers": [band(shares[:, :, layer], axis=1) for layer in range(shape.layers)],
    }


def sampler(config: CotConfig, run: Run) -> Callable[[int], TrainingBatch]:
    """The training batch of each step, for all models."""
    size = config.deep_models
    alphas, lengths = torch.full((size,), config.alpha), torch.full((size,), config.deep_length)
    transitions, generator = training_steps(run.derive_seed(7), config.M), torch.Generator()

    def draw(step: int) -> TrainingBatch:
        generator.manual_seed(run.derive_seed(8, step))
        return training_batch(generator, transitions, config.steps, lengths, alphas, config.deep_batch)

    return draw


def sample_reader(config: CotConfig) -> Callable[[TrainingBatch], deep.Sample]:
    """Of a batch, tokens [R, B, L, 2d] with the query last, the live columns [R, B, L], and target patterns [R, B]."""
    query_columns = queries(config.d, config.M, config.steps).T

    def read(batch: TrainingBatch) -> deep.Sample:
        query = query_columns[batch.query_step * config.M + batch.query][:, :, None]
        live = torch.cat([batch.live, torch.ones_like(batch.live[..., :1])], dim=-1)
        return torch.cat([columns(batch, config.d, config.M), query], dim=2), live, batch.target

    return read


def half_squares(output: Tensor, target: Tensor) -> Tensor:
    """½‖z − f‖² [R] of outputs [R, B, M] and target patterns [R, B]."""
    return 0.5 * ((torch.nn.functional.one_hot(target, output.shape[-1]) - output) ** 2).sum(-1).mean(-1)
