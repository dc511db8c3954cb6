"""What every algorithm offers, and what a study needs of one to run and to count it.

An algorithm is one module here: its class, with ``start`` and ``step``, and ``METHODS``, its names in the registry.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch.utils._pytree import tree_leaves

from training.bilevel.problem import BilevelProblem, Tree

FLOAT_BYTES = 4
RING_NEIGHBOURS = 2


class Algorithm(Protocol):
    """A solver bound to its problem, topology and step sizes. States are trees of tensors; ``step`` is pure."""

    def start(self, x: Tree, y: Tree, batch: Tree) -> Tree:
        """The state in which all agents are at x and y (one agent's); ``batch`` [n, ...] gives shapes only."""

    def step(self, state: Tree, batch: Tree, generator: torch.Generator) -> Tree:
        """One iteration on ``batch`` [n, ...]; ``generator`` draws the randomness of compressors."""


class ProblemSetup(NamedTuple):
    """What all methods of a comparison share.

    ``W`` [n, n]: mixing matrix. ``x``, ``y``: where each agent starts. ``alpha``, ``beta``: step sizes of x, and of y
    and z. ``theta``: weight of the newest u in its moving average. ``sent_share``: share of the coordinates that sparse
    compressors send.
    """

    problem: BilevelProblem
    W: torch.Tensor
    x: Tree
    y: Tree
    alpha: float
    beta: float
    theta: float
    sent_share: float

    @property
    def sizes(self) -> tuple[int, int]:
        """Coordinates of x and of y."""
        x, y = (sum(leaf.numel() for leaf in tree_leaves(tree)) for tree in (self.x, self.y))
        return x, y


def agents_variables(state: Tree) -> tuple[Tree, Tree]:
    return state.x, state.y


@dataclass(frozen=True, kw_only=True)
class BilevelMethod:
    """An algorithm with the settings of a comparison, and the cost of a step for one agent.

    ``evaluations``: gradients of f and of g, and second-order products, of a batch. ``bytes_sent``: with 32-bit floats.
    ``variables``: x and y of the stacked states of several runs, [runs, n, ...]. ``compressed``: whether workers send
    compressed messages to a server. ``corrects_heterogeneity``: whether both levels do.
    """

    build: Callable[[ProblemSetup], Algorithm]
    evaluations: int
    bytes_sent: Callable[[ProblemSetup], float]
    variables: Callable[[Tree], tuple[Tree, Tree]] = agents_variables
    compressed: bool = False
    corrects_heterogeneity: bool = False


def neighbour_bytes(x_vectors: int, y_vectors: int) -> Callable[[ProblemSetup], float]:
    """Bytes that an agent sends to its two neighbours on a ring: vectors of the sizes of x and of y."""

    def bytes_sent(setup: ProblemSetup) -> float:
        x, y = setup.sizes
        return RING_NEIGHBOURS * FLOAT_BYTES * (x_vectors * x + y_vectors * y)

    return bytes_sent
