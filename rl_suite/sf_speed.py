"""Updates per second of SF-DQN: all tasks in one batched call against a Python loop over tasks."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import nn

from rl_suite.sf_networks import StackedMLP
from rl_suite.sf_replay import Batch


class LoopedUpdate:
    """The update of ``DQNAgent.update`` with features, with one module and one Adam per task.

    ``shared``: compute every ψ_j(s') once per update; otherwise once for each task that needs it, as public
    implementations of SF-DQN do. Starts from the parameters of ``stacked``.
    """

    def __init__(self, stacked: StackedMLP, w: torch.Tensor, actions: int, gamma: float, rate: float, shared: bool):
        self.w, self.actions, self.gamma, self.shared = w, actions, gamma, shared
        self.nets = [_single_network(stacked, i) for i in range(len(w))]
        self.targets = [_single_network(stacked, i) for i in range(len(w))]
        self.optimisers = [torch.optim.Adam(net.parameters(), lr=rate, fused=True) for net in self.nets]

    def update(self, batch: Batch) -> None:
        ahead = self._ahead(batch)
        with torch.no_grad():
            bests = []
            for w in self.w:
                psi = ahead if self.shared else self._ahead(batch)
                bests.append(torch.stack([task_psi @ w for task_psi in psi]).amax(0).argmax(1))
        rows = torch.arange(len(batch.a))
        for net, frozen, optimiser, best in zip(self.nets, self.targets, self.optimisers, bests, strict=True):
            with torch.no_grad():
                after = self._psi(frozen, batch.next_s)[rows, best]
                target = batch.phi + self.gamma * batch.goes_on[:, None] * after
            loss = (self._psi(net, batch.s)[rows, batch.a] - target).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()

    @torch.no_grad()
    def _ahead(self, batch: Batch) -> list[torch.Tensor]:
        return [self._psi(net, batch.next_s) for net in self.nets]

    def _psi(self, net: nn.Module, s: torch.Tensor) -> torch.Tensor:
        return net(s).unflatten(1, (self.actions, -1))


def per_second(updates: list[Callable[[], object]], seconds: float, turns: int = 5) -> list[float]:
    """Median calls per second of each update over ``turns`` alternating turns, ``seconds`` in total for each."""
    for update in updates:
        update()
    rates: list[list[float]] = [[] for _ in updates]
    for _ in range(turns):
        for update, update_rates in zip(updates, rates, strict=True):
            began, calls = time.perf_counter(), 0
            while time.perf_counter() - began < seconds / turns:
                update()
                calls += 1
            update_rates.append(calls / (time.perf_counter() - began))
    return [sorted(update_rates)[turns // 2] for update_rates in rates]


def _single_network(stacked: StackedMLP, i: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for weight, bias in zip(stacked.weights, stacked.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        with torch.no_grad():
            linear.weight.copy_(weight[i].T)
            linear.bias.copy_(bias[i, 0])
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
