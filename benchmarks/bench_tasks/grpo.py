"""Group relative policy optimisation (arXiv:2402.03300) with as many reward calls as the alignment job made, or as the
config says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.bench_tasks.adapted import frozen_model
from benchmarks.bench_tasks.piece import Piece
from benchmarks.bench_tasks.yardsticks import (
    LORA,
    Cost,
    fit_adapter,
    last_checkpoint,
    stop_callback,
    trainer_options,
)

GROUP, PROMPTS_A_STEP = 8, 8
SAMPLED = "sampled.json"
COMPLETIONS_AT_ONCE = 16  # of a forward pass


def train_grpo(piece: Piece, folder: Path, rate: float) -> Cost:
    """A completion's advantage is its reward less its group's mean, over the group's standard deviation; TRL's default
    loss, without a KL term."""
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig, GRPOTrainer

    prompts = piece.prompts("train", piece.config.train_prompts)
    tokenizer = piece.engine.tokenizer
    texts = [str(tokenizer.decode(list(prompt.token_ids))) for prompt in prompts]
    if any(tokenizer(text)["input_ids"] != list(prompt.token_ids) for text, prompt in zip(texts, prompts, strict=True)):
        raise ValueError(f"{piece.task.name}: TRL would tokenise a prompt in another way than the server does")
    sampled = earlier_samples(folder)

    def reward(completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: object) -> list[float | None]:
        sampled["tokens"] += sum(map(len, completion_ids))
        sampled["completions"] += len(completion_ids)
        return [*piece.rewards([prompts[index] for index in row], [piece.text(tokens) for tokens in completion_ids])]

    group = min(GROUP, piece.config.rollouts_per_prompt)
    at_once = max(group, COMPLETIONS_AT_ONCE // group * group)
    passes = max(1, group * min(PROMPTS_A_STEP, len(prompts)) // at_once)
    reward_calls = piece.config.grpo_reward_calls or piece.trained.reward_calls
    options = trainer_options(piece, folder, rate) | {
        "num_generations": group,
        "max_completion_length": piece.max_tokens,
        "per_device_train_batch_size": at_once,
        "gradient_accumulation_steps": passes,
        "max_steps": max(1, reward_calls // (at_once * passes)),
        "temperature": 1.0,
    }
    trainer: Any = GRPOTrainer(
        model=frozen_model(),
        reward_funcs=reward,
        args=GRPOConfig(**options),
        train_dataset=Dataset.from_list([{"prompt": text, "row": row} for row, text in enumerate(texts)]),
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA),
        callbacks=[keeper_of(sampled, folder), stop_callback(piece)],
    )
    fit_adapter(trainer, folder)
    return Cost(base_tokens=sampled["tokens"], reward_calls=sampled["completions"])


def earlier_samples(folder: Path) -> dict[str, int]:
    """Tokens and completions up to the last checkpoint of a training in ``folder``."""
    checkpoint = last_checkpoint(folder)
    if checkpoint is None:
        return {"tokens": 0, "completions": 0}
    counts: dict[str, int] = json.loads(Path(checkpoint, SAMPLED).read_text())
    return counts


def keeper_of(sampled: dict[str, int], folder: Path) -> Any:
    """Writes the counts beside each checkpoint."""
    from transformers import TrainerCallback

    class KeepCounts(TrainerCallback):  # type: ignore[misc]
        def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            (folder / f"checkpoint-{state.global_step}" / SAMPLED).write_text(json.dumps(sampled))

    return KeepCounts()
