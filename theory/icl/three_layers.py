"""A 3-layer transformer on in-context classification."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from theory import layers as deep
from theory.icl.data import Batch, draw, in_domain, tasks
from theory.icl.experiment import IclConfig, place_of, prompts_of
from theory.icl.model import hinge, misclassified
from theory.lab import Result, band
from theory.training import train_in_chunks
from training.run import Run

# Where models are tested: unseen tasks of the domain, and out of it at each sum S_1 of coefficients.
PLACES = {"unseen": ("unseen", 1.0)} | {f"s1_{value:g}": ("mean", value) for value in (0.5, 0.7, 0.9, 1.1, 1.3)}
S1_READINGS = [4.5e-2, 2.5e-2, 1.4e-2, 3.5e-3, 2e-3]  # by eye, context 20, S_1 of .5, .7, .9, 1.1, 1.3


def layers(config: IclConfig, run: Run, chunk: int = 50) -> Result:
    """A 3-layer, 2-head transformer on the same prompts: errors on unseen tasks and out of domain."""
    shape, sample = deep.Shape(config.data().width, 1), sampler(config, run)

    def train_chunk(state: Result, begin: int, end: int) -> Result:
        losses: list[list[float]] = []

        def record(step: int, loss: Tensor, attention: Tensor) -> None:
            losses.append(loss.tolist())
            run.stop_if_asked()

        return deep.train(shape, state, sample, mean_hinge, begin, end, record, config.deep_rate) | {"rows": losses}

    start: Result = {"parameters": deep.start(shape, config.deep_models, run.derive_seed(61)), "adam": {}}
    state, losses = train_in_chunks(
        run, "layers", "training three layers", config.deep_iterations, chunk, start, train_chunk
    )
    loss = np.array(losses).T  # [R, T]
    result: Result = {"step": np.arange(loss.shape[1])[::10], "loss": band(loss[:, ::10]), "places": {}}
    for place in PLACES:
        result["places"][place] = _deep_errors(config, run, shape, state["parameters"], place)
    return result | {"readings": S1_READINGS}


def sampler(config: IclConfig, run: Run) -> Callable[[int], deep.Sample]:
    """The training batch of each step: tokens [models, B, L, width], all of them live, and labels [models, B]."""
    data, size = config.data(), config.deep_models
    pairs, lengths, alphas = tasks(config.M1, config.tasks)[0], torch.full((size,), config.length), config.alpha
    domain, generator = in_domain(data), torch.Generator()

    def sample(step: int) -> deep.Sample:
        generator.manual_seed(run.derive_seed(60, step))
        batch = draw(generator, data, pairs, lengths, torch.full((size,), alphas), config.deep_batch)
        tokens = domain.tokens(batch, data)
        return tokens, torch.ones(tokens.shape[:3], dtype=torch.bool), batch.label[..., -1]

    return sample


def mean_hinge(output: Tensor, label: Tensor) -> Tensor:
    """[R] of outputs [R, B, 1] and labels [R, B] of ±1."""
    return hinge(output[..., 0], label).mean(-1)


def place_prompts(config: IclConfig, run: Run, place: str, model: int) -> tuple[Tensor, Batch]:
    """Tokens [B, L, width] of a model's prompts of the training length at ``place`` of ``PLACES``, and the batch."""
    data, (name, s1) = config.data(), PLACES[place]
    domain, pairs, relevant = place_of(config, run, data, name, s1, model)
    key = 1000 * (500 + list(PLACES).index(place)) + model
    batch = prompts_of(run, data, pairs, config.alpha, config.length, min(config.prompts, 2000), key, relevant)
    return domain.tokens(batch, data)[0], batch


def zero_one_error(output: Tensor, batch: Batch) -> float:
    """The share of outputs [B, 1] whose sign is not the query's label."""
    return float(misclassified(output[:, 0], batch.label[0, :, -1]).mean())


def _deep_errors(config: IclConfig, run: Run, shape: deep.Shape, parameters: dict[str, Tensor], place: str) -> Result:
    """0/1 error and attention of the query on its own pattern in each layer, at the training length."""
    errors, shares = [], []
    for i in range(config.deep_models):
        run.stop_if_asked()
        tokens, batch = place_prompts(config, run, place, i)
        with torch.no_grad():
            model = {name: parameter[i] for name, parameter in parameters.items()}
            output, attention = deep.forward(shape, model, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        errors.append(zero_one_error(output, batch))
        same = batch.relevant[0, :, :-1] == batch.relevant[0, :, -1:]
        shares.append((attention[..., :-1] * same).sum(-1).mean(-1).tolist())
    return {"error": band(errors), "attention": band(shares)}
