"""Value functions of what a vLLM server shows: embeddings of an answer's tokens and their counts, and with adapters the
output head's state, by way of reserved tokens."""

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


def shown_values(piece: Piece, head_values: int) -> ValueStack:
    """Ridge regression on the rollouts of the piece's alignment job, in its first iteration.

    ``head_values``: numbers of the output head's state that the server reports. A job on such a server may take a LoRA
    backbone instead, and gives finished answers values of their own.
    """
    from training.checkpoints import open_checkpoints
    from training.iro.config import default_feature_spec
    from training.iro.fit import Scale
    from training.iro.simple_loop import fit_head
    from value_heads import ValueStack
    from value_heads.features import HEAD_STATE
    from value_heads.text_counts import packed_counts

    info = replace(piece.engine.info, hidden=False, head_values=head_values)
    spec = default_feature_spec(info, piece.max_tokens, packed_counts(piece.engine.tokenizer))
    with closing(open_checkpoints(str(piece.trained.folder / "checkpoints"))) as checkpoints:
        train, heldout = (
            list(rollouts(checkpoints, f"1-{part}-", piece, HEAD_STATE in spec.layers)) for part in ("train", "heldout")
        )
        scale = Scale(**checkpoints.load("scale"))
    return ValueStack([fit_head(spec, piece.config.counted_tokens, train, heldout, scale)], [1.0])


def rollouts(checkpoints: Checkpoints, prefix: str, piece: Piece, head_state: bool) -> Iterator[Rollout]:
    """The graded rollouts of the shards whose names begin so, with their tokens' embeddings, and with the states that
    they were drawn from."""
    import torch

    from iro_server.decoding.base import Final
    from training.iro.head_states import head_states
    from training.iro.rollouts import completions_of
    from training.iro.simple_loop import Rollout
    from value_heads.features import HEAD_STATE

    prompt_ids = {prompt.index: prompt.token_ids for prompt in piece.prompts("train", piece.config.train_prompts)}
    for name in checkpoints.names():
        if not (name.startswith(prefix) and name.endswith("-rollouts")):
            continue
        rewards = checkpoints.load(name.removesuffix("rollouts") + "rewards")["rewards"]
        prompts, groups = checkpoints.load(name)["prompts"], completions_of(checkpoints, name)
        for prompt, group, of_group in zip(prompts, groups, rewards, strict=True):
            states = head_states(piece.engine.frozen, prompt_ids[prompt], group) if head_state else [None] * len(group)
            for tokens, reward, state in zip(group, of_group, states, strict=True):
                if math.isnan(reward):  # not graded
                    continue
                hidden = {0: piece.engine.frozen.embedding(torch.tensor(tokens)).float()}
                if state is not None:
                    hidden[HEAD_STATE] = state
                yield Rollout(prompt, Final(tokens, [], 0.0, "length", hidden), reward)
