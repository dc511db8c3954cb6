"""`iro run theory.icl`: how a nonlinear transformer learns in context, and pruning (arXiv:2402.15607)."""

from __future__ import annotations

from typing import Any

from theory.icl.experiment import IclConfig
from theory.icl.studies import STUDIES
from theory.lab import lab

SMOKE: dict[str, Any] = {
    "models": 5,
    "iterations": 500,
    "pruning_iterations": 600,
    "prompts": 600,
    "lengths": (5, 10, 20),
    "classical_prompts": 10,
    "rate_alphas": (0.5, 0.7, 1.0),
    "rate_betas": (2.5, 2.75, 3.0),
    "rate_patterns": (4, 5, 6),
    "rate_models": 1,
    "rate_iterations": 300,
    "train_alphas": (0.4, 0.6, 0.9),
    "train_lengths": (2, 4),
    "deep_models": 2,
    "deep_iterations": 10,
}

JOB = lab(
    name="theory.icl",
    summary="In-context classification by attention and a ReLU layer: mechanism, domains, classical learners, pruning",
    config=IclConfig,
    studies=STUDIES,
    presets={"smoke": SMOKE, "two-cores": {}},
    minutes=lambda config: 0.3 + config.models * (config.iterations / 5000 + config.prompts / 8000),
    page=(
        "In-context learning and pruning",
        "Bands are 95 % intervals over trained models. Computed once by <code>iro run theory.icl</code>.",
    ),
    gallery=("mechanism", "unseen", "s1", "alpha", "pruning", "required"),
)
