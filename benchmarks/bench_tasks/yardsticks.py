"""Yardsticks that update the model's weights, on the prompts and reward calls of a piece's alignment job.

TRL trains a LoRA adapter at each of a few learning rates. Its answers are plain samples of the adapted model, one row
each, at the rate, the temperature and the repetition penalty that are best on the piece's validation prompts.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.bench_tasks.adapted import Adapted, adapted_engine
from benchmarks.bench_tasks.piece import Piece, text_limits
from benchmarks.bench_tasks.temperatures import at_setting, chosen, settings_of, trial_of, tuning_of
from iro_server import JsonObject
from training.run import Cancelled

if TYPE_CHECKING:
    from training.iro.tilt_trials import Trial
    from value_heads.tilt import Tilt

LORA: JsonObject = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
RATES = (1e-4, 3e-4, 1e-3)  # of learning
YARDSTICKS = ("dpo", "grpo")
SAVE_STEPS = 4  # of an optimiser: a training may take hours on two cores


class Cost(NamedTuple):
    """Of training an adapter, the samples that it learns from included."""

    base_tokens: int
    reward_calls: int


Train = Callable[[Piece, Path, float], Cost]
"""Leaves an adapter, trained at a learning rate, in a folder."""


def require_trl() -> None:
    """ValueError where TRL is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "trl is not installed, which dpo and grpo need: pip install 'iro-align[yardsticks]'"
        ) from error


def tuned_adapter(piece: Piece, name: str, train: Train) -> Adapted:
    """The model with the adapter, and at the setting, that are best on validation prompts; with the first adapter at
    temperature 1 where the rewards of the piece's job were all equal. Steps of the run keep what each training took,
    and what was tried."""
    if piece.trained.stack is None:
        train_at(piece, name, train, RATES[0])
        return Adapted(piece, adapted_engine(adapter_folder(piece, name, RATES[0]), piece.config.engine_precision))
    for rate in RATES:
        train_at(piece, name, train, rate)
    best = chosen(piece.step(f"{name}-temperatures", partial(tune, piece, name)), rows=1)
    return open_adapted(piece, name, best["rate"], at_setting(piece.no_tilt, best["sharpness"], best["penalty"]))


def train_at(piece: Piece, name: str, train: Train, rate: float) -> None:
    from value_heads.threads import on_fresh_thread

    folder = adapter_folder(piece, name, rate)

    def compute() -> JsonObject:
        began = time.monotonic()
        cost = on_fresh_thread(lambda: train(piece, folder, rate))
        about = {"task": piece.task.name, "seed": piece.seed, "method": name, "rate": rate}
        return about | cost._asdict() | {"seconds": time.monotonic() - began}

    piece.step(training_step(name, rate), compute)


def training_step(name: str, rate: float) -> str:
    return f"{name}-{rate:g}-training"


def adapter_folder(piece: Piece, name: str, rate: float) -> Path:
    return piece.folder / f"{name}-{rate:g}"


def open_adapted(piece: Piece, name: str, rate: float, tilt: Tilt) -> Adapted:
    engine = adapted_engine(adapter_folder(piece, name, rate), piece.config.engine_precision)
    return Adapted(piece, engine, tilt)


def tune(piece: Piece, name: str) -> JsonObject:
    """What ``temperatures.tune`` returns, with the ``rate`` of each setting: all rates at temperature 1, and the best
    of them at lower temperatures."""
    from training.iro.trials import SHARPNESS

    began = time.monotonic()
    tried = [setting for rate in RATES for setting in settings_at(piece, name, rate, [0.0])]
    best = chosen({"tried": tried}, rows=1)
    tried += settings_at(piece, name, best["rate"], SHARPNESS, best["penalty"])
    return tuning_of(piece, name, tried, time.monotonic() - began)


def settings_at(
    piece: Piece, name: str, rate: float, levels: Sequence[float], least_penalty: float = 0.0
) -> list[JsonObject]:
    limits, tilt = text_limits(piece, piece.trained.folder), piece.no_tilt
    with open_adapted(piece, name, rate, tilt).engine as engine:

        def trial(set_tilt: Tilt, sharpness: float, penalty: float) -> tuple[Trial, int]:
            adapted = Adapted(piece, engine, set_tilt)
            return trial_of(adapted.adapted_piece, set_tilt, 1.0, sharpness, penalty, rescored=adapted.rescored)

        return [setting | {"rate": rate} for setting in settings_of(tilt, trial, limits, levels, least_penalty)]


def trainer_options(piece: Piece, folder: Path, rate: float) -> JsonObject:
    """What both of TRL's configurations take."""
    return {
        "output_dir": str(folder),
        "learning_rate": rate,
        "seed": piece.seed,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "save_total_limit": 1,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "dataloader_pin_memory": False,
    }


def fit_adapter(trainer: Any, folder: Path) -> None:
    """Train, on from the last checkpoint in ``folder`` if it has one, and leave the adapter there instead."""
    trainer.train(resume_from_checkpoint=last_checkpoint(folder))
    trainer.model.save_pretrained(folder)
    while (checkpoint := last_checkpoint(folder)) is not None:
        shutil.rmtree(checkpoint)


def last_checkpoint(folder: Path) -> str | None:
    """Of an interrupted training."""
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(folder) if folder.exists() else None


def stop_callback(piece: Piece) -> Any:
    """Ends a training between two steps where the run was asked to stop."""
    from transformers import TrainerCallback

    class StopIfAsked(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if piece.should_stop is not None and piece.should_stop():
                raise Cancelled(f"stopped; {piece.folder} keeps what was done")

    return StopIfAsked()
