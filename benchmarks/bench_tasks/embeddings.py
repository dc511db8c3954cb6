"""Value functions of what a vLLM server shows without adapters: embeddings of an answer's tokens, and their counts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.piece import Piece

if TYPE_CHECKING:
    from training.checkpoints import Checkpoints
    from training.iro.simple_loop import Rollout
    from value_heads import ValueStack


def embedding_values(piece: Piece) -> ValueStack:
    """Ridge regression on the rollouts of the piece's alignment job, in its first iteration. A job on such a server may
    take a LoRA backbone instead, and gives finished answers values of their own."""
    from training.checkpoints import open_checkpoints
    from training.iro.config import default_feature_spec
    from training.iro.fit import Scale
    from training.iro.simple_loop import fit_values
    from value_heads import ValueStack

    spec = default_feature_spec(replace(piece.engine.info, hidden=False, head_values=0), piece.max_tokens)
    with closing(open_checkpoints(str(piece.trained.folder / "checkpoints"))) as checkpoints:
        train, heldout = (list(rollouts(checkpoints, f"1-{part}-", piece)) for part in ("train", "heldout"))
        scale = Scale(**checkpoints.load("scale"))
    return ValueStack([fit_values(spec, piece.config.counted_tokens, train, heldout, scale)], [1.0])


def rollouts(checkpoints: Checkpoints, prefix: str, piece: Piece) -> Iterator[Rollout]:
    """The graded rollouts of the shards whose names begin so, with their tokens' embeddings."""
    import torch

    from iro_server.decoding.base import Final
    from training.iro.rollouts import completions_of
    from training.iro.simple_loop import Rollout

    for name in checkpoints.names():
        if not (name.startswith(prefix) and name.endswith("-rollouts")):
            continue
        rewards = checkpoints.load(name.removesuffix("rollouts") + "rewards")["rewards"]
        prompts, groups = checkpoints.load(name)["prompts"], completions_of(checkpoints, name)
        for prompt, group, of_group in zip(prompts, groups, rewards, strict=True):
            for tokens, reward in zip(group, of_group, strict=True):
                if math.isnan(reward):  # not graded
                    continue
                hidden = {0: piece.engine.frozen.embedding(torch.tensor(tokens)).float()}
                yield Rollout(prompt, Final(tokens, [], 0.0, "length", hidden), reward)
