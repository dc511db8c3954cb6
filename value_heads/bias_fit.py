"""A static tilt from graded rollouts: the reward as a sum of a number for each token, by ridge regression.

The additive case of a return decomposition: r(y) - E r = sum_i b[y_i]. b is a weight for each of the
commonest tokens and a linear function of the output head's row, so that a token which no rollout holds has one too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

COUNTED = 1500  # tokens with a weight of their own
COUNT_SCALE, ROW_SCALE = 2.0, 0.3  # how large each counts: larger is shrunk less
PENALTIES = (100.0, 300.0, 1000.0, 3000.0, 10_000.0)
FOLDS = 4  # of the prompts: each is left out in turn to choose the penalty
MOST_ROLLOUTS = 4096  # the regression is solved in their number


def fit_bias(
    completions: Sequence[Sequence[int]], prompts_R: Tensor, rewards_R: Tensor, head_VD: Tensor, seed: int = 0
) -> Tensor:
    """b [V], centred, in standard deviations of the reward within a prompt. ``prompts_R``: each completion's prompt.
    ``head_VD``: of no columns where the output head is unknown; rare tokens have no weight then."""
    if len(completions) > MOST_ROLLOUTS:
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randperm(len(completions), generator=generator)[:MOST_ROLLOUTS].sort().values
        completions = [completions[place] for place in chosen.tolist()]
        prompts_R, rewards_R = prompts_R[chosen], rewards_R[chosen]
    counts = Counter(token for tokens in completions for token in set(tokens))
    counted = torch.tensor(sorted(token for token, _ in counts.most_common(COUNTED)))
    rows_VD = head_VD.float()
    if rows_VD.shape[1]:
        rows_VD = (rows_VD - rows_VD.mean(0)) / rows_VD.std() * ROW_SCALE
    features_RF = torch.stack([_features(tokens, counted, rows_VD) for tokens in completions])
    _, group_R = prompts_R.unique(return_inverse=True)
    features_RF, targets_R = within_groups(features_RF, group_R), within_groups(rewards_R, group_R)
    targets_R = (targets_R / (targets_R.std() + 1e-6)).float()
    gram_RR = features_RF @ features_RF.T
    penalty = best_penalty(gram_RR, targets_R, group_R % FOLDS, PENALTIES)
    weights_F = features_RF.T @ duals(gram_RR, targets_R, penalty)
    bias_V = rows_VD @ weights_F[len(counted) :]
    bias_V[counted] += weights_F[: len(counted)] * COUNT_SCALE
    return bias_V - bias_V.mean()


def _features(tokens: Sequence[int], counted: Tensor, rows_VD: Tensor) -> Tensor:
    ids = torch.tensor(list(tokens))
    counts_C = (ids[:, None] == counted).sum(0) * COUNT_SCALE
    return torch.cat([counts_C.float(), rows_VD[ids].sum(0)])


def within_groups(values: Tensor, group_R: Tensor) -> Tensor:
    """Less the mean of its group, such as a prompt's rollouts; ``values``: [R, ...]."""
    sizes = torch.bincount(group_R).to(values.dtype)
    shape = (-1,) + (1,) * (values.dim() - 1)
    sums = values.new_zeros(len(sizes), *values.shape[1:]).index_add_(0, group_R, values)
    return values - (sums / sizes.view(shape))[group_R]


def best_penalty(gram_RR: Tensor, targets_R: Tensor, fold_R: Tensor, penalties: Sequence[float]) -> float:
    """Of the highest correlation of targets with predictions for prompts that were left out; the largest where one
    prompt is all there is."""
    folds = [fold_R == fold for fold in fold_R.unique()]
    if len(folds) == 1:
        return penalties[-1]

    def correlation(penalty: float) -> float:
        predicted_R = torch.zeros_like(targets_R)
        for heldout_R in folds:
            fitted_R = ~heldout_R
            duals_R = duals(gram_RR[fitted_R][:, fitted_R], targets_R[fitted_R], penalty)
            predicted_R[heldout_R] = gram_RR[heldout_R][:, fitted_R] @ duals_R
        return float(torch.corrcoef(torch.stack([predicted_R, targets_R]))[0, 1].nan_to_num(-1.0))

    return max(penalties, key=correlation)


def duals(gram_RR: Tensor, targets_R: Tensor, penalty: float) -> Tensor:
    """Of a ridge regression: its weights are the features' transpose by these."""
    duals_R: Tensor = torch.linalg.solve(gram_RR + penalty * torch.eye(len(gram_RR)), targets_R)
    return duals_R
