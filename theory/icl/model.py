"""Softmax attention and a ReLU layer with hinge loss, trained by SGD for many runs at once.

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

    def single(self, run: int) -> Models:
        return Models(*(parameter[run] for parameter in self.parameters))

    @property
    def neurons(self) -> Tensor:
        """W_O W_V [..., m, D]: the input weights of each neuron."""
        return self.O @ self.V


def signs(neurons: int) -> Tensor:
    """a [m]: the first half positive."""
    a = torch.ones(neurons)
    a[neurons // 2 :] = -1
    return a / neurons**0.5


def gradient(models: Models, batch: Batch, data: Data) -> tuple[Tensor, Models]:
    """The hinge loss [R], the mean over in-domain prompts, and its gradient in each parameter, written out.

    In units of β a column is e_r + κ e_s + y e_d, so that logits are gathered and sums scattered; the loss depends on
    W_Q and W_K through P = W_QᵀW_K only. Prompts beyond the margin have no gradient. `dense_loss` is a direct
    implementation.
    """
    live = min(data.width, -(-(data.d + 1) // 16) * 16)  # d + 1 coordinates, rounded up for fast matrix products
    unit = torch.ones(live)
    unit[: data.d] = data.beta
    Q, K, V = (tensor[..., :live] for tensor in (models.Q, models.K, models.V))
    columns = Columns(batch.relevant, data.M1 + batch.irrelevant, batch.kappa, batch.label, data.d)
    target, query = batch.label[..., -1], torch.zeros(*batch.live.shape[:2], live)
    query = query.scatter_(2, columns.r[..., -1:], 1.0).scatter_(2, columns.s[..., -1:], columns.kappa[..., -1:])
    columns = columns.map(lambda tensor: tensor[..., :-1])
    logits = columns.gathered(query @ (data.beta * unit * (Q.mT @ K)))
    weights = torch.where(batch.live, logits, -torch.inf).softmax(-1)
    read = columns.scattered(weights, live)
    reads, a = unit * (models.O @ V), signs(models.O.shape[1])  # input weights of neurons [R, m, live]
    hidden = (read @ reads.mT).relu_()
    losses = hinge(hidden @ a, target)

    missed = losses > 0
    slope = -(target * missed)[..., None] / target.shape[1]  # ∂loss/∂F
    select_missed = _select_missed(missed)
    columns = columns.map(select_missed)
    slope, read, query, weights, fired = map(select_missed, (slope, read, query, weights, hidden.sign_()))
    d_reads = unit * a[:, None] * (fired.mT @ (slope * read))
    pull = columns.gathered(slope * (fired @ (a[:, None] * reads)))
    d_logits = weights * (pull - (weights * pull).sum(-1, keepdim=True))
    d_P = data.beta * unit * (query.mT @ columns.scattered(d_logits, live))
    dQ, dK, dV = (
        torch.nn.functional.pad(tensor, (0, data.width - live))
        for tensor in (K @ d_P.mT, Q @ d_P, models.O.mT @ d_reads)
    )
    return losses.mean(-1), Models(dQ, dK, dV, d_reads @ V.mT)


@dataclass(frozen=True)
class Columns:
    """Columns e_r + κ e_s + y e_d, [R, B, l] each."""

    r: Tensor
    s: Tensor
    kappa: Tensor
    label: Tensor
    d: int

    def map(self, change: Callable[[Tensor], Tensor]) -> Columns:
        return Columns(change(self.r), change(self.s), change(self.kappa), change(self.label), self.d)

    def gathered(self, v: Tensor) -> Tensor:
        """The product of each column with its prompt's v [R, B, D]: [R, B, l]."""
        return torch.addcmul(v.gather(2, self.r), self.kappa, v.gather(2, self.s)).addcmul_(
            self.label, v[..., self.d, None]
        )

    def scattered(self, w: Tensor, width: int) -> Tensor:
        """The sum of a prompt's columns with weights w [R, B, l]: [R, B, width]."""
        total = torch.zeros(*w.shape[:2], width).scatter_add_(2, self.r, w).scatter_add_(2, self.s, w * self.kappa)
        total[..., self.d] = (w * self.label).sum(-1)
        return total


def _select_missed(missed: Tensor) -> Callable[[Tensor], Tensor]:
    """A function that cuts [R, B, n] to the largest count of ``missed`` [R, B] prompts of any run, those first."""
    count = int(missed.sum(1).max())
    if count > 0.8 * missed.shape[1]:
        return lambda tensor: tensor
    first = missed.byte().argsort(1, descending=True)[:, :count]
    rows = (first + missed.shape[1] * torch.arange(len(missed))[:, None]).flatten()
    return lambda tensor: (
        tensor.reshape(-1, tensor.shape[-1]).index_select(0, rows).view(*first.shape, tensor.shape[-1])
    )


def dense_loss(models: Models, tokens: Tensor, labels: Tensor) -> Tensor:
    """The mean hinge loss of one run, computed directly: tokens [B, l+1, D], the query's labels [B]."""
    read = torch.einsum("bl,bld->bd", attention(models, tokens), tokens[:, :-1])
    return hinge(head(models, read), labels).mean()


def head(models: Models, read: Tensor) -> Tensor:
    """F [..., N] of attention outputs [..., N, D]."""
    hidden = (read @ models.V.mT @ models.O.mT).relu()
    return hidden @ signs(models.O.shape[-2])


def prefix_outputs(models: Models, tokens: Tensor, lengths: list[int]) -> Tensor:
    """F [N, len(lengths)] of one model at each context length, from tokens [N, l+1, D]."""
    logits = _logits(models, tokens)
    read = [
        torch.einsum("nl,nld->nd", logits[:, :length].softmax(-1), tokens[:, :length]) for length in lengths
    ]  # one softmax each: a running sum of e^logit underflows where the largest logit comes late
    return head(models, torch.stack(read, dim=1))


def attention(models: Models, tokens: Tensor) -> Tensor:
    """Softmax weights [N, l] of one model."""
    return _logits(models, tokens).softmax(-1)


def _logits(models: Models, tokens: Tensor) -> Tensor:
    """(W_K p_i)ᵀ W_Q p_query [N, l] of one model."""
    u = tokens[:, -1] @ models.Q.T @ models.K
    return torch.einsum("nld,nd->nl", tokens[:, :-1], u)


def hinge(outputs: Tensor, labels: Tensor) -> Tensor:
    return (1 - labels * outputs).relu()


def misclassified(outputs: Tensor, labels: Tensor) -> Tensor:
    """1.0 where the output's sign is not the label (±1), else 0.0. An output of 0 or NaN has no sign."""
    return (~(outputs * labels > 0)).float()


def train(
    models: Models,
    setting: Setting,
    seed_of: Callable[[int], int],
    begin: int,
    end: int,
    record: Callable[[int, Models, Tensor], None],
) -> Models:
    """SGD steps begin … end−1, with one seed per batch; ``record`` gets the models before the update."""
    generator = torch.Generator()
    for step in range(begin, end):
        generator.manual_seed(seed_of(step))
        batch = draw(generator, setting.data, setting.pairs, setting.lengths, setting.alphas, setting.batch)
        loss, slopes = gradient(models, batch, setting.data)
        record(step, models, loss)
        updated = (
            parameter - setting.rate * d for parameter, d in zip(models.parameters, slopes.parameters, strict=True)
        )
        models = Models(*updated)
    return models
