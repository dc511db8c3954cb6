"""Factored action spaces: |A| = Π|A_k| joint actions in C order, and partitions of the K factors into blocks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

Blocks = tuple[tuple[int, ...], ...]


def sizes_of(space: object) -> tuple[int, ...]:
    """(|A_1|, …, |A_K|) of a Gymnasium action space. Raises ValueError for one not discrete, or not starting at 0."""
    from gymnasium import spaces

    if isinstance(space, spaces.MultiDiscrete):
        if space.nvec.ndim != 1 or np.any(space.start):
            raise ValueError(f"{space}: the action space must be one-dimensional and start at 0")
        return tuple(int(size) for size in space.nvec)
    if isinstance(space, spaces.Discrete):
        if space.start:
            raise ValueError(f"{space}: actions must start at 0; shift them by gymnasium.wrappers.TransformAction")
        return (int(space.n),)
    raise ValueError(
        f"{type(space).__name__} action space: these agents need Discrete or MultiDiscrete;"
        " discretise each dimension first"
    )


def check_blocks(blocks: Sequence[Sequence[int]] | None, factors: int) -> Blocks:
    """``blocks``, by default each factor alone. Raises ValueError unless they partition 0 … factors − 1."""
    if blocks is None:
        return tuple((k,) for k in range(factors))
    if sorted(k for block in blocks for k in block) != list(range(factors)) or not all(blocks):
        raise ValueError(
            f"{blocks} is no partition: each of the factors 0 to {factors - 1} must be in exactly one block"
        )
    return tuple(tuple(block) for block in blocks)


def block_actions(sizes: Sequence[int], blocks: Blocks) -> np.ndarray:
    """[A, B]: the index of each joint action's part among the joint actions of each block."""
    digits = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes))  # [K, A]
    columns = [np.ravel_multi_index(digits[list(block)], [sizes[k] for k in block]) for block in blocks]
    return np.stack(columns, axis=1)


def block_sizes(sizes: Sequence[int], blocks: Blocks) -> tuple[int, ...]:
    return tuple(math.prod(sizes[k] for k in block) for block in blocks)


def one_hot(sizes: Sequence[int], blocks: Blocks) -> np.ndarray:
    """[A, Σ_b |A_b|]: the design matrix of additive functions Σ_b q_b(a_b)."""
    return np.concatenate(
        [
            np.eye(n)[column]
            for n, column in zip(block_sizes(sizes, blocks), block_actions(sizes, blocks).T, strict=True)
        ],
        axis=1,
    )
