"""A bilevel problem as two loss functions: minimise f(x, y*(x)) over x, where y*(x) minimises g(x, y)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.func import grad, vjp
from torch.utils._pytree import tree_leaves, tree_map

Tree = Any  # a tensor, or lists, tuples and dicts of them
Loss = Callable[[Tree, Tree, Tree], torch.Tensor]


class Directions(NamedTuple):
    """The directions of one agent at (x, y, z): u like x, v and p like y."""

    u: Tree
    v: Tree
    p: Tree


@dataclass(frozen=True)
class BilevelProblem:
    """``upper`` is f and ``lower`` is g, both (x, y, batch) to a scalar; x and y are any pytrees of tensors.

    g is strongly convex in y and twice differentiable. No Hessian is built: one vector-Jacobian product of ∇₂g gives
    both second-order products.
    """

    upper: Loss
    lower: Loss

    def second_order(self, x: Tree, y: Tree, z: Tree, batch: Tree) -> tuple[Tree, Tree, Tree]:
        """(∇₂g, ∇²₁₂g z, ∇²₂₂g z): like y, like x, like y, at the cost of a few gradients of g."""

        def gradient(x: Tree, y: Tree) -> Tree:
            return grad(self.lower, argnums=1)(x, y, batch)

        # Reverse mode twice: mse_loss among others fails in forward mode over reverse.
        lower, pullback = vjp(gradient, x, y)  # type: ignore[misc]  # a pair, without ``has_aux``
        cross, hessian = pullback(z)
        return lower, cross, hessian

    def directions(self, x: Tree, y: Tree, z: Tree, batch: Tree) -> Directions:
        """u = ∇₁f - ∇²₁₂g z, v = ∇₂g, p = ∇²₂₂g z - ∇₂f (arXiv:2411.14166 and arXiv:2405.18858)."""
        upper_x, upper_y = grad(self.upper, argnums=(0, 1))(x, y, batch)
        lower, cross, hessian = self.second_order(x, y, z, batch)
        return Directions(tree_map(torch.sub, upper_x, cross), lower, tree_map(torch.sub, hessian, upper_y))

    def hypergradient(self, x: Tree, y: Tree, batch: Tree, *, iterations: int = 100, tolerance: float = 1e-12) -> Tree:
        """∇₁f - ∇²₁₂g [∇²₂₂g]⁻¹ ∇₂f at (x, y), like x: the gradient of f(x, y*(x)) where y = y*(x).

        By conjugate gradients on Hessian-vector products, until the residual is ``tolerance`` of ∇₂f.
        """
        residual = grad(self.upper, argnums=1)(x, y, batch)
        z = tree_map(torch.zeros_like, residual)
        direction, square = residual, _dot(residual, residual)
        goal = square * tolerance**2
        for _ in range(iterations):
            if square <= goal:
                break
            image = self.second_order(x, y, direction, batch)[2]
            z = _add(z, square / _dot(direction, image), direction)
            residual = _add(residual, -square / _dot(direction, image), image)
            before, square = square, _dot(residual, residual)
            direction = _add(residual, square / before, direction)
        return self.directions(x, y, z, batch).u


def _dot(a: Tree, b: Tree) -> torch.Tensor:
    return torch.stack([(s * t).sum() for s, t in zip(tree_leaves(a), tree_leaves(b), strict=True)]).sum()


def _add(a: Tree, scale: torch.Tensor, b: Tree) -> Tree:
    return tree_map(lambda s, t: s + scale * t, a, b)
