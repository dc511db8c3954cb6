"""Yardsticks that update the model's weights, on the prompts and reward calls of a piece's alignment job.

TRL trains a LoRA adapter; its answers are plain samples of the adapted model, one row each.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.bench_tasks.answers import Answer, answer_of, best_of
from benchmarks.bench_tasks.piece import Piece
from iro_server import JsonObject
from training.run import Cancelled

if TYPE_CHECKING:
    from iro_server.engines.embedded import EmbeddedEngine
    from training.iro.data import Prompt

LORA: JsonObject = {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": "all-linear"}
LEARNING_RATE = 1e-4
YARDSTICKS = ("dpo", "grpo")
SAVE_STEPS = 4  # of an optimiser: a training may take hours on two cores


class Cost(NamedTuple):
    """Of training an adapter, the samples that it learns from included."""

    base_tokens: int
    reward_calls: int


Train = Callable[[Piece, Path], Cost]


def require_trl() -> None:
    """ValueError where TRL is not installed."""
    try:
        import trl  # noqa: F401
    except ImportError as error:
        raise ValueError(
            "trl is not installed, which dpo and grpo need: pip install 'iro-align[yardsticks]'"
        ) from error


def trained_adapter(piece: Piece, name: str, train: Train) -> Adapted:
    """The model with the adapter that ``train`` leaves in the piece's folder. A step of the run keeps what it took."""
    from value_heads.threads import on_fresh_thread

    folder = piece.folder / name

    def compute() -> JsonObject:
        began = time.monotonic()
        cost = on_fresh_thread(lambda: train(piece, folder))
        about = {"task": piece.task.name, "seed": piece.seed, "method": name}
        return about | cost._asdict() | {"seconds": time.monotonic() - began}

    piece.step(f"{name}-training", compute)
    return Adapted(piece, adapted_engine(folder))


@dataclass(frozen=True)
class Adapted:
    """Plain samples of the frozen model with an adapter. ``engine``: the adapted model's; its user closes it."""

    piece: Piece
    engine: EmbeddedEngine

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        """Log-probabilities are those of the frozen model; KL from it is exact at each state."""
        results = replace(self.piece, engine=self.engine).search(prompts, best_of(1), None, seed)
        answers = [answer_of(result.finals[0], result) for result in results]
        return [self.rescored(answer, prompt) for answer, prompt in zip(answers, prompts, strict=True)]

    def rescored(self, answer: Answer, prompt: Prompt) -> Answer:
        import torch

        logprobs_TV, adapted_TV = (
            next_logprobs(which, prompt.token_ids, answer.tokens) for which in (self.piece.engine, self.engine)
        )
        kl = (adapted_TV.exp() * (adapted_TV - logprobs_TV)).sum()
        logprobs_T = logprobs_TV.gather(1, torch.tensor(answer.tokens)[:, None])[:, 0]
        return replace(answer, logprobs=logprobs_T.tolist(), kl=float(kl))


def next_logprobs(engine: EmbeddedEngine, prompt_ids: Sequence[int], tokens: Sequence[int]) -> Any:
    """Log-probabilities [T, V] of the distributions that ``tokens`` were drawn from, if by this engine's model."""
    from training.iro.head_states import head_states

    (states_TD,) = head_states(engine.frozen, prompt_ids, [tokens])
    head = engine.frozen.head_weight
    return engine.frozen.logits(states_TD.to(head.device, head.dtype)).double().log_softmax(-1).detach().cpu()


def adapted_engine(adapter: Path) -> EmbeddedEngine:
    """An engine of the default model with the PEFT adapter in a folder merged into its weights."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from iro_server.engines.embedded import EmbeddedEngine
    from iro_server.engines.prepare import prepare_model

    with tempfile.TemporaryDirectory() as folder:
        model: Any = PeftModel.from_pretrained(frozen_model(), adapter)
        model.merge_and_unload().save_pretrained(folder)
        del model
        AutoTokenizer.from_pretrained(prepare_model()).save_pretrained(folder)
        return EmbeddedEngine(folder)


def frozen_model() -> Any:
    """A copy of the default model in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    from iro_server.engines.prepare import prepare_model

    return AutoModelForCausalLM.from_pretrained(prepare_model(), dtype=torch.float32)


def trainer_options(piece: Piece, folder: Path) -> JsonObject:
    """What both of TRL's configurations take."""
    return {
        "output_dir": str(folder),
        "learning_rate": LEARNING_RATE,
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
