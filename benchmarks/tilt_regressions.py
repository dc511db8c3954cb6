"""Tilts in closed form, to compare with the trainer's own fit: a tilt as a linear function of a position's features.

A(s, a) = w · x(s, a), where x holds counts of the commonest tokens, the products of (R E[a], words(a)) with
(1, P φ(s)), and, at stop tokens, the response's length. P and R are the first principal axes of states and of drawn
tokens' head rows, fixed beforehand, so that w is a ridge regression: of the reward on the sum of x over a rollout
(``return_tilt``), or of a value function's increments on x at each position (``increment_tilt``). Reconstruction:
no paper fits this form. Axes in tensor names: N positions, M rollouts, X features, C counted tokens,
p and r projected states and head rows, F features of words, L length features, D width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from value_heads.bias_fit import (
    COUNT_SCALE,
    COUNTED,
    FOLDS,
    PENALTIES,
    ROW_SCALE,
    best_penalty,
    duals,
    within_groups,
)
from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.prompt_features import FEATURES
from value_heads.tilt import STOP, Tilt
from value_heads.tilt_fit import TiltRows

INCREMENT_PENALTIES = (1e2, 1e3, 1e4, 1e5, 1e6)  # of increments, whose positions are some tens for each rollout
POSITIONS_AT_ONCE = 4096  # whose features are in memory


def drawn_tokens(rows: TiltRows) -> Tensor:
    """The token that was drawn at each position, [N]."""
    return rows.candidates_NK.gather(1, rows.drawn_N[:, None])[:, 0]


def principal_axes(values_ND: Tensor, count: int) -> Tensor:
    """[count, D]: of the largest variances first; fewer where the width is less."""
    _, axes_DD = torch.linalg.eigh(values_ND.T @ values_ND)
    return axes_DD.flip(1).T[:count]


@dataclass(frozen=True)
class Design:
    """``counted_C``: sorted. A state is projected as ``state_pD`` (φ - ``mean_D``), to a mean squared length of 1, a
    head row as ``token_rD`` (E - ``center_D``)."""

    counted_C: Tensor
    mean_D: Tensor
    state_pD: Tensor
    head_VD: Tensor
    center_D: Tensor
    token_rD: Tensor

    @classmethod
    def of(cls, rows: TiltRows, head_VD: Tensor, rank: int) -> Design:
        tokens_N = drawn_tokens(rows)
        counts = Counter(tokens_N.tolist())
        counted_C = torch.tensor(sorted(token for token, _ in counts.most_common(COUNTED)))
        mean_D, sd_D = rows.states_ND.mean(0), rows.states_ND.std(0) + 1e-3
        states_ND = (rows.states_ND - mean_D) / sd_D
        axes_pD = principal_axes(states_ND, rank)
        length = (states_ND @ axes_pD.T).square().sum(1).mean().sqrt()
        center_D = head_VD.mean(0)
        token_rD = principal_axes(head_VD[tokens_N] - center_D, rank) * ROW_SCALE / head_VD.std()
        return cls(counted_C, mean_D, axes_pD / length / sd_D, head_VD, center_D, token_rD)

    def features(self, rows: TiltRows) -> Tensor:
        """x of the drawn tokens, [N, X]."""
        tokens_N = drawn_tokens(rows)
        counts_NC = (tokens_N[:, None] == self.counted_C) * COUNT_SCALE
        rows_Nr = (self.head_VD[tokens_N] - self.center_D) @ self.token_rD.T
        words_NF = rows.features_NKF[torch.arange(len(rows)), rows.drawn_N].float()
        ones_N1 = torch.ones(len(rows), 1)
        states_Np = torch.cat([ones_N1, (rows.states_ND - self.mean_D) @ self.state_pD.T], 1)
        products_Nzp = torch.cat([rows_Nr, words_NF], 1)[:, :, None] * states_Np[:, None]
        return torch.cat([counts_NC, products_Nzp.flatten(1), rows.lengths_NL * words_NF[:, STOP, None]], 1)

    def tilt(self, weights_X: Tensor, zero: Tilt) -> Tilt:
        """The same function of states and head rows as they are, up to a constant of s."""
        rank, states = len(self.token_rD), 1 + len(self.state_pD)
        sizes = [len(self.counted_C), (rank + len(FEATURES)) * states, NUM_LENGTH_FEATURES]
        counted_C, products, length_stop_L = weights_X.split(sizes)
        products_zp = products.view(-1, states)
        affine_zD = torch.cat([products_zp[:, 1:] @ self.state_pD, products_zp[:, :1]], 1)
        affine_zD[:, -1] -= affine_zD[:, :-1] @ self.mean_D
        bias_V = zero.bias.clone()
        bias_V[self.counted_C] = counted_C * COUNT_SCALE
        return replace(
            zero,
            bias=bias_V,
            state_factor=affine_zD[:rank],
            token_factor=self.token_rD,
            gates=affine_zD[rank:],
            length_factor=torch.zeros(rank, NUM_LENGTH_FEATURES),
            length_stop=length_stop_L,
        )


def return_tilt(
    rows: TiltRows,
    rollout_N: Tensor,
    prompt_M: Tensor,
    head_VD: Tensor,
    zero: Tilt,
    rank: int,
    penalties: Sequence[float] = PENALTIES,
) -> Tilt:
    """Σ_t A(s_t, a_t) = the reward less its prompt's mean, by ridge regression.

    ``rollout_N``: the rollout of each position, rising from 0. ``prompt_M``: the prompt of each rollout.
    """
    design = Design.of(rows, head_VD, rank)
    features_MX = torch.stack([design.features(part).sum(0) for part in parts_of(rows, rollout_N)])
    firsts_M = torch.searchsorted(rollout_N, torch.arange(len(prompt_M)))
    _, group_M = prompt_M.unique(return_inverse=True)
    features_MX = within_groups(features_MX, group_M)
    targets_M = within_groups(rows.advantages_N[firsts_M], group_M)
    gram_MM = features_MX @ features_MX.T
    penalty = best_penalty(gram_MM, targets_M, group_M % FOLDS, penalties)
    return design.tilt(features_MX.T @ duals(gram_MM, targets_M, penalty), zero)


def parts_of(rows: TiltRows, rollout_N: Tensor) -> list[TiltRows]:
    """The positions of each rollout."""
    places = torch.arange(len(rows)).split(torch.bincount(rollout_N).tolist())
    return [rows.at(part) for part in places]


def increment_tilt(
    rows: TiltRows,
    increments_N: Tensor,
    group_N: Tensor,
    head_VD: Tensor,
    zero: Tilt,
    rank: int,
    penalties: Sequence[float] = INCREMENT_PENALTIES,
) -> Tilt:
    """A(s_t, a_t) = V(s_{t+1}) - V(s_t), by ridge regression. The penalty is that of the highest correlation on a
    quarter of the prompts, which then are fitted too.

    ``group_N``: the prompt of each position, numbered from 0. The part of the increments that is linear in the
    projected state is taken away first: a constant of s is nothing to q.
    """
    design = Design.of(rows, head_VD, rank)
    states_Np = torch.cat([torch.ones(len(rows), 1), (rows.states_ND - design.mean_D) @ design.state_pD.T], 1)
    weights_p = solved(states_Np.T @ states_Np, increments_N @ states_Np, 1e-3)
    targets_N = increments_N - states_Np @ weights_p
    moments: dict[bool, tuple[Tensor, Tensor]] = {}
    for is_held in (False, True):
        places = torch.nonzero((group_N % FOLDS == 0) == is_held)[:, 0]
        moments[is_held] = moments_of(design, rows.at(places), targets_N[places])
    (gram_XX, with_target_X), (held_XX, held_X) = moments[False], moments[True]

    def correlation(penalty: float) -> float:
        """With the held-out targets, up to their constant deviation."""
        weights_X = solved(gram_XX, with_target_X, penalty)
        return float(weights_X @ held_X / (weights_X @ held_XX @ weights_X + 1e-12).sqrt())

    best = max(penalties, key=correlation)
    return design.tilt(solved(gram_XX + held_XX, with_target_X + held_X, best), zero)


def moments_of(design: Design, rows: TiltRows, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Products of the features with each other, [X, X], and with the targets, [X]."""
    gram_XX = with_target_X = torch.zeros(())
    for places in torch.arange(len(rows)).split(POSITIONS_AT_ONCE):
        features_NX = design.features(rows.at(places))
        gram_XX, with_target_X = gram_XX + features_NX.T @ features_NX, with_target_X + targets_N[places] @ features_NX
    return gram_XX, with_target_X


def solved(gram_XX: Tensor, with_target_X: Tensor, penalty: float) -> Tensor:
    """Weights of a ridge regression."""
    penalised_XX = gram_XX.clone()
    penalised_XX.diagonal().add_(penalty)
    return torch.cholesky_solve(with_target_X[:, None], torch.linalg.cholesky(penalised_XX))[:, 0]
