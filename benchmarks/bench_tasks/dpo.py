"""Direct preference optimisation (arXiv:2305.18290) on the rollouts that the alignment job graded."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.bench_tasks.adapted import frozen_model
from benchmarks.bench_tasks.piece import Piece
from benchmarks.bench_tasks.yardsticks import LORA, Cost, fit_adapter, stop_callback, trainer_options
from iro_server import JsonObject

if TYPE_CHECKING:
    from training.iro.data import Prompt

BETA, EPOCHS, BATCH = 0.1, 4, 8


class Graded(NamedTuple):
    """Token ids of a prompt, and of its rollouts with their rewards."""

    prompt_ids: list[int]
    rollouts: list[tuple[list[int], float]]


def train_dpo(piece: Piece, folder: Path, rate: float) -> Cost:
    """The loss is -log sigmoid(beta [log pi/pi_0 (best) - log pi/pi_0 (worst)]) over each prompt's best and worst."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    class TokenTrainer(DPOTrainer):  # type: ignore[misc]
        """Takes token ids as they were sampled: TRL would tokenise texts anew and end each with an end token."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

    prompts = piece.prompts("train", piece.config.train_prompts)
    graded = list(graded_rollouts(piece.trained.folder, prompts))
    pairs = preference_pairs(graded)
    if not pairs:
        raise ValueError(f"{piece.task.name}: the rollouts of every prompt have equal rewards, which make no pairs")
    options = trainer_options(piece, folder, rate) | {
        "beta": BETA,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "remove_unused_columns": False,
    }
    trainer: Any = TokenTrainer(
        model=frozen_model(),
        args=DPOConfig(**options),
        train_dataset=Dataset.from_list(pairs),
        processing_class=piece.engine.tokenizer,
        peft_config=LoraConfig(**LORA),
        callbacks=[stop_callback(piece)],
    )
    fit_adapter(trainer, folder)
    rollouts = [rollout for _, group in graded for rollout in group]
    return Cost(base_tokens=sum(len(tokens) for tokens, _ in rollouts), reward_calls=len(rollouts))


def preference_pairs(graded_prompts: Iterable[Graded]) -> list[JsonObject]:
    """Token ids of each prompt's best and worst rollout, where their rewards differ."""
    pairs = []
    for prompt_ids, rollouts in graded_prompts:
        graded = [rollout for rollout in rollouts if not math.isnan(rollout[1])]
        if not graded:
            continue
        best, worst = (pick(graded, key=lambda rollout: rollout[1]) for pick in (max, min))
        if best[1] > worst[1]:
            pairs.append({"prompt_ids": prompt_ids, "chosen_ids": best[0], "rejected_ids": worst[0]})
    return pairs


def graded_rollouts(folder: Path, prompts: Sequence[Prompt]) -> Iterator[Graded]:
    """Those that the frozen model sampled for the alignment job in ``folder``, by prompt; NaN where grading failed."""
    from training.checkpoints import open_checkpoints
    from training.iro.export import ROLLOUTS
    from training.iro.rollouts import completions_of

    with closing(open_checkpoints(str(folder / "checkpoints"))) as checkpoints:
        for name in checkpoints.names():
            match = ROLLOUTS.fullmatch(name)
            if match is None or match[1] != "1" or match[2]:
                continue
            groups = completions_of(checkpoints, name)
            rewards = checkpoints.load(name.replace("rollouts", "rewards"))["rewards"]
            for index, tokens, of_group in zip(checkpoints.load(name)["prompts"], groups, rewards, strict=True):
                yield Graded(list(prompts[index].token_ids), list(zip(tokens, of_group, strict=True)))
