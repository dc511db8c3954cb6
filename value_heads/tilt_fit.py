"""A tilt from graded rollouts: min_A E_s [KL(q_A(.|s) || pi(.|s)) - (r - b) q_A(a|s) / pi(a|s) / beta], by Adam.

Per state, and without bounds on A, the minimum is A(s,a) = E[r - b | s, a] / beta up to a constant of s: the soft
advantage. b is the prompt's mean reward, pi the policy of the rollouts. Both terms are exact sums over candidates: the
likeliest tokens and the drawn one; A is 0 on the rest. Reconstruction: no paper fits this form.
Axes in tensor names: N positions of all rollouts, K candidates, F features, D width, V vocabulary,
L length features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.prompt_features import FEATURES
from value_heads.tilt import STOP, Tilt

MAX_RATIO = 4.0  # of a rewarded token's probability: beyond it more of the same counts for nothing


@dataclass(frozen=True)
class TiltRows:
    """Positions of rollouts. ``states_ND``: what the token was drawn from. ``candidates_NK``: token ids.
    ``logprobs_NK``: theirs under the policy of the rollouts. ``features_NKF``: bool. ``drawn_N``: the drawn token's
    place among the candidates. ``advantages_N``: of its rollout, in standard deviations. ``lengths_NL``: of the
    response before the token."""

    states_ND: Tensor
    candidates_NK: Tensor
    logprobs_NK: Tensor
    features_NKF: Tensor
    drawn_N: Tensor
    advantages_N: Tensor
    lengths_NL: Tensor

    def __len__(self) -> int:
        return len(self.drawn_N)

    def at(self, places: Tensor) -> TiltRows:
        return TiltRows(*(getattr(self, name)[places] for name in self.__dataclass_fields__))

    @classmethod
    def concatenate(cls, parts: list[TiltRows]) -> TiltRows:
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


@dataclass(frozen=True)
class TiltFit:
    """How a tilt is fitted. ``beta``: the weight of KL, in standard deviations of the reward a nat."""

    rank: int = 16
    beta: float = 0.05
    epochs: int = 4
    batch: int = 1024
    gate_rate: float = 3e-3
    constant_rate: float = 3e-2
    bias_rate: float = 2e-3
    factor_rate: float = 5e-4
    length_rate: float = 1e-2
    decay: float = 1e-4


class TiltParameters:
    """Those of a tilt on standardised states."""

    def __init__(self, rows: TiltRows, head_VD: Tensor, rank: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        width = rows.states_ND.shape[1]
        self.mean_D, self.sd_D = rows.states_ND.mean(0), rows.states_ND.std(0) + 1e-3
        self.used, place = torch.unique(rows.candidates_NK, return_inverse=True)
        self.place_NK = place
        used_UD = head_VD[self.used].float()
        self.center_D, self.scale = used_UD.mean(0), float(used_UD.std())
        self.head_UD = (used_UD - self.center_D) / self.scale
        self.bias_U = torch.zeros(len(self.used), requires_grad=True)
        self.state_rD = torch.zeros(rank, width, requires_grad=True)
        self.token_rD = (torch.randn(rank, width, generator=generator) / width**0.5).requires_grad_()
        self.constant_F = torch.zeros(len(FEATURES), requires_grad=True)
        self.gates_FD = torch.zeros(len(FEATURES), width, requires_grad=True)
        self.length_rL = torch.zeros(rank, NUM_LENGTH_FEATURES, requires_grad=True)
        self.length_stop_L = torch.zeros(NUM_LENGTH_FEATURES, requires_grad=True)
        self.gate_scale = width**-0.5

    def groups(self, fit: TiltFit) -> list[dict[str, object]]:
        return [
            {"params": [self.bias_U], "lr": fit.bias_rate},
            {"params": [self.state_rD, self.token_rD], "lr": fit.factor_rate},
            {"params": [self.constant_F], "lr": fit.constant_rate},
            {"params": [self.gates_FD], "lr": fit.gate_rate},
            {"params": [self.length_rL, self.length_stop_L], "lr": fit.length_rate},
        ]

    def additions(self, rows: TiltRows, place_NK: Tensor) -> Tensor:
        """A of the candidates, [N, K]."""
        states = (rows.states_ND - self.mean_D) / self.sd_D
        token_Ur = self.head_UD @ self.token_rD.T
        states_Nr = states @ self.state_rD.T + rows.lengths_NL @ self.length_rL.T
        low_rank = torch.einsum("nr,nkr->nk", states_Nr, token_Ur[place_NK])
        gates_NF = self.constant_F + states @ self.gates_FD.T * self.gate_scale
        gated = torch.einsum("nf,nkf->nk", gates_NF, rows.features_NKF.float())
        stop_N = rows.lengths_NL @ self.length_stop_L
        return self.bias_U[place_NK] + low_rank + gated + stop_N[:, None] * rows.features_NKF[..., STOP]

    def penalty(self) -> Tensor:
        of_lengths = (self.length_rL, self.length_stop_L)
        parameters = (self.bias_U, self.state_rD, self.token_rD, self.gates_FD, *of_lengths)
        return torch.stack([p.square().sum() for p in parameters]).sum()

    @torch.no_grad()
    def tilt(self, zero: Tilt) -> Tilt:
        """The same function of states and head rows as they are."""
        state_rD = self.state_rD / self.sd_D
        token_rD = self.token_rD / self.scale
        offset_r = -(state_rD @ self.mean_D)
        gates_FD = self.gates_FD * self.gate_scale / self.sd_D
        constant_F = self.constant_F - gates_FD @ self.mean_D
        bias_V = zero.bias.clone()
        bias_V[self.used] = self.bias_U.detach()
        return replace(
            zero,
            bias=bias_V,
            state_factor=torch.cat([state_rD, offset_r[:, None]], 1),
            token_factor=token_rD,
            gates=torch.cat([gates_FD, constant_F[:, None]], 1),
            length_factor=self.length_rL.detach().clone(),
            length_stop=self.length_stop_L.detach().clone(),
        )


Loss = Callable[[Tensor, TiltRows, float], Tensor]
"""Of A of the candidates [N, K], the positions, and beta."""


def fit_tilt(
    rows: TiltRows,
    head_VD: Tensor,
    zero: Tilt,
    fit: TiltFit | None = None,
    seed: int = 0,
    on_batch: Callable[[], None] = lambda: None,
    loss_of: Loss | None = None,
) -> Tilt:
    """The tilt of least ``tilt_loss``, or of another loss. ``zero``: one that changes nothing, with the tokens that it
    ignores and stops at.

    Token factors are those of centred head rows: what a constant of s adds to every token is nothing to q.
    """
    fit, loss_of = fit or TiltFit(), loss_of or tilt_loss
    parameters = TiltParameters(rows, head_VD, fit.rank, seed)
    optimizer = torch.optim.Adam(parameters.groups(fit))
    steps = fit.epochs * -(-len(rows) // fit.batch)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(fit.epochs):
        for places in torch.randperm(len(rows), generator=generator).split(fit.batch):
            on_batch()
            batch = rows.at(places)
            loss = loss_of(parameters.additions(batch, parameters.place_NK[places]), batch, fit.beta)
            optimizer.zero_grad()
            (loss + fit.decay * parameters.penalty()).backward()
            optimizer.step()
            schedule.step()
    return parameters.tilt(zero)


def tilt_loss(additions_NK: Tensor, rows: TiltRows, beta: float) -> Tensor:
    """beta KL(q || pi) - advantage (q/pi - 1) of the drawn token, a mean over positions."""
    log_ratio_N, kl_N = log_ratio_and_kl(additions_NK, rows)
    ratio_N = log_ratio_N.exp()
    bounded_N = torch.where(rows.advantages_N > 0, ratio_N.clamp(max=MAX_RATIO), ratio_N)
    return beta * kl_N.mean() - (rows.advantages_N * (bounded_N - 1)).mean()


def log_ratio_and_kl(additions_NK: Tensor, rows: TiltRows) -> tuple[Tensor, Tensor]:
    """log q/pi of the drawn token, and KL(q || pi), at each position; [N] both."""
    tilted_NK = rows.logprobs_NK + additions_NK
    rest_N = torch.log1p(-rows.logprobs_NK.exp().sum(1).clamp(max=1 - 1e-6))  # the other tokens, where A is 0
    log_z_N = torch.logaddexp(tilted_NK.logsumexp(1), rest_N)
    probs_NK = (tilted_NK - log_z_N[:, None]).exp()
    kl_N = (probs_NK * additions_NK).sum(1) - log_z_N
    return additions_NK.gather(1, rows.drawn_N[:, None])[:, 0] - log_z_N, kl_N
