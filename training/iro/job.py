"""The alignment job, as ``iro run align`` and the server's workers find it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from training.iro.config import AlignConfig
from training.json_values import JsonObject
from training.run import Job, Run

if TYPE_CHECKING:
    from datasets import Dataset

    from iro_server.alignment.entry import AlignmentJob, DescribedModel
    from iro_server.alignment.placement import Placement
    from iro_server.engines.base import Engine
    from iro_server.engines.describe import Description
    from iro_server.graders.base import Grader


FROZEN_BEHAVIOUR = "answers as the frozen model, without values and tilt; keep_unproven would serve them"


def run(config: AlignConfig, run: Run) -> JsonObject:
    return with_improvement(config, run, _align(config, run))


def with_improvement(config: AlignConfig, run: Run, result: JsonObject) -> JsonObject:
    """``result`` of the job with ``improved``: whether the 95 % interval of the final check's gain is above 0.

    An event gives the gain and, where it is none, says how the model is served.
    """
    check = run.checks[0]
    got = str(check["got"]).replace("nan ± nan", "unknown")
    got = got.replace(" ± nan", ", of a single prompt, which gives no interval")
    gain = f"Gain: {got} ({check['name']})"
    if check["holds"]:
        run.emit("message", f"{gain}. The 95 % interval is above 0")
    else:
        served = "is served all the same, as keep_unproven demands" if config.keep_unproven else FROZEN_BEHAVIOUR
        run.emit("message", f"{gain}. The 95 % interval is not above 0. The aligned model {served}", level="warn")
    return result | {"improved": check["holds"]}


def _align(config: AlignConfig, run: Run) -> JsonObject:
    from iro_server.alignment.placement import Placement
    from iro_server.engines.describe import Description
    from iro_server.engines.endpoints import KEY_VARIABLE
    from iro_server.engines.opening import open_engine
    from iro_server.engines.prepare import prepare_model
    from training.iro.executor import LocalExecutor
    from training.iro.loop import align

    model_dir = config.model_dir or prepare_model()
    config = config.model_copy(update={"model_dir": model_dir})
    endpoints = config.endpoints(os.environ.get(KEY_VARIABLE))
    opening = partial(open_engine, model_dir, config.model_name, endpoints)
    placement = Placement()
    if placement.executor == "ray":
        return _on_ray(config, run, opening, placement)
    with closing(opening()) as engine:
        return align(config, run, Description.of_engine(engine), LocalExecutor(engine, model_dir))


def _on_ray(config: AlignConfig, run: Run, opening: Callable[[], Engine], placement: Placement) -> JsonObject:
    """The weights are loaded where rollouts are computed, and not here."""
    from training.iro.cluster import ray_executor
    from training.iro.loop import align
    from training.iro.values import Bundles

    model = _describe(config, opening)
    with ray_executor(placement, run, config, Bundles(model.info, config.model_dir), opening) as executor:
        return align(config, run, model, executor)


def _describe(config: AlignConfig, opening: Callable[[], Engine]) -> Description:
    """The frozen model of the job: as its engine reports it, where that is not the embedded one."""
    from iro_server.engines.describe import Description

    assert config.model_dir is not None
    if config.endpoints(key=None).embedded:
        return Description.of_directory(config.model_dir, config.model_name)
    with closing(opening()) as engine:
        return Description.of_engine(engine)


def draw(folder: Path) -> None:
    from training.iro.figures import draw

    draw(folder)


@dataclass(frozen=True)
class AlignJob(Job):
    """The alignment job as the server calls it: ``iro_server.alignment.entry.AlignmentJob``."""

    Config: type[AlignConfig]

    def validate(self, config: AlignConfig, model: DescribedModel, grader: Grader) -> list[str]:
        """Warnings about the config's files. AlignError where no run could succeed."""
        from iro_server.engines.describe import Description
        from training.iro.data import check

        return check(config, Description(model.info, model.tokenizer), grader)

    def export(self, folder: Path) -> Dataset:
        """The graded completions of the run in ``folder``."""
        from training.iro.export import export_rollouts

        return export_rollouts(folder)

    def discard(self, folder: Path) -> None:
        """Remove from ``folder`` the hidden states, which only a continued run would read."""
        from training.iro.export import discard_states

        discard_states(folder)


SMOKE_GRADER = {"type": "python", "source": "def grade(sample, item): return sample['output_text'].count('e')"}

JOB = AlignJob(
    name="align",
    summary="IRO: value functions, an iteration at a time, that steer a frozen model towards a grader's reward",
    Config=AlignConfig,
    run=run,
    presets={
        "smoke": {
            "training_file": str(Path(__file__).with_name("example.jsonl")),
            "grader": SMOKE_GRADER,
            "iterations": 2,
            "rollouts_per_prompt": 8,
            "max_tokens": 16,
            "validation_prompts": 4,
            "counted_tokens": 200,
        },
        "paper": {
            "iterations": 3,
            "betas": (1.0, 1.0, 1.0),
            "beam_width": 4,
            "num_successors": 4,
            "chunk_length": 8,
            "selection": "diversity",
            "guided_searches": 1,
            "rollouts_per_prompt": 16,
            "max_tokens": 48,
            "validation_prompts": 32,
        },
    },
    draw=draw,
)

if TYPE_CHECKING:
    _entry: AlignmentJob[AlignConfig] = JOB
