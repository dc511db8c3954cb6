"""Clients that train on their examples by SGD: many in one batch, or sequentially."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from training.federated.rules import Layout
from training.federated.stack import Loss, Stack, exchanged_tensors


@dataclass(frozen=True)
class LocalSGD:
    """K ``steps`` of SGD on ``loss``, each on ``batch`` of the client's examples: a `simulator.Train`.

    ``inputs`` [N, ...], ``targets`` [N, ...]; ``parts[client]``: its rows. A client visits its examples in random
    orders of its seed, one order after another. The model trains in the mode that it is in. Its vector is in the order
    of ``exchanged_tensors``: a client starts from the server's buffers, such as running means, and sends their change;
    `rules.MeanOfBuffers` keeps an adaptive rule off them. Dropout masks depend on which clients train at once.
    Raises ValueError for a client without examples.
    """

    model: nn.Module
    inputs: Tensor
    targets: Tensor
    parts: Sequence[np.ndarray]
    steps: int = 10
    batch: int = 20
    lr: float = 0.1
    weight_decay: float = 0.0
    loss: Loss = nn.functional.cross_entropy

    def __post_init__(self) -> None:
        empty = [client for client, part in enumerate(self.parts) if not len(part)]
        if empty:
            raise ValueError(f"client {empty[0]} has no examples: leave it out of parts")

    @property
    def start(self) -> Tensor:
        """The model's own vector [P]."""
        return torch.cat([tensor.detach().reshape(-1) for tensor in exchanged_tensors(self.model).values()])

    def __call__(self, params: Tensor, clients: Sequence[int], seeds: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Δ [P] and the number of examples of each client, all trained at once.

        ``params`` [P], or [n, P] for a separate start of each client.
        """
        starts = params.expand(len(clients), -1)
        stack = Stack(self.model, starts, self.loss)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(sum(seeds) % 2**63)  # of dropout
            for rows in self._rows(clients, seeds).transpose(0, 1):  # [n, batch], once a step
                inputs = self.inputs.index_select(0, rows.reshape(-1)).unflatten(0, rows.shape)
                stack.step(inputs, self.targets[rows], self.lr, self.weight_decay)
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
            layout = Layout.of(exchanged_tensors(model))
            model.load_state_dict(layout.unpack(params.clone()), strict=False)
            optimiser = torch.optim.SGD(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
            for batch in rows:
                optimiser.zero_grad()
                self.loss(model(self.inputs[batch]), self.targets[batch]).backward()
                optimiser.step()
            end = layout.pack(exchanged_tensors(model)).detach()
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
        batches = torch.from_numpy(np.stack(rows)).view(len(clients), self.steps, self.batch)
        return batches.to(self.inputs.device)
