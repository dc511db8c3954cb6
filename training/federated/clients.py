"""Clients that train on their examples by SGD: many in one batch, or sequentially."""

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

    ``inputs`` [N, ...], ``labels`` [N]; ``parts[client]``: its rows. A client visits its examples in random orders of
    its seed, one order after another. Only parameters are trained: the model must have no buffers. Its vector is in the
    order of ``model.named_parameters()``.
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

        ``params`` [P], or [n, P] for a separate start of each client.
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
        """The same by a loop over clients in ``model``, which it changes: the reference for tests and timings.

        ``params`` [P].
        """
        answers = []
        for client, rows in zip(clients, self._rows(clients, seeds), strict=True):
            nn.utils.vector_to_parameters(params.clone(), model.parameters())
            optimiser = torch.optim.SGD(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            for batch in rows:
                optimiser.zero_grad()
                nn.functional.cross_entropy(model(self.inputs[batch]), self.labels[batch]).backward()
                optimiser.step()
            end = nn.utils.parameters_to_vector(model.parameters()).detach()
            answers.append((end - params, len(self.parts[client])))
        return answers

    def _rows(self, clients: Sequence[int], seeds: Sequence[int]) -> Tensor:
        """The rows of ``inputs`` of each client: [n, steps, batch]."""
        needed = self.steps * self.batch
        rows = []
        for client, seed in zip(clients, seeds, strict=True):
            examples, rng = self.parts[client], np.random.default_rng(seed)
            orders = [rng.permutation(examples) for _ in range(-(-needed // len(examples)))]
            rows.append(np.concatenate(orders)[:needed])
        return torch.from_numpy(np.stack(rows)).view(len(clients), self.steps, self.batch)
