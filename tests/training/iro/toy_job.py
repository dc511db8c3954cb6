"""An alignment job on the toy language model of ``tests.toy``, done in a second.

Reward: how many of token 1. Grader and expectation read the same text of digits.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from iro_server.engines.describe import Description
from tests.toy import END, VOCABULARY, ToyEngine
from training.iro.config import AlignConfig
from training.iro.executor import LocalExecutor
from training.iro.job import AlignJob
from training.iro.loop import align
from training.run import Run
from value_heads import FeatureSpec

COUNT_ONES = "def grade(sample, item):\n    return sample['output_text'].count('1')\n"
MAX_TOKENS = 6


class Digits:
    """Token t is the character t."""

    chat_template = None
    all_special_ids: ClassVar[list[int]] = [END]

    def __len__(self) -> int:
        return VOCABULARY

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [str(token) for token in ids]

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [int(c) for c in text]}

    def decode(self, tokens: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(str(t) for t in tokens if not (skip_special_tokens and t == END))


class Toy(ToyEngine):
    tokenizer = Digits()


MODEL = Description.of_engine(Toy())


def write_prompts(path: Path, count: int) -> Path:
    prompts = [f"{n:06b}" for n in range(count)]
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    return path


def toy_config(folder: Path) -> AlignConfig:
    return AlignConfig(
        model_dir=folder,
        training_file=write_prompts(folder / "train.jsonl", 40),
        grader={"type": "python", "source": COUNT_ONES, "workers": 1},
        iterations=2,
        rollouts_per_prompt=8,
        beam_width=2,
        num_successors=4,
        chunk_length=2,
        max_tokens=MAX_TOKENS,
        validation_prompts=16,
        feature_spec=FeatureSpec(current=(0,), summed=(0,), horizon=MAX_TOKENS),
        early_stop=False,
    )


def job(engine: Any = None) -> AlignJob:
    def run(config: AlignConfig, run: Run) -> dict[str, Any]:
        toy = engine or Toy()
        return align(config, run, Description.of_engine(toy), LocalExecutor(toy, config.model_dir))

    return AlignJob("align", "", AlignConfig, run)


class Unhurried(Toy):
    """Takes its time, so that who looks sees what the job is doing."""

    async def open(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(0.05)
        return await super().open(*args, **kwargs)


JOB = job(Unhurried())


class Killed(BaseException):
    """Stands in for kill -9."""
