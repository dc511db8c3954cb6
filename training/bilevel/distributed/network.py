"""How agents exchange values: ``Stacked`` within one process, ``processes.Processes`` between several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch.utils._pytree import tree_map

from training.bilevel.distributed.compressors import Compressor
from training.bilevel.problem import Tree


class Message(NamedTuple):
    """The vectors [held, d] that the agents of this process send to the server, and their compressor."""

    compressor: Compressor
    vectors: torch.Tensor


class Average(NamedTuple):
    """mean [d] over all agents of the decompressed vectors, and those of this process's agents, sent [held, d]."""

    mean: torch.Tensor
    sent: torch.Tensor


class Network(Protocol):
    def held(self, agents: int) -> range:
        """The agents of this process: the rows on the leading axis of states and batches."""

    def mix(self, weights: torch.Tensor, tree: Tree) -> Tree:
        """Row i of each leaf becomes Σ_j weights[i, j] · row j; ``weights`` [n, n] for all agents."""

    def average(self, messages: Sequence[Message], generator: torch.Generator) -> list[Average]:
        """All messages in one round; ``generator`` is in the same state in every process."""


class Stacked:
    """All agents in this process, on the leading axis."""

    def held(self, agents: int) -> range:
        return range(agents)

    def mix(self, weights: torch.Tensor, tree: Tree) -> Tree:
        return tree_map(lambda leaf: torch.einsum("ij,j...->i...", weights.to(leaf), leaf), tree)

    def average(self, messages: Sequence[Message], generator: torch.Generator) -> list[Average]:
        decompressed = [message.compressor(message.vectors, generator) for message in messages]
        return [Average(vectors.mean(0), vectors) for vectors in decompressed]


STACKED = Stacked()
