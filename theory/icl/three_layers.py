"""A 3-layer transformer on in-context classification."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from theory import layers as deep
from theory.icl.data import draw, in_domain, tasks
from theory.icl.experiment import IclConfig, place_of, prompts_of
from theory.icl.model import hinge
from theory.lab import Result, band
from theory.training import train_in_chunks
from training.run import Run

S1_READINGS = [4.5e-2, 2.5e-2, 1.4e-2, 3.5e-3, 2e-3]  # by eye, context 20, S_1 of .5, .7, .9, 1.1, 1.3


def layers(config: IclConfig, run: Run, chunk: int = 50) -> Result:
    """A 3-layer, 2-head transformer on the same prompts: errors on unseen tasks and out of domain."""
    data, size = config.data(), config.deep_models
    shape, domain = deep.Shape(data.width, 1), in_domain(data)
    pairs, lengths, alphas = tasks(config.M1, config.tasks)[0], torch.full((size,), config.length), config.alpha
    generator = torch.Generator()

    def sample(step: int) -> deep.Sample:
        generator.manual_seed(run.derive_seed(60, step))
        batch = draw(generator, data, pairs, lengths, torch.full((size,), alphas), config.deep_batch)
        tokens = domain.tokens(batch, data)
        return tokens, torch.ones(tokens.shape[:3], dtype=torch.bool), batch.label[..., -1]

    def train_chunk(state: Result, begin: int, end: int) -> Result:
        losses: list[list[float]] = []

        def record(step: int, loss: Tensor, attention: Tensor) -> None:
            losses.append(loss.tolist())
            run.stop_if_asked()

        return deep.train(shape, state, sample, _mean_hinge, begin, end, record, config.deep_rate) | {"rows": losses}

    start: Result = {"parameters": deep.start(shape, size, run.derive_seed(61)), "adam": {}}
    state, losses = train_in_chunks(
        run, "layers", "training three layers", config.deep_iterations, chunk, start, train_chunk
    )
    loss = np.array(losses).T  # [R, T]
    result: Result = {"step": np.arange(loss.shape[1])[::10], "loss": band(loss[:, ::10]), "places": {}}
    places = [("unseen", 1.0), *(("mean", value) for value in (0.5, 0.7, 0.9, 1.1, 1.3))]
    for key, (place, value) in enumerate(places):
        name = place if place == "unseen" else f"s1_{value:g}"
        result["places"][name] = _deep_errors(config, run, shape, state["parameters"], place, value, key)
    return result | {"readings": S1_READINGS}


def _mean_hinge(output: Tensor, label: Tensor) -> Tensor:
    return hinge(output[..., 0], label).mean(-1)


def _deep_errors(
    config: IclConfig, run: Run, shape: deep.Shape, parameters: dict[str, Tensor], place: str, s1: float, key: int
) -> Result:
    """0/1 error and attention of the query on its own pattern in each layer, at the training length."""
    data, errors, shares = config.data(), [], []
    for i in range(config.deep_models):
        run.stop_if_asked()
        domain, pairs, relevant = place_of(config, run, data, place, s1, i)
        count = min(config.prompts, 2000)
        batch = prompts_of(run, data, pairs, config.alpha, config.length, count, 1000 * (500 + key) + i, relevant)
        tokens = domain.tokens(batch, data)[0]
        with torch.no_grad():
            model = {name: parameter[i] for name, parameter in parameters.items()}
            output, attention = deep.forward(shape, model, tokens, torch.ones(tokens.shape[:2], dtype=torch.bool))
        errors.append(float((output[:, 0] * batch.label[0, :, -1] <= 0).float().mean()))
        same = batch.relevant[0, :, :-1] == batch.relevant[0, :, -1:]
        shares.append((attention[..., :-1] * same).sum(-1).mean(-1).tolist())
    return {"error": band(errors), "attention": band(shares)}
