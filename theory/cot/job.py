"""`iro run theory.cot`: how a nonlinear transformer learns chain-of-thought (arXiv:2410.02167)."""

from __future__ import annotations

from typing import Any

from theory.cot.experiment import CotConfig
from theory.cot.studies import STUDIES
from theory.lab import lab

SMOKE: dict[str, Any] = {
    "models": 5,
    "iterations": 800,
    "prompts": 250,
    "required_prompts": 200,
    "lengths": (5, 20, 50, 100),
    "rate_alphas": (0.2, 0.4, 0.6),
    "rate_models": 2,
    "rate_iterations": 600,
    "rate_steps": (1, 2, 3),
    "rate_patterns": (5, 10, 15),
    "scaling_iterations": 400,
    "deep_models": 2,
    "deep_iterations": 10,
}

JOB = lab(
    name="theory.cot",
    summary="Chain of thought by an attention-only transformer: mechanism, test error, Condition 1, rates",
    config=CotConfig,
    studies=STUDIES,
    presets={"smoke": SMOKE, "two-cores": {}},
    minutes=lambda config: 0.3 + config.models * (config.iterations / 30_000 + config.prompts / 3000),
    page=(
        "Training nonlinear transformers for chain-of-thought",
        "Bands are 95 % intervals over trained models. Computed once by <code>iro run theory.cot</code>.",
    ),
    gallery=("attention", "alpha", "condition", "required", "scaling", "layers"),
)
