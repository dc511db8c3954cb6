"""How agents hear of each other: all in this process, or (``processes.Processes``) some of them here and others not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch.utils._pytree import tree_map

from training.bilevel.compressors import Compressor
from training.bilevel.problem import Tree


class Message(NamedTuple):
    """What each agent held here sends to the server: a row of vectors [held, d], compressed."""

    compressor: Compressor
    vectors: torch.Tensor


class Average(NamedTuple):
    """mean [d] over all agents of what arrived, and what arrived of those held here, sent [held, d]."""

    mean: torch.Tensor
    sent: torch.Tensor


class Network(Protocol):
    def held(self, agents: int) -> range:
        """Which of them are held here: the leading axis of states and batches has these rows."""

    def mix(self, weights: torch.Tensor, tree: Tree) -> Tree:
        """Row i of each leaf becomes Σ_j weights[i, j] · row j; ``weights`` [n, n] for all agents."""

    def average(self, messages: Sequence[Message], generator: torch.Generator) -> list[Average]:
        """All messages in one round; ``generator`` is in the same state wherever agents are."""


class Stacked:
    """All agents in this process, on the leading axis."""

    def held(self, agents: int) -> range:
        return range(agents)

    def mix(self, weights: torch.Tensor, tree: Tree) -> Tree:
        return tree_map(lambda leaf: torch.einsum("ij,j...->i...", weights.to(leaf), leaf), tree)

    def average(self, messages: Sequence[Message], generator: torch.Generator) -> list[Average]:
        sent = [message.compressor(message.vectors, generator) for message in messages]
        return [Average(each.mean(0), each) for each in sent]


STACKED = Stacked()
