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


def gradient(models: Models, batch: Batch, data: Data) -> tuple[Tensor, Models]:
    """The hinge loss [R], the mean over in-domain prompts, and its gradient in each parameter, written out.

    A column has three entries (μ, ν, y), the first d + 1 coordinates hold all of them, and W_Q, W_K matter by
    P = W_QᵀW_K alone: logits are gathered, sums scattered. `dense_loss` is the same written plainly.
    """
    live = data.d + 1
    at = torch.stack([batch.relevant, data.M1 + batch.irrelevant], dim=-2)  # [R, B, 2, l+1]
    size = torch.stack([torch.full_like(batch.kappa, data.beta), data.beta * batch.kappa], dim=-2)
    query = torch.zeros(*batch.live.shape[:2], live).scatter(2, at[..., -1], size[..., -1])
    at, size, label = at[..., :-1].flatten(2), size[..., :-1], batch.label[..., :-1]
    P = models.Q[..., :live].mT @ models.K[..., :live]
    u = query @ P
    entries = (size * u.gather(2, at).view_as(size)).sum(-2)
    weights = (entries + label * u[..., -1:]).masked_fill_(~batch.live, -torch.inf).softmax(-1)
    read = torch.zeros_like(u).scatter_add_(2, at, (size * weights[..., None, :]).flatten(2))
    read[..., -1] = (weights * label).sum(-1)
    reads = models.O @ models.V[..., :live]  # what a neuron reads [R, m, d + 1]
    hidden, a = (read @ reads.mT).relu_(), signs(models.O.shape[1])
    target = batch.label[..., -1]
    losses = hinge(hidden @ a, target)

    slope = -target * (losses > 0) / target.shape[1]  # ∂loss/∂F
    d_hidden = (hidden > 0) * slope[..., None] * a
    d_reads, d_read = d_hidden.mT @ read, d_hidden @ reads
    pull = (size * d_read.gather(2, at).view_as(size)).sum(-2) + label * d_read[..., -1:]
    d_logits = weights * (pull - (weights * pull).sum(-1, keepdim=True))
    d_u = torch.zeros_like(u).scatter_add_(2, at, (size * d_logits[..., None, :]).flatten(2))
    d_u[..., -1] = (d_logits * label).sum(-1)
    d_P = query.mT @ d_u
    rest = (0, data.width - live)
    found = (
        torch.nn.functional.pad(models.K[..., :live] @ d_P.mT, rest),
        torch.nn.functional.pad(models.Q[..., :live] @ d_P, rest),
        torch.nn.functional.pad(models.O.mT @ d_reads, rest),
        d_reads @ models.V[..., :live].mT,
    )
    return losses.mean(-1), Models(*found)


def dense_loss(models: Models, tokens: Tensor, labels: Tensor) -> Tensor:
    """The mean hinge loss of one run, plainly: tokens [B, l+1, D], the query's labels [B]."""
    read = torch.einsum("bl,bld->bd", attention(models, tokens), tokens[:, :-1])
    return hinge(head(models, read), labels).mean()


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
        loss, slopes = gradient(models, batch, setting.data)
        record(step, models, loss)
        after = (each - setting.rate * d for each, d in zip(models.parameters, slopes.parameters, strict=True))
        models = Models(*after)
    return models
