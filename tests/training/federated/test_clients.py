"""Clients trained in one batch: what each would learn alone."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from training.federated.clients import LocalSGD
from training.federated.fashion import MODELS
from training.federated.rules import RULES, MeanOfBuffers, Update

N = 4


def local_sgd(model: nn.Module, **options) -> LocalSGD:
    generator = torch.Generator().manual_seed(0)
    inputs, labels = torch.randn(60, 1, 28, 28, generator=generator), torch.randint(0, 10, (60,), generator=generator)
    parts = np.split(np.random.default_rng(0).permutation(60), [3, 10, 30])  # 3, 7, 20 and 30 examples
    return LocalSGD(model, inputs, labels, parts, **({"steps": 4, "batch": 5, "lr": 0.1} | options))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(784, 8), nn.Linear(8, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.into(inputs.flatten(1))
        return self.out(hidden + torch.tanh(hidden))


def shared() -> nn.Module:
    twice = nn.Linear(10, 10)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10), nn.ReLU(), twice, nn.ReLU(), twice)


class Spare(nn.Module):
    """Has a trained layer that the loss does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.out = nn.Linear(784, 3), nn.Linear(784, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.out(inputs.flatten(1))


class ResNet(nn.Module):
    """A residual block with batch norms, whose running means and variances are buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Conv2d(1, 4, 3, stride=4)
        self.block = nn.Sequential(
            nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        )
        self.out = nn.Linear(4, 10)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = self.into(inputs)
        return self.out((hidden + self.block(hidden)).mean((2, 3)))


OTHERS = {
    "batch norms": ResNet,
    "no Sequential": Residual,
    "a spare layer": Spare,
    "only one layer": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)),
    "a layer that comes twice": shared,
    "in place": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 8), nn.ReLU(inplace=True), nn.Linear(8, 10)),
    "no bias": lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 8, bias=False), nn.GELU(), nn.Linear(8, 10)),
    "a norm between": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 6), nn.SiLU(), nn.Linear(6, 10)
    ),
    "a frozen layer": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(784, 8).requires_grad_(False), nn.Tanh(), nn.Linear(8, 10)
    ),
    "rows, not examples": lambda: nn.Sequential(nn.Linear(28, 3), nn.Flatten(), nn.Sigmoid(), nn.Linear(84, 10)),
}


@pytest.mark.parametrize("name", [*MODELS, *OTHERS])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_a_batch_of_clients_learns_what_a_plain_loop_does(name: str, weight_decay: float) -> None:
    model = OTHERS[name]() if name in OTHERS else MODELS[name](8)
    plain_model = copy.deepcopy(model)
    clients = local_sgd(model, weight_decay=weight_decay)
    params, who, seeds = clients.start, [2, 0, 3, 2], [5, 6, 7, 8]
    before = params.clone()
    together = clients(params, who, seeds)
    alone = clients.one_by_one(params, who, seeds, plain_model)
    assert [count for _, count in together] == [count for _, count in alone] == [20, 3, 30, 20]
    for (ours, _), (plain, _) in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
        assert plain.norm() > 0.1
    assert torch.equal(params, before)
    assert not torch.equal(together[0][0], together[3][0])  # the same client, another seed


def test_a_client_without_examples_is_refused() -> None:
    inputs, labels = torch.randn(5, 784), torch.zeros(5, dtype=torch.int64)
    with pytest.raises(ValueError, match="client 1 has no examples"):
        LocalSGD(nn.Linear(784, 10), inputs, labels, [np.arange(5), np.arange(0)])


def test_rows_are_on_the_device_of_the_inputs() -> None:
    inputs, labels = torch.empty(5, 3, device="meta"), torch.empty(5, device="meta", dtype=torch.int64)
    clients = LocalSGD(nn.Linear(3, 2), inputs, labels, [np.arange(5)])
    assert clients._rows([0], [0]).device == inputs.device


def test_each_may_start_from_a_model_of_its_own() -> None:
    model = MODELS["mlp"](8)
    clients = local_sgd(model)
    starts = torch.stack([clients.start, local_sgd(MODELS["mlp"](8)).start, torch.zeros_like(clients.start)])
    together = clients(starts, [1, 1, 3], [0, 0, 2])
    for row, client, seed, (ours, _) in zip(starts, [1, 1, 3], [0, 0, 2], together, strict=True):
        ((alone, _),) = clients(row, [client], [seed])
        torch.testing.assert_close(ours, alone, rtol=1e-4, atol=1e-6)


def test_one_step_on_all_examples_is_the_gradient() -> None:
    model = MODELS["mlp"](8)
    clients = local_sgd(model, steps=1, batch=20, lr=0.5)
    ((delta, _),) = clients(clients.start, [2], [0])
    rows = torch.from_numpy(clients.parts[2])
    nn.functional.cross_entropy(model(clients.inputs[rows]), clients.targets[rows]).backward()
    gradient = torch.cat([tensor.grad.flatten() for tensor in model.parameters()])
    torch.testing.assert_close(delta, -0.5 * gradient, rtol=1e-4, atol=1e-6)


def test_a_client_goes_through_all_its_examples_before_one_comes_again() -> None:
    clients = local_sgd(MODELS["mlp"](8), steps=4, batch=7)
    (steps,) = clients._rows([1], [0])
    assert steps.shape == (4, 7)
    for step in steps:  # its 7 examples, in four orders
        assert sorted(step.tolist()) == sorted(clients.parts[1].tolist())
    assert len({tuple(step.tolist()) for step in steps}) == 4


def test_a_loss_of_its_own_with_real_targets() -> None:
    """Least squares by one step from zero: the gradient in closed form."""
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(20, 3, generator=generator), torch.randn(20, 1, generator=generator)
    model = nn.Sequential(nn.Linear(3, 1))
    parts = [np.arange(20)]
    clients = LocalSGD(model, inputs, targets, parts, steps=1, batch=20, lr=0.5, loss=nn.functional.mse_loss)
    ((delta, _),) = clients(torch.zeros(4), [0], [0])
    design = torch.cat([inputs, torch.ones(20, 1)], 1)
    torch.testing.assert_close(delta, 0.5 * 2 / 20 * (design.T @ targets)[:, 0], rtol=1e-4, atol=1e-6)


def test_running_means_follow_the_batches_and_an_adaptive_rule_leaves_them_to_the_mean() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(784, momentum=0.25), nn.Linear(784, 10))
    clients = local_sgd(model, steps=1, batch=20)
    count = sum(parameter.numel() for parameter in model.parameters())
    answers = clients(clients.start, [2, 3], [0, 0])
    rows = torch.from_numpy(clients.parts[2])  # all 20 are one batch
    expected = 0.25 * clients.inputs[rows].flatten(1).mean(0)
    torch.testing.assert_close(answers[0][0][count : count + 784], expected, rtol=1e-4, atol=1e-6)
    rule, alone = MeanOfBuffers(RULES["fadas"](lr=0.1), count), RULES["fadas"](lr=0.1)
    updates = [Update(client, delta, clients.start) for client, (delta, _) in zip([2, 3], answers, strict=True)]
    _, moved = rule.step(rule.init(clients.start), clients.start, updates)
    _, expected_all = alone.step(alone.init(clients.start), clients.start, updates)
    assert torch.equal(moved[:count], expected_all[:count])
    mean = torch.stack([delta for delta, _ in answers]).mean(0)
    assert torch.equal(moved[count:], (clients.start + mean)[count:])
    assert (moved[count + 784 :] > 0).all()  # variances


def test_dropout_depends_on_the_seeds_alone_and_differs_between_clients() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(784, 10))
    clients = local_sgd(model, steps=1, batch=20)
    (first, _), (second, _) = clients(clients.start, [2, 2], [0, 0])
    torch.randn(3)
    (again, _), _ = clients(clients.start, [2, 2], [0, 0])
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
