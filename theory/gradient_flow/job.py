"""`iro run theory.gradient_flow`: gradient flows of linear in-context learning (arXiv:2412.16683)."""

from __future__ import annotations

from theory.gradient_flow.studies import STUDIES, GradientFlowConfig
from theory.lab import lab

JOB = lab(
    name="theory.gradient_flow",
    summary="Gradient flows of linear in-context learning: invariants, critical points, escape, SGD",
    config=GradientFlowConfig,
    studies=STUDIES,
    presets={"smoke": {"starts": 80, "grid": 31, "prompts": 100_000, "repeats": 10, "patience": 40.0}, "two-cores": {}},
    minutes=lambda config: 1.5 if config.grid > 40 else 0.5,
    page=(
        "Gradient flows of linear in-context learning",
        "Each curve was computed once by <code>iro run theory.gradient_flow</code>; the sliders choose among them.",
    ),
    gallery=("flows", "critical", "phase", "escape", "sgd", "general"),
)
