"""Softmax attention and a ReLU layer with hinge loss, trained by SGD: many runs at once.

F = aᵀReLU(W_O Σ_i W_V p_i softmax((W_K p_i)ᵀ W_Q p_query)), hinge loss max(0, 1 − zF). W_Q, W_K, W_V start at δI, W_O
Gaussian, a = ±1/√m fixed, half of each sign (reconstruction).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theory.icl.data import Batch, Data, draw


@dataclass(frozen=True)
class Setting:
    """A training setting of R runs: [R] tensors ``alphas`` and ``lengths``; ``pairs`` [T, 2], the training tasks."""

    data: Data
    alphas: Tensor
    lengths: Tensor
    pairs: Tensor
    batch: int = 256
    rate: float = 0.1
    delta: float = 0.2
    neurons: int = 100
    std: float = 0.02


@dataclass
class Models:
    """W_Q, W_K, W_V [R, D, D] and W_O [R, m, D], with D = d + d_y."""

    Q: Tensor
    K: Tensor
    V: Tensor
    O: Tensor  # noqa: E741

    @classmethod
    def start(cls, setting: Setting, seed: int) -> Models:
        runs, width = len(setting.alphas), setting.data.width
        generator = torch.Generator().manual_seed(seed)
        eye = setting.delta * torch.eye(width).expand(runs, -1, -1)
        return cls(
            eye.clone(),
            eye.clone(),
            eye.clone(),
            setting.std * torch.randn((runs, setting.neurons, width), generator=generator),
        )

    @property
    def parameters(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.Q, self.K, self.V, self.O

    def one(self, run: int) -> Models:
        return Models(*(each[run] for each in self.parameters))

    @property
    def neurons(self) -> Tensor:
        """W_O W_V [..., m, D]: what each neuron reads."""
        return self.O @ self.V


def signs(neurons: int) -> Tensor:
    """a [m]: the first half positive."""
    a = torch.ones(neurons)
    a[neurons // 2 :] = -1
    return a / neurons**0.5


def train_outputs(models: Models, batch: Batch, data: Data) -> Tensor:
    """F [R, B] on in-domain prompts: a column has three entries, so that logits are gathered and sums scattered."""
    relevant, irrelevant = batch.relevant, data.M1 + batch.irrelevant
    size = data.beta * batch.kappa
    query = torch.zeros(*batch.live.shape[:2], data.width)
    query = query.scatter(2, relevant[..., -1:], data.beta).scatter(2, irrelevant[..., -1:], size[..., -1:])
    u = query @ models.Q.mT @ models.K  # rows (W_KᵀW_Q p)ᵀ
    shown = (relevant[..., :-1], irrelevant[..., :-1], size[..., :-1], batch.label[..., :-1])
    logits = data.beta * u.gather(2, shown[0]) + shown[2] * u.gather(2, shown[1]) + shown[3] * u[..., data.d, None]
    weights = logits.masked_fill(~batch.live, -torch.inf).softmax(-1)
    read = torch.zeros_like(query).scatter_add(2, shown[0], data.beta * weights)
    read = read.scatter_add(2, shown[1], weights * shown[2])
    told = torch.nn.functional.pad((weights * shown[3]).sum(-1, keepdim=True), (data.d, data.d_y - 1))
    return head(models, read + told)


def head(models: Models, read: Tensor) -> Tensor:
    """F [...] of what attention read [..., N, D]."""
    hidden = (read @ models.V.mT @ models.O.mT).relu()
    return hidden @ signs(models.O.shape[-2])


def prefix_outputs(models: Models, tokens: Tensor, lengths: list[int]) -> Tensor:
    """F [N, len(lengths)] of one model at each context length, from tokens [N, l+1, D]: softmax by running sums."""
    weights = attention(models, tokens, normalised=False)
    read = (weights[..., None] * tokens[:, :-1]).cumsum(1) / weights.cumsum(1)[..., None]
    return head(models, read[:, torch.tensor(lengths) - 1])


def attention(models: Models, tokens: Tensor, normalised: bool = True) -> Tensor:
    """Softmax weights [N, l] of one model, or e^logit up to a factor a prompt."""
    u = tokens[:, -1] @ models.Q.T @ models.K
    logits = torch.einsum("nld,nd->nl", tokens[:, :-1], u)
    return logits.softmax(-1) if normalised else (logits - logits.amax(1, keepdim=True)).exp()


def hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    return (1 - labels * outputs).relu()


def train(
    models: Models,
    setting: Setting,
    seed_of: Callable[[int], int],
    begin: int,
    end: int,
    record: Callable[[int, Models, Tensor], None],
) -> Models:
    """SGD steps begin … end−1, each batch drawn from a seed of its own; ``record`` sees what came before the update."""
    generator = torch.Generator()
    for step in range(begin, end):
        generator.manual_seed(seed_of(step))
        batch = draw(generator, setting.data, setting.pairs, setting.lengths, setting.alphas, setting.batch)
        free = [each.requires_grad_() for each in models.parameters]
        loss = hinge(train_outputs(models, batch, setting.data), batch.label[..., -1]).mean(-1)
        gradients = torch.autograd.grad(loss.sum(), free)  # runs share nothing: each gets its own gradient
        now = Models(*(each.detach() for each in free))
        record(step, now, loss.detach())
        models = Models(*(each - setting.rate * g for each, g in zip(now.parameters, gradients, strict=True)))
    return models
