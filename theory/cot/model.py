"""The attention-only model, trained by SGD for many runs at once.

f = Σ_i W_V p̃_i softmax((W_K p̃_i)ᵀ W_Q p̃_query), ℓ = ½‖z − f‖². W_Q = W_K = δI at the start; W_V reads the y half and
is not trained (reconstruction: the paper does not specify it).

Training patterns are axes (see `data`), so that attention needs W_KᵀW_Q at M·K queries only: a table of logits per run,
from which columns gather their three entries. `dense_loss` is a direct implementation for one run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from theory.cot.data import TrainingBatch, training_batch


@dataclass(frozen=True)
class Setting:
    """The training setting of R runs: ``alphas`` and ``lengths`` (examples per prompt) are [R], the rest is shared."""

    alphas: Tensor
    lengths: Tensor
    d: int = 30
    M: int = 20
    steps: int = 2
    batch: int = 200
    rate: float = 1.0
    delta: float = 0.3


@dataclass
class Models:
    """W_Q, W_K [R, 2d, 2d]."""

    Q: Tensor
    K: Tensor

    @classmethod
    def start(cls, setting: Setting) -> Models:
        eye = setting.delta * torch.eye(2 * setting.d).expand(len(setting.alphas), -1, -1)
        return cls(eye.clone(), eye.clone())

    @property
    def product(self) -> Tensor:
        """W_KᵀW_Q [R, 2d, 2d]."""
        return self.K.mT @ self.Q


def queries(d: int, M: int, steps: int) -> Tensor:
    """p̃_query [2d, K·M] of pattern m at step k, in column kM + m."""
    columns = torch.zeros(2 * d, steps, M)
    columns[torch.arange(M), :, torch.arange(M)] = 1
    for k in range(steps):
        columns[M + k, k] = 1
    return columns.reshape(2 * d, steps * M)


def columns(batch: TrainingBatch, d: int, M: int) -> Tensor:
    """p̃_i [R, B, L, 2d] of a training batch."""
    eye = torch.eye(2 * d)
    return eye[batch.x] + eye[d + batch.y] + eye[M + batch.step]


def attention(models: Models, batch: TrainingBatch, d: int, M: int) -> Tensor:
    """Softmax weights [R, B, L], through the table of logits."""
    steps = int(batch.step.max()) + 1
    table = (models.K.mT @ (models.Q @ queries(d, M, steps))).mT.reshape(-1, 2 * d)  # [R·K·M, 2d]
    runs = torch.arange(len(batch.query))[:, None]
    row = (((runs * steps + batch.query_step) * M + batch.query) * 2 * d)[..., None]
    flat = table.flatten()
    logits = flat[row + batch.x] + flat[row + d + batch.y] + flat[row + M + batch.step]
    return logits.masked_fill(~batch.live, -torch.inf).softmax(-1)


def loss(models: Models, batch: TrainingBatch, d: int, M: int) -> Tensor:
    """½‖z − f‖², the mean over a batch [R]."""
    weights = attention(models, batch, d, M)
    f = torch.zeros(*batch.query.shape, M).scatter_add(2, batch.y, weights)
    target = torch.nn.functional.one_hot(batch.target, M)
    return 0.5 * ((target - f) ** 2).sum(-1).mean(-1)


def gradient(models: Models, batch: TrainingBatch, d: int, M: int) -> tuple[Tensor, Tensor, Tensor]:
    """The loss [R] and its gradients in W_Q and W_K [R, 2d, 2d], written out."""
    steps = int(batch.step.max()) + 1
    weights = attention(models, batch, d, M)
    f = torch.zeros(*batch.query.shape, M).scatter_add_(2, batch.y, weights)
    error = f.scatter_add_(2, batch.target[..., None], -torch.ones_like(f[..., :1]))  # f − z
    slope = weights * (error.gather(2, batch.y) - _weighted_error(error, weights, batch))  # ∂ℓ/∂logit
    runs = torch.arange(len(batch.query))[:, None]
    row = (((runs * steps + batch.query_step) * M + batch.query) * 2 * d)[..., None]
    table = torch.zeros(len(models.Q) * steps * M * 2 * d)
    for index in (batch.x, d + batch.y, (M + batch.step).expand_as(batch.x)):
        table.index_add_(0, (row + index).flatten(), slope.flatten())
    d_product = table.reshape(-1, steps * M, 2 * d).mT @ queries(d, M, steps).T / batch.query.shape[1]
    return 0.5 * (error**2).sum(-1).mean(-1), models.K @ d_product, models.Q @ d_product.mT


def _weighted_error(error: Tensor, weights: Tensor, batch: TrainingBatch) -> Tensor:
    """Σ_i s_i (f − z)·y_i [R, B, 1]."""
    return (weights * error.gather(2, batch.y)).sum(-1, keepdim=True)


def dense_loss(Q: Tensor, K: Tensor, tokens: Tensor, live: Tensor, query: Tensor, target: Tensor) -> Tensor:
    """½‖z − f‖² of one run, computed directly: tokens [B, L, 2d], live [B, L], query [B, 2d], target [B, d]."""
    logits = torch.einsum("bld,bd->bl", tokens @ K.T, query @ Q.T)
    weights = logits.masked_fill(~live, -torch.inf).softmax(-1)
    f = torch.einsum("bl,bld->bd", weights, tokens[..., target.shape[-1] :])
    return 0.5 * ((target - f) ** 2).sum(-1).mean()


def train(
    models: Models,
    setting: Setting,
    transitions: Tensor,
    seed_of: Callable[[int], int],
    begin: int,
    end: int,
    record: Callable[[int, Models, Tensor, TrainingBatch], None],
) -> Models:
    """SGD steps begin … end−1, with one seed per batch; ``record`` gets the models before the update."""
    generator = torch.Generator()
    for step in range(begin, end):
        generator.manual_seed(seed_of(step))
        batch = training_batch(generator, transitions, setting.steps, setting.lengths, setting.alphas, setting.batch)
        value, dQ, dK = gradient(models, batch, setting.d, setting.M)
        record(step, models, value, batch)
        models = Models(models.Q - setting.rate * dQ, models.K - setting.rate * dK)
    return models
