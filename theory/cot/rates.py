"""SGD steps to a training loss against α, K and M; the theorem has T = Θ(α⁻²K³ + MK(α⁻¹ + ε⁻¹))."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from theory.cot.data import TrainingBatch, training_steps
from theory.cot.experiment import CotConfig
from theory.cot.model import Models, Setting, train
from theory.lab import Result, band, loglog, required_fit
from theory.training import steps_to_level
from training.run import Run

LEVEL = 0.03  # of the training loss
CHUNK = 200  # steps


def rates(config: CotConfig, run: Run) -> Result:
    """Against α, all α and seeds trained as one batch."""
    alphas = torch.tensor(config.rate_alphas).repeat_interleave(config.rate_models)
    curve = _loss_curve(run, "rates", config.setting(alphas), (5, 6), config.rate_iterations)
    needed = steps_to_level(curve, LEVEL).reshape(len(config.rate_alphas), -1).T.numpy()
    grouped = curve[::20].reshape(-1, len(config.rate_alphas), config.rate_models)
    return {
        "alphas": config.rate_alphas,
        "level": LEVEL,
        "needed": band(needed),
        "slope": loglog(config.rate_alphas, needed),
        "expected": -2,
        "step": np.arange(0, config.rate_iterations, 20),
        "loss": [band(grouped[:, i].numpy(), axis=1) for i in range(len(config.rate_alphas))],
    }


def scaling(config: CotConfig, run: Run) -> Result:
    """Against the number of steps K of a task and the number of patterns M, each beside its exponent in the theorem's
    term that grows fastest with it. d is the same for all."""
    d = max(config.d, max(config.rate_steps) + config.M, config.steps + max(config.rate_patterns))
    values = {"K": config.rate_steps, "M": config.rate_patterns}
    fits = {}
    for key, (name, expected) in enumerate({"K": 3, "M": 1}.items()):
        needed = []
        for value in values[name]:
            varied = config.model_copy(update={"d": d, {"K": "steps", "M": "M"}[name]: value})
            setting = varied.setting(torch.full((config.rate_models,), config.alpha))
            seeds = (20 + 10 * key + value, 40 + 10 * key + value)
            curve = _loss_curve(run, f"scaling-{name}-{value}", setting, seeds, config.scaling_iterations)
            needed.append(steps_to_level(curve, LEVEL).numpy())
        fits[name] = required_fit(values[name], np.array(needed).T, expected, "steps")
    return {"error": LEVEL, "fits": fits}


def _loss_curve(run: Run, name: str, setting: Setting, seeds: tuple[int, int], iterations: int) -> Tensor:
    """Training losses [iterations, R], saved every CHUNK steps. ``seeds``: keys of the transitions and the prompts."""
    transitions = training_steps(run.derive_seed(seeds[0]), setting.M)

    def train_chunk(begin: int, models: Models) -> Result:
        losses: list[Tensor] = []

        def record(step: int, models: Models, loss: Tensor, batch: TrainingBatch) -> None:
            losses.append(loss)

        end = min(begin + CHUNK, iterations)
        models = train(models, setting, transitions, lambda s: run.derive_seed(seeds[1], s), begin, end, record)
        return {"Q": models.Q, "K": models.K, "losses": torch.stack(losses)}

    models, parts = Models.start(setting), []
    for begin in range(0, iterations, CHUNK):
        saved = run.step(f"{name}-{begin}", partial(train_chunk, begin, models))
        models = Models(saved["Q"], saved["K"])
        parts.append(saved["losses"])
    return torch.cat(parts)
