"""Configuration and networks of the online agents: a head for each block of factors, mixers, a model of the world."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

Mixer = Literal["mean", "weighted", "mlp"]
Share = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True)
class AgentConfig:
    """``blocks``: a partition of the factors, by default each alone; ``projected``: weight of each projected loss;
    ``model``: these losses have transitions of a learned model too, scaled by the spread of a batch. Raises ValueError
    (pydantic's) for a model without these losses or with a batch of one, and for values out of range.

    One update of ``batch`` every ``train_every`` environment steps after ``start``; the target network is copied every
    ``target_every`` updates. Each block explores on its own: with probability ε, falling to ``epsilon`` over
    ``explore`` steps, it draws an action and holds it for 1 to ``hold`` steps (temporally extended ε-greedy, Dabney et
    al. 2021; 1: plain ε-greedy). ε is the share of steps spent on explored actions.
    """

    blocks: tuple[tuple[int, ...], ...] | None = None
    mixer: Mixer = "mean"
    projected: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    model: bool = False
    n_step: PositiveInt = 3
    double: bool = True
    gamma: Share = 0.99
    width: PositiveInt = 128
    lr: PositiveFloat = 5e-4
    batch: PositiveInt = 128
    train_every: PositiveInt = 8
    target_every: PositiveInt = 100
    replay: PositiveInt = 100_000
    start: NonNegativeInt = 1000
    explore: PositiveInt = 5000
    epsilon: Share = 0.1
    hold: PositiveInt = 1
    envs: PositiveInt = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if self.model and not self.projected:
            raise ValueError("a model serves the projected losses alone: give projected a weight above 0, or no model")
        if self.model and self.batch == 1:
            raise ValueError("a model is scaled by the spread of a batch: give a batch of 2 or more, or no model")


class QNet(nn.Module):
    """Observations [N, D] to heads [N, B, M], padded with −∞, and their mixture."""

    def __init__(self, inputs: int, widths: tuple[int, ...], config: AgentConfig) -> None:
        super().__init__()
        w, self.B, self.M, self.mixer = config.width, len(widths), max(widths), config.mixer
        self.trunk = nn.Sequential(nn.Linear(inputs, w), nn.LayerNorm(w), nn.ReLU(), nn.Linear(w, w), nn.ReLU())
        self.heads = nn.Linear(w, self.B * self.M)
        padding = torch.zeros(self.B, self.M)
        for b, width in enumerate(widths):
            padding[b, width:] = -torch.inf
        self.register_buffer("padding", padding)
        self.padded = bool((padding < 0).any())
        if self.mixer != "mean":
            self.value = nn.Linear(w, 1)
            self.weights = nn.Parameter(torch.zeros(self.B))
        if self.mixer == "mlp":
            self.up, self.down = nn.Parameter(torch.randn(self.B, 32) / 8), nn.Parameter(torch.randn(32, 1) / 32)
            self.shift = nn.Parameter(torch.zeros(32))
        if config.projected:
            self.imitation = nn.Linear(w, self.B * self.M)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Heads [N, B, M], and the trunk's features, an argument of ``mix``."""
        h = self.trunk(observations)
        heads = self.heads(h).view(-1, self.B, self.M)
        return (heads + self.padding if self.padded else heads), h  # type: ignore[operator]

    def log_imitation(self, h: Tensor, block_actions: Tensor) -> Tensor:
        """[N, B]: log q_b(a_b|s) of a policy with independent blocks, fitted to the replay; h gets no gradient."""
        logits = self.imitation(h.detach()).view(-1, self.B, self.M) + self.padding
        return logits.log_softmax(dim=2).gather(2, block_actions[:, :, None])[:, :, 0]

    def mix(self, parts: Tensor, h: Tensor) -> Tensor:
        """F(Q_1, …, Q_B; s) [N] of [N, B], increasing in each part: the heads' greedy actions are jointly greedy.

        "mean" is DecQN's. "weighted" has positive weights, at first 1/B, and a value of the state. "mlp" adds a network
        with positive weights (as QMIX, Rashid et al. 2018), the same in every state.
        """
        if self.mixer == "mean":
            return parts.mean(dim=1)
        mixed = (parts * self.weights.exp()).sum(dim=1) / self.B + self.value(h)[:, 0]
        if self.mixer == "mlp":
            mixed = mixed + (F.elu(parts @ self.up.abs() + self.shift) @ self.down.abs())[:, 0]
        return mixed


class WorldModel(nn.Module):
    """(s, a) to the scaled change of s, the reward, and the logit of termination (reconstruction)."""

    def __init__(self, inputs: int, factors: int, width: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs + factors, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.out = nn.Linear(width, inputs + 2)
        self.register_buffer("scale", torch.ones(inputs))

    def forward(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        change, r, end = self.out(self.net(torch.cat([s, a], dim=1))).split((s.shape[1], 1, 1), dim=1)
        return change, r[:, 0], end[:, 0]

    def loss(self, s: Tensor, a: Tensor, r: Tensor, next_obs: Tensor, ended: Tensor) -> Tensor:
        change = next_obs - s
        self.scale.lerp_(change.std(dim=0) + 1e-6, 0.02)  # type: ignore[operator]
        predicted, reward, end = self(s, a)
        ends = F.binary_cross_entropy_with_logits(end, ended)
        return F.mse_loss(predicted, change / self.scale) + F.mse_loss(reward, r) + ends  # type: ignore[operator]
