"""The alignment job, as ``iro run align`` and the server's workers find it."""

from __future__ import annotations

from typing import Any

from training.iro.config import AlignConfig
from training.run import Job, Run


def run(config: AlignConfig, run: Run) -> dict[str, Any]:
    from iro_server.engines.embedded import EmbeddedEngine
    from training.iro.loop import align

    with EmbeddedEngine(config.model_dir, name=config.model_name) as engine:
        return align(config, run, engine)


def draw(folder: Any) -> None:
    from training.iro.figures import draw

    draw(folder)


JOB = Job(
    name="align",
    summary="IRO: value functions, an iteration at a time, that steer a frozen model towards a grader's reward",
    Config=AlignConfig,
    run=run,
    presets={
        "smoke": {"iterations": 2, "rollouts_per_prompt": 8, "max_tokens": 16, "validation_prompts": 4},
        "paper": {"iterations": 3, "rollouts_per_prompt": 16, "validation_prompts": 32, "betas": (1.0, 1.0, 1.0)},
    },
    draw=draw,
)
