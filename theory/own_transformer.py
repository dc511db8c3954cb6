"""Your own transformer in the laboratories: batch jobs that train it on their prompts beside their own three layers.

``icl_job`` and ``cot_job`` take ``build(inputs, outputs)``, which gives a ``torch.nn.Module``. Its forward pass takes
tokens [B, L, inputs] and ``live`` [B, L], which columns exist, and gives [B, outputs], the answer for the last column.
Models of several seeds see the same prompts as the laboratory's own 3-layer models, and are trained by Adam alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from theory.cot import three_layers as cot
from theory.cot.experiment import CotConfig
from theory.icl import three_layers as icl
from theory.icl.experiment import IclConfig
from theory.lab import Result, band, plain
from theory.layers import Sample
from theory.training import train_in_chunks, training_curves
from training.run import Job, Run

Build = Callable[[int, int], nn.Module]
Loss = Callable[[Tensor, Tensor], Tensor]
FRESH = 10**6  # the step whose batch no training sees


def icl_job(name: str, build: Build) -> Job[IclConfig]:
    """In-context classification (arXiv:2402.15607): training loss, and errors on unseen tasks and out of domain.

    ``own`` of the result is your model, ``three_layers`` the laboratory's.
    """
    summary = "An own transformer on in-context classification, beside three layers"
    return Job(name=name, summary=summary, Config=IclConfig, run=partial(_run_icl, build))


def cot_job(name: str, build: Build) -> Job[CotConfig]:
    """Chain of thought (arXiv:2410.02167): training loss, and the share of next steps that are right on a fresh batch.

    ``own`` of the result is your model, ``three_layers`` the laboratory's training loss.
    """
    summary = "An own transformer on chains of thought, beside three layers"
    return Job(name=name, summary=summary, Config=CotConfig, run=partial(_run_cot, build))


def _run_icl(build: Build, config: IclConfig, run: Run) -> Result:
    sample = icl.sampler(config, run)
    models, rows = _trained(config, run, partial(build, config.data().width, 1), sample, icl.mean_hinge)
    places: Result = {}
    for place in icl.PLACES:
        errors = []
        for i, model in enumerate(models):
            tokens, batch = icl.place_prompts(config, run, place, i)
            live = torch.ones(tokens.shape[:2], dtype=torch.bool)
            errors.append(icl.zero_one_error(_answers(model, tokens, live), batch))
        places[place] = {"error": band(errors)}
    return plain({"own": training_curves(rows) | {"places": places}, "three_layers": icl.layers(config, run)})


def _run_cot(build: Build, config: CotConfig, run: Run) -> Result:
    draw_batch, sample_of = cot.sampler(config, run), cot.sample_reader(config)

    def sample(step: int) -> Sample:
        return sample_of(draw_batch(step))

    models, rows = _trained(config, run, partial(build, 2 * config.d, config.M), sample, cot.half_squares)
    tokens, live, target = sample(FRESH)
    right = [
        float((_answers(model, tokens[i], live[i]).argmax(-1) == target[i]).float().mean())
        for i, model in enumerate(models)
    ]
    curves = training_curves(rows) | {"next_step_accuracy": band(right)}
    return plain({"own": curves, "three_layers": cot.layers(config, run)})


def _answers(model: nn.Module, tokens: Tensor, live: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(tokens, live)


def _trained(
    config: IclConfig | CotConfig,
    run: Run,
    build: Callable[[], nn.Module],
    sample: Callable[[int], Sample],
    loss_of: Loss,
    chunk: int = 50,
) -> tuple[Sequence[nn.Module], list[Result]]:
    """``deep_models`` models after ``deep_iterations`` steps, saved every ``chunk`` steps, and their losses."""
    models = []
    for i in range(config.deep_models):
        torch.manual_seed(run.derive_seed(90, i))
        models.append(build())
    parameters = [parameter for model in models for parameter in model.parameters()]
    adam = torch.optim.Adam(parameters, lr=config.deep_rate)

    def train(state: Result, begin: int, end: int) -> Result:
        _load(models, adam, state)
        rows: list[Result] = []
        for step in range(begin, end):
            torch.manual_seed(run.derive_seed(91, step))  # of dropout
            tokens, live, target = sample(step)
            outputs = torch.stack([model.train()(*row) for model, *row in zip(models, tokens, live, strict=True)])
            losses = loss_of(outputs, target)
            adam.zero_grad()
            losses.sum().backward()  # models share no parameters
            adam.step()
            if step % 20 == 0:
                rows.append({"step": step, "loss": losses.tolist()})
                run.metrics({"step": step, "loss": float(np.mean(losses.tolist()))})
                run.stop_if_asked()
        return _state(models, adam) | {"rows": rows}

    start = _state(models, adam)
    description = "training the own transformer"
    state, rows = train_in_chunks(run, "own", description, config.deep_iterations, chunk, start, train)
    _load(models, adam, state)
    return models, rows


def _state(models: Sequence[nn.Module], adam: torch.optim.Adam) -> Result:
    """A copy that later steps do not change."""
    weights = [{name: value.clone() for name, value in model.state_dict().items()} for model in models]
    return {"models": weights, "adam": adam.state_dict()}


def _load(models: Sequence[nn.Module], adam: torch.optim.Adam, state: Result) -> None:
    for model, weights in zip(models, state["models"], strict=True):
        model.load_state_dict(weights)
    adam.load_state_dict(state["adam"])
