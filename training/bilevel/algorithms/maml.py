"""Decentralized MAML (compared in arXiv:2411.14166). It needs losses of a task, so that it is bound in the study."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.func import grad, vmap
from torch.utils._pytree import tree_map

from training.bilevel.distributed.network import STACKED
from training.bilevel.problem import Tree


@dataclass(frozen=True)
class DMaml:
    """y⁺ = W(y - alpha ∇ mean query(ŷ)), ŷ after ``inner`` steps of ``beta`` down the support loss.

    ``support`` and ``query``: losses of (parameters, one task). The state is y [n, ...]: where learning starts.
    """

    support: Callable[[Tree, Tree], torch.Tensor]
    query: Callable[[Tree, Tree], torch.Tensor]
    W: torch.Tensor
    alpha: float
    beta: float
    inner: int = 1

    def start(self, y: Tree) -> Tree:
        """All agents at y (one agent's)."""
        return tree_map(lambda leaf: leaf.expand(len(self.W), *leaf.shape).clone(), y)

    def step(self, state: Tree, tasks: Tree) -> Tree:
        """One iteration; ``tasks`` [n, tasks, ...]."""

        def loss(y: Tree, tasks: Tree) -> torch.Tensor:
            return vmap(lambda task: self.query(self.adapt(y, task), task))(tasks).mean()

        return STACKED.mix(self.W, tree_map(lambda y, g: y - self.alpha * g, state, vmap(grad(loss))(state, tasks)))

    def adapt(self, y: Tree, task: Tree) -> Tree:
        """One agent's y, adapted to one task."""
        for _ in range(self.inner):
            y = tree_map(lambda y, g: y - self.beta * g, y, grad(self.support)(y, task))
        return y
