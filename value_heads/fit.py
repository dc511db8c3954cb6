"""Fitting V to the terminal reward on every response prefix: min_V E sum_t (V(s_t) - r(s_T))^2 (iro.md, value loss).

Rows are streamed, so that their features need not fit in memory at once. N rows of a batch, F features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from value_heads.features import Block, FeatureSpec
from value_heads.heads import Head, LinearHead, feature_places

Select = Literal["correlation", "loss"]
"""The criterion on held-out rows: highest correlation within groups (it predicts a search's lift), or lowest loss."""

ALPHAS = tuple(float(10 ** (k / 2)) for k in range(-8, 3))


class Rows(NamedTuple):
    """A batch of response prefixes. A group holds the rows that one prompt's search compares after one chunk.

    No group spans two batches.
    """

    features: Tensor  # [N, F]
    targets: Tensor  # [N]
    weights: Tensor  # [N], positive
    groups: Tensor  # [N] int64


@dataclass(frozen=True)
class HeadFit:
    """``scores``: setting (ridge and logistic: alpha; MLP: epoch) -> held-out score; ``chosen``: the best setting.

    ValueError for a head with a weight that is not finite.
    """

    head: Head
    chosen: float
    scores: dict[float, float]

    def __post_init__(self) -> None:
        if not all(weight.isfinite().all() for weight in self.head.weights()):
            raise ValueError("the fitted weights are not finite: check features and targets for infinities and NaN")

    @property
    def best_score(self) -> float:
        return self.scores[self.chosen]


class Pools(NamedTuple):
    """The rows that searches compare: response ``rows`` at token number ``t``, in group (prompt, chunk)."""

    rows: Tensor  # [N] int64
    t: Tensor  # [N] int64, from 1
    weights: Tensor  # [N] float64, positive
    groups: Tensor  # [N] int64


def pools(lengths_R: Tensor, prompt_ids_R: Tensor, weights_R: Tensor | None = None, stride: int = 1) -> Pools:
    """R responses as searches compare them after every chunk of ``stride`` tokens, each at its last token so far.

    A group holds all of a prompt's responses, like a search's pool: unfinished ones at the chunk's last token, finished
    ones at their last token. Its weight is the share of its responses that grew in the chunk; chunks in which none
    grew are skipped. A response's weights over all its groups sum to ``weights_R``.
    """
    ends_C = torch.arange(stride, int(lengths_R.max()) + stride, stride)
    t_RC = torch.minimum(ends_C, lengths_R[:, None])
    grew_RC = (ends_C - stride < lengths_R[:, None]).double()
    weight_R = torch.ones(len(lengths_R)).double() if weights_R is None else weights_R.double()
    _, prompt_R = prompt_ids_R.unique(return_inverse=True)
    share_RC = grew_RC - _less_group_mean(grew_RC, weight_R, prompt_R)
    share_RC /= share_RC.sum(1, keepdim=True)
    row_N, chunk_N = (share_RC > 0).nonzero(as_tuple=True)
    weight_N = weight_R[row_N] * share_RC[row_N, chunk_N]
    return Pools(row_N, t_RC[row_N, chunk_N], weight_N, prompt_ids_R[row_N] * len(ends_C) + chunk_N)


def response_rows(
    features_RLF: Tensor,
    targets: Tensor,
    lengths_R: Tensor,
    prompt_ids_R: Tensor,
    weights_R: Tensor | None = None,
    stride: int = 1,
) -> Rows:
    """``pools`` of R responses, as rows of a fit. targets: terminal rewards [R], or one a token [R, L]."""
    row_N, t_N, weight_N, group_N = pools(lengths_R, prompt_ids_R, weights_R, stride)
    target_N = targets[row_N] if targets.ndim == 1 else targets[row_N, t_N - 1]
    return Rows(features_RLF[row_N, t_N - 1], target_N.float(), weight_N.float(), group_N)


def lambda_returns(values_NT: Tensor, rewards_N: Tensor, mask_NT: Tensor, lam: float) -> Tensor:
    """Targets G [N, T] of V(s_t): G_t = (1 - lam) V(s_{t+1}) + lam G_{t+1}, and the reward at the last counted token.

    TD(lambda) with the reward at the end alone and no discount; reconstruction, the paper regresses on the reward
    (lam = 1). mask: bool, counted tokens, a prefix of each row; padding gets 0.
    """
    target_NT = torch.zeros_like(values_NT)
    for t in reversed(range(values_NT.shape[1])):
        if t + 1 == values_NT.shape[1]:
            target_NT[:, t] = rewards_N
        else:
            later = (1 - lam) * values_NT[:, t + 1] + lam * target_NT[:, t + 1]
            target_NT[:, t] = torch.where(mask_NT[:, t + 1], later, rewards_N)
    return target_NT.masked_fill(~mask_NT, 0.0)


class Moments:
    """The weighted sums of a least-squares fit, in float64. ``within``: of deviations from group means."""

    def __init__(self, batches: Iterable[Rows], within: bool):
        self.within = within
        self.total = self.x = self.y = self.xx = self.xy = self.yy = torch.zeros((), dtype=torch.float64)
        for batch in batches:
            x, y, w = batch.features.double(), batch.targets.double(), batch.weights.double()
            self.total, self.x, self.y = self.total + w.sum(), self.x + w @ x, self.y + w @ y
            if within:
                x, y = _less_group_mean(x, w, batch.groups), _less_group_mean(y, w, batch.groups)
            weighted = x * w[:, None]
            if self.xx.ndim:
                self.xx.addmm_(weighted.T, x)  # in place: [F, F] is most of a fit's memory
            else:
                self.xx = weighted.T @ x
            self.xy, self.yy = self.xy + y @ weighted, self.yy + w @ y**2

    def __add__(self, other: Moments) -> Moments:
        """Of both's rows together."""
        total = Moments([], self.within)
        for name in ("total", "x", "y", "xx", "xy", "yy"):
            setattr(total, name, getattr(self, name) + getattr(other, name))
        return total

    def centred(self) -> tuple[Tensor, Tensor]:
        """Covariance of the features [F, F], and with the target [F]."""
        if self.within:
            return self.xx / self.total, self.xy / self.total
        x, y = self.x / self.total, self.y / self.total
        return self.xx / self.total - torch.outer(x, x), self.xy / self.total - x * y

    def mean_squared_error(self, weight: Tensor, bias: Tensor) -> float:
        """The error of x · weight + bias; needs moments that are not ``within``."""
        squares = weight @ self.xx @ weight - 2 * weight @ self.xy + self.yy
        return float((squares + 2 * bias * (weight @ self.x - self.y)) / self.total + bias**2)

    def correlation(self, weight: Tensor) -> float:
        """The correlation of x · weight with the target within groups, 0 where either is constant; needs ``within``."""
        spread = ((weight @ self.xx @ weight) * self.yy).sqrt()
        return float(weight @ self.xy / spread) if spread > 0 else 0.0


def fit_ridge(
    spec: FeatureSpec,
    train: Iterable[Rows] | Moments,
    heldout: Iterable[Rows] | Moments | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    select: Select = "correlation",
    within: bool = False,
    block_scales: Mapping[Block, float] | None = None,
    block_priors: Mapping[Block, float] | None = None,
) -> HeadFit:
    """Ridge regression on standardised features: min sum w (y - x·b - c)^2 / sum w + alpha |b|^2, b in standard units.

    A standard unit is a feature's own deviation; with ``block_scales`` a block's: its features are divided alike, so
    that the block's total variance is its scale squared (absent: 1), and rare features stay small. Weights b of blocks
    with a prior s have the penalty (b / s)^2 / sum w instead, whatever alpha: that of a normal prior whose deviation is
    s of the target's, with sum w independent rows. It vanishes as data grow.
    scikit-learn's alpha is this one times sum w. ``within``: the group means of features and targets are subtracted, so
    that only differences between responses to one prompt are learned. ``heldout``: rows of other prompts that select
    among several alphas; ValueError if they are missing. Both may be their ``Moments``, to be fitted in several ways.
    """
    if len(alphas) > 1 and heldout is None:
        raise ValueError("choosing among several alphas takes held-out rows")
    moments = _moments(train, within)
    covariance, with_target = moments.centred()
    std = standard_units(spec, covariance.diagonal().clamp(min=0), block_scales)
    prior = torch.zeros_like(std)
    for block, place in feature_places(spec, len(std)).items():
        if block_priors and block in block_priors:
            std[place], prior[place] = 1.0, 1 / (block_priors[block] ** 2 * moments.total)
    gram, rhs = covariance / std[:, None] / std, with_target / std
    judge = None if heldout is None else _moments(heldout, within=select == "correlation")
    fits: dict[float, tuple[Tensor, Tensor]] = {}
    scores: dict[float, float] = {}
    for alpha in alphas:
        penalised = gram + torch.where(prior > 0, prior, alpha).diag()
        weight = _solved(penalised, rhs) / std
        bias = (moments.y - weight @ moments.x) / moments.total
        fits[alpha] = weight, bias
        if judge is not None:
            by_correlation = select == "correlation"
            scores[alpha] = judge.correlation(weight) if by_correlation else judge.mean_squared_error(weight, bias)
    chosen = best_setting(scores, select) if scores else alphas[0]
    weight, bias = fits[chosen]
    return HeadFit(LinearHead(spec, weight.float().cpu(), float(bias)), chosen, scores)


def _solved(matrix: Tensor, rhs: Tensor) -> Tensor:
    """Of a symmetric system. By Cholesky's factors, which is faster, unless it is not positive definite, as NaN."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    return torch.linalg.solve(matrix, rhs) if failed else torch.cholesky_solve(rhs[:, None], factor)[:, 0]


def _moments(rows: Iterable[Rows] | Moments, within: bool) -> Moments:
    if isinstance(rows, Moments) and rows.within != within:
        raise ValueError(f"the fit takes moments that are {'' if within else 'not '}within groups")
    return rows if isinstance(rows, Moments) else Moments(rows, within)


def standard_units(spec: FeatureSpec, variance: Tensor, block_scales: Mapping[Block, float] | None) -> Tensor:
    """The divisor of each feature [F] (see ``fit_ridge``); 1 for a constant feature."""
    if block_scales is not None:
        variance = variance.clone()
        for block, place in feature_places(spec, len(variance)).items():
            variance[place] = variance[place].sum() / block_scales.get(block, 1.0) ** 2
    return torch.where(variance > 0, variance.sqrt(), 1.0)


def fit_logistic(
    spec: FeatureSpec,
    train: Sequence[Rows],
    heldout: Sequence[Rows] | None = None,
    *,
    alphas: Sequence[float] = ALPHAS,
    select: Select = "correlation",
) -> HeadFit:
    """Logistic regression (the paper's BCE variant) for rewards in [0, 1]; V is the logit, so that heads still fold.

    min mean BCE + alpha/2 |b|^2 on standardised features, by L-BFGS over the batches.
    """
    if len(alphas) > 1 and heldout is None:
        raise ValueError("choosing among several alphas takes held-out rows")
    mean, std = feature_statistics(train)
    heads: dict[float, LinearHead] = {}
    scores: dict[float, float] = {}
    for alpha in alphas:
        standard, offset = _logistic(train, mean, std, alpha)
        weight = standard / std
        heads[alpha] = LinearHead(spec, weight.float().cpu(), float(offset - weight @ mean))
        if heldout is not None:
            scores[alpha] = score(heads[alpha], heldout, select, binary_cross_entropy_with_logits)
    chosen = best_setting(scores, select) if scores else alphas[0]
    return HeadFit(heads[chosen], chosen, scores)


def _logistic(train: Sequence[Rows], mean: Tensor, std: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    standard = torch.zeros_like(mean, requires_grad=True)
    offset = torch.zeros_like(mean[0], requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [standard, offset], max_iter=200, tolerance_grad=1e-7, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )
    total = sum(float(batch.weights.sum()) for batch in train)

    def closure() -> float:
        optimiser.zero_grad()
        penalty = alpha / 2 * standard.square().sum()
        penalty.backward()
        loss = penalty.item()
        for batch in train:
            logits = (batch.features.double() - mean) @ (standard / std) + offset
            part = (
                binary_cross_entropy_with_logits(logits, batch.targets.double(), batch.weights, reduction="sum") / total
            )
            part.backward()
            loss += part.item()
        return loss

    optimiser.step(closure)
    return standard.detach(), offset.detach()


@torch.no_grad()
def score(head: Head, heldout: Iterable[Rows], select: Select, loss: Callable[..., Tensor]) -> float:
    """Held-out correlation within groups, or weighted mean loss."""
    predicted = [batch._replace(features=head(batch.features.float())[:, None]) for batch in heldout]
    return score_predictions(predicted, select, loss)


def score_predictions(predicted: Sequence[Rows], select: Select, loss: Callable[..., Tensor]) -> float:
    """``score`` of rows whose one feature [N, 1] is the prediction."""
    if select == "correlation":
        return Moments(predicted, within=True).correlation(torch.ones(1, dtype=torch.float64))
    total = sum(float(rows.weights.sum()) for rows in predicted)
    losses = [
        loss(rows.features[:, 0], rows.targets.float(), reduction="none") @ rows.weights.float() for rows in predicted
    ]
    return sum(float(part) for part in losses) / total


def best_setting(scores: dict[float, float], select: Select) -> float:
    """The setting with the best score; the first of equals."""
    return max(scores, key=scores.__getitem__) if select == "correlation" else min(scores, key=scores.__getitem__)


def feature_statistics(train: Sequence[Rows]) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of each feature [F], float64; a constant feature gets deviation 1."""
    total = sum(float(batch.weights.sum()) for batch in train)
    mean = torch.stack([batch.weights.double() @ batch.features.double() for batch in train]).sum(0) / total
    square = [batch.weights.double() @ (batch.features.double() - mean).square() for batch in train]
    std = (torch.stack(square).sum(0) / total).sqrt()
    return mean, torch.where(std > 0, std, 1.0)


def _less_group_mean(values: Tensor, weights: Tensor, groups: Tensor) -> Tensor:
    ids, index = groups.unique(return_inverse=True)
    column = weights.reshape(-1, *[1] * (values.ndim - 1))
    mass = weights.new_zeros(len(ids)).index_add(0, index, weights).reshape(-1, *column.shape[1:])
    sums = values.new_zeros(len(ids), *values.shape[1:]).index_add(0, index, values * column)
    return values - (sums / mass)[index]
