"""Your own transformer in the laboratories: batch jobs that train it on their prompts beside their own three layers.

``icl_job`` and ``cot_job`` take ``build(inputs, outputs)``, which gives a ``torch.nn.Module``. Its forward pass takes
tokens [B, L, inputs] and ``live`` [B, L], which columns exist, and gives [B, outputs], the answer for the last column.
Models of several seeds see the same prompts as the laboratory's own 3-layer models, and are trained by Adam alike.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
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
LabConfig = TypeVar("LabConfig", IclConfig, CotConfig)
Loss = Callable[[Tensor, Tensor], Tensor]
FRESH = 10**6  # the step whose batch no training sees


def icl_job(name: str, build: Build) -> Job[IclConfig]:
    """In-context classification (arXiv:2402.15607): training loss, and errors on unseen tasks and out of domain.

    ``own`` of the result is your model, ``three_layers`` the laboratory's.
    """
    summary = "An own transformer on in-context classification, beside three layers"
    config = _config_of(IclConfig, lambda config: build(*_icl_widths(config)))
    return Job(name=name, summary=summary, Config=config, run=partial(_run_icl, build))


def cot_job(name: str, build: Build) -> Job[CotConfig]:
    """Chain of thought (arXiv:2410.02167): training loss, and the share of next steps that are right on a fresh batch.

    ``own`` of the result is your model, ``three_layers`` the laboratory's training loss.
    """
    summary = "An own transformer on chains of thought, beside three layers"
    config = _config_of(CotConfig, lambda config: build(*_cot_widths(config)))
    return Job(name=name, summary=summary, Config=config, run=partial(_run_cot, build))


def _icl_widths(config: IclConfig) -> tuple[int, int]:
    """Inputs and outputs of a module."""
    return config.d + config.d_y, 1


def _cot_widths(config: CotConfig) -> tuple[int, int]:
    return 2 * config.d, config.M


def _config_of(config: type[LabConfig], build: Callable[[LabConfig], nn.Module]) -> type[LabConfig]:
    """The laboratory's config without studies, with a digest of the module: a folder goes on with the same one only."""

    class OwnConfig(config):  # type: ignore[misc, valid-type]
        transformer: str = Field(
            "", validate_default=True, description="Digest of your module, computed: leave it out."
        )

        @field_validator("studies")
        @classmethod
        def _no_studies(cls, names: tuple[str, ...]) -> tuple[str, ...]:
            if names:
                raise ValueError("an own transformer has no studies: leave them out")
            return names

        @field_validator("transformer")
        @classmethod
        def _of_this_module(cls, value: str, info: ValidationInfo) -> str:
            digest = _digest(build(config.model_construct(**info.data)))
            if value not in ("", digest):
                raise ValueError("the config is of another module: leave out the field transformer")
            return digest

    return OwnConfig


def _digest(module: nn.Module) -> str:
    """SHA-256 of what ``module`` computes: its structure, plain attributes, and its classes outside PyTorch."""
    parts: list[object] = [repr(module), [(name, value.shape) for name, value in module.state_dict().items()]]
    for part in module.modules():
        if not type(part).__module__.startswith("torch."):
            plain_values = {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str | tuple)}
            parts += [plain_values, _source(type(part))]
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _source(kind: type) -> object:
    """The source of a class; the code of its methods where it was typed into a session and has no file."""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        codes = [value.__code__ for value in vars(kind).values() if inspect.isfunction(value)]
        return [(code.co_code, code.co_names, [c for c in code.co_consts if not inspect.iscode(c)]) for code in codes]


def _run_icl(build: Build, config: IclConfig, run: Run) -> Result:
    sample = icl.sampler(config, run)
    widths = _icl_widths(config)
    models, rows = _trained(config, run, build, widths, sample, icl.mean_hinge)
    places: Result = {}
    for place in icl.PLACES:
        errors = []
        for i, model in enumerate(models):
            tokens, batch = icl.place_prompts(config, run, place, i)
            live = torch.ones(tokens.shape[:2], dtype=torch.bool)
            errors.append(icl.zero_one_error(_answers(model, tokens, live, widths[1]), batch))
        places[place] = {"error": band(errors)}
    return plain({"own": training_curves(rows) | {"places": places}, "three_layers": icl.layers(config, run)})


def _run_cot(build: Build, config: CotConfig, run: Run) -> Result:
    draw_batch, sample_of = cot.sampler(config, run), cot.sample_reader(config)

    def sample(step: int) -> Sample:
        return sample_of(draw_batch(step))

    widths = _cot_widths(config)
    models, rows = _trained(config, run, build, widths, sample, cot.half_squares)
    tokens, live, target = sample(FRESH)
    right = [
        float((_answers(model, tokens[i], live[i], widths[1]).argmax(-1) == target[i]).float().mean())
        for i, model in enumerate(models)
    ]
    curves = training_curves(rows) | {"next_step_accuracy": band(right)}
    return plain({"own": curves, "three_layers": cot.layers(config, run)})


def _answers(model: nn.Module, tokens: Tensor, live: Tensor, outputs: int) -> Tensor:
    with torch.no_grad():
        return _forward(model.eval(), tokens, live, outputs)


def _forward(model: nn.Module, tokens: Tensor, live: Tensor, outputs: int) -> Tensor:
    answer: Tensor = model(tokens, live)
    expected = (len(tokens), outputs)
    if answer.shape != expected:
        raise ValueError(f"forward gave {list(answer.shape)}, give {list(expected)}: one row of outputs a prompt")
    return answer


def _trained(
    config: IclConfig | CotConfig,
    run: Run,
    build: Build,
    widths: tuple[int, int],
    sample: Callable[[int], Sample],
    loss_of: Loss,
    chunk: int = 50,
) -> tuple[Sequence[nn.Module], list[Result]]:
    """``deep_models`` models after ``deep_iterations`` steps, saved every ``chunk`` steps, and their losses."""
    models = []
    for i in range(config.deep_models):
        torch.manual_seed(run.derive_seed(90, i))
        models.append(build(*widths))
    parameters = [parameter for model in models for parameter in model.parameters()]
    adam = torch.optim.Adam(parameters, lr=config.deep_rate)

    def train(state: Result, begin: int, end: int) -> Result:
        _load(models, adam, state)
        rows: list[Result] = []
        for step in range(begin, end):
            torch.manual_seed(run.derive_seed(91, step))  # of dropout
            tokens, live, target = sample(step)
            answers = [_forward(model.train(), tokens[i], live[i], widths[1]) for i, model in enumerate(models)]
            outputs = torch.stack(answers)
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
