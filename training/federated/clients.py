"""Clients that learn from examples of their own by SGD: many in one batch, or one after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.federated.stack import Stack


@dataclass(frozen=True)
class LocalSGD:
    """K ``steps`` of SGD on the cross-entropy, each on ``batch`` of the client's examples: a `simulator.Train`.

    ``inputs`` [N, ...], ``labels`` [N]; ``parts[client]``: its rows of them. A client goes through its examples in an
    order drawn from its seed, and through another when they run out. The model's parameters are all that is trained:
    it may have no buffers. Its vector is in the order of ``model.named_parameters()``.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    parts: Sequence[np.ndarray]
    steps: int = 10
    batch: int = 20
    lr: float = 0.1
    weight_decay: float = 0.0

    def __call__(self, params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Δ [P] and the number of examples of each client, all trained at once.

        ``params`` [P], or [n, P] where each has a start of its own.
        """
        starts = params.expand(len(clients), -1)
        stack = Stack(self.model, starts)
        for rows in self._rows(clients, seeds).transpose(0, 1):  # [n, batch], once a step
            inputs = self.inputs.index_select(0, rows.reshape(-1)).unflatten(0, rows.shape)
            stack.step(inputs, self.labels[rows], self.lr, self.weight_decay)
        deltas = stack.vectors() - starts
        return [(delta, len(self.parts[client])) for delta, client in zip(deltas, clients, strict=True)]

    def one_by_one(
        self, params: Tensor, clients: Sequence[int], seeds: Sequence[int], model: nn.Module
    ) -> list[tuple[Tensor, int]]:
        """The same with a plain loop over clients in ``model``, which it changes: what it is checked and timed against.

        ``params`` [P].
        """
        found = []
        for client, rows in zip(clients, self._rows(clients, seeds), strict=True):
            nn.utils.vector_to_parameters(params.clone(), model.parameters())
            optimiser = torch.optim.SGD(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            for batch in rows:
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(self.inputs[batch]), self.labels[batch]).backward()
                optimiser.step()
            end = nn.utils.parameters_to_vector(model.parameters()).detach()
            found.append((end - params, len(self.parts[client])))
        return found

    def _rows(self, clients: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """The rows of ``inputs`` that each client reads: [n, steps, batch]."""
        needed = self.steps * self.batch
        drawn = []
        for client, seed in zip(clients, seeds, strict=True):
            own, rng = self.parts[client], np.random.default_rng(seed)
            orders = [rng.permutation(own) for _ in range(-(-needed // len(own)))]
            drawn.append(np.concatenate(orders)[:needed])
        return torch.from_numpy(np.stack(drawn)).view(len(clients), self.steps, self.batch)
