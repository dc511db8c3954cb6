"""Offline learners for factored discrete actions: BC, BCQ, BCQf and AD-BCQ, one network for each threshold at once.

BCQ: Fujimoto et al. 2019 (arXiv:1910.01708). BCQf: Q and log π_b additive over factors, Tang et al., NeurIPS 2022.
AD-BCQ (arXiv:2504.21326) has no public code; the projected losses, their back-door weights and the mixers here are a
reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from gymnasium import spaces
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.nn import functional as F

from rl_suite.backdoor import LIMIT
from rl_suite.factors import block_actions, block_sizes, check_blocks, sizes_of
from rl_suite.offline import Episodes

Kind = Literal["bc", "bcq", "bcqf", "ad-bcq"]
Threshold = Annotated[float, Field(ge=0, lt=1)]
THRESHOLDS = (0.0, 0.01, 0.05, 0.1, 0.3, 0.5, 0.75, 0.9999)


@dataclass(frozen=True)
class OfflineConfig:
    """``thresholds``: an action is allowed where π_b(a|s) > τ max π_b; a policy is learnt for each of them.

    ``blocks``: the partition of the factors (default: each alone); ``projected``: the weight of the projected losses.
    Raises ValueError (pydantic's) for an unknown kind or mixer, and for values out of range.
    """

    kind: Kind = "ad-bcq"
    thresholds: Annotated[tuple[Threshold, ...], Field(min_length=1)] = THRESHOLDS
    blocks: tuple[tuple[int, ...], ...] | None = None
    mixer: Literal["mean", "weighted"] = "weighted"
    projected: NonNegativeFloat = 1.0
    gamma: Annotated[float, Field(ge=0, le=1)] = 0.99
    width: PositiveInt = 64
    updates: NonNegativeInt = 2000
    batch: PositiveInt = 256
    lr: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    polyak: Annotated[float, Field(gt=0, le=1)] = 0.005
    logits: NonNegativeFloat = 1e-2
    seed: int = 0


class Nets(nn.Module):
    """T independent networks evaluated as one batch: from a table of states' features [S, J] to [T, N, outputs].

    A state is a bag of J active features.
    """

    def __init__(self, count: int, features: Tensor, width: int, outputs: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("features", features)
        n, J = int(features.max()) + 1, features.shape[1]

        def layer(*shape: int, fan: int) -> nn.Parameter:
            initial = (2 * torch.rand(shape[1:], generator=generator) - 1) / fan**0.5
            return nn.Parameter(initial.expand(shape).clone())  # the same for all thresholds

        self.first = layer(count, n, width, fan=J)
        self.second, self.third = layer(count, width, width, fan=width), layer(count, width, outputs, fan=width)
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(count, 1, w)) for w in (width, width, outputs)])

    def forward(self, states: Tensor) -> Tensor:
        active = self.features[states]  # type: ignore[index]
        h = torch.relu(self.first[:, active].sum(dim=2) + self.biases[0])
        h = torch.relu(torch.baddbmm(self.biases[1], h, self.second))
        return torch.baddbmm(self.biases[2], h, self.third)


class OfflineAgent:
    """``learn`` from episodes, ``predict`` actions, ``save``, ``load``.

    ``features`` [S, J] int: each state's active features; ``np.arange(S)[:, None]`` makes it a table. Raises ValueError
    for a Box action space, or blocks that are no partition.
    """

    def __init__(self, action_space: spaces.Space, features: np.ndarray, config: OfflineConfig) -> None:
        self.config, self.sizes = config, sizes_of(action_space)
        factors = len(self.sizes)
        joint = check_blocks([range(factors)], factors)
        parts = check_blocks(config.blocks, factors)
        self.blocks = joint if config.kind in ("bc", "bcq") else parts
        self.generator = torch.Generator().manual_seed(config.seed)
        self.table = torch.as_tensor(np.ascontiguousarray(features), dtype=torch.long)
        self._columns = torch.as_tensor(block_actions(self.sizes, self.blocks)).T.contiguous()  # [B, A]
        self._widths = block_sizes(self.sizes, self.blocks)
        self._joint = np.argsort(np.ravel_multi_index(tuple(self._columns.numpy()), self._widths))
        T, outputs = len(config.thresholds), sum(self._widths)
        self.q = Nets(T, self.table, config.width, outputs + 1, self.generator)
        self.old = Nets(T, self.table, config.width, outputs + 1, self.generator).requires_grad_(False)
        self.old.load_state_dict(self.q.state_dict())
        # Imitation does not depend on the threshold.
        self.pi = Nets(1, self.table, config.width, outputs, self.generator)
        self.weights = nn.Parameter(torch.zeros(T, 1, 1, len(self.blocks)))
        self.old_weights = self.weights.detach().clone()
        self._threshold = torch.tensor(config.thresholds)[:, None, None]
        parameters = [*self.q.parameters(), *self.pi.parameters(), self.weights]
        self.optimiser = torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay, fused=True)
        self.updates = 0

    def learn(self, data: Episodes, updates: int | None = None) -> OfflineAgent:
        """Train on uniform minibatches of ``data``. Resumes bit-identically after ``load``."""
        if data.sizes != self.sizes:
            raise ValueError(f"the dataset's actions are {data.sizes}, the agent's {self.sizes}: use one of its space")
        highest, known = int(max(data.states.max(), data.next_states.max())), len(self.table)
        if highest >= known:
            raise ValueError(f"the dataset has state {highest}, and there are features of states 0 to {known - 1}")
        columns = (data.states, data.actions, data.next_states)
        s, a, next_states = (torch.as_tensor(column, dtype=torch.long) for column in columns)
        r, goes_on = torch.as_tensor(data.rewards).float(), torch.as_tensor(~data.ended).float()
        propensity = torch.as_tensor(data.propensity).float()
        for _ in range(self.config.updates if updates is None else updates):
            rows = torch.randint(len(s), (self.config.batch,), generator=self.generator)
            loss = self._loss(s[rows], a[rows], r[rows], next_states[rows], goes_on[rows], propensity[rows])
            self.optimiser.zero_grad()
            loss.backward()
            self.optimiser.step()
            with torch.no_grad():
                for old, new in zip(
                    (*self.old.parameters(), self.old_weights), (*self.q.parameters(), self.weights), strict=True
                ):
                    old.lerp_(new, self.config.polyak)
            self.updates += 1
        return self

    def _loss(
        self, s: Tensor, a: Tensor, r: Tensor, next_states: Tensor, goes_on: Tensor, propensity: Tensor
    ) -> Tensor:
        logits = self.pi(s)  # [1, N, Σ|A_b|]
        log_pi = [part.log_softmax(dim=2) for part in logits.split(self._widths, dim=2)]
        taken_actions = [columns[a] for columns in self._columns]  # block actions: B of [N]
        log_taken = [part[0].gather(1, i[:, None])[:, 0] for part, i in zip(log_pi, taken_actions, strict=True)]
        logs = torch.stack(log_taken)  # [B, N]
        loss = -logs.sum(dim=0).mean() + self.config.logits * logits.square().mean()
        if self.config.kind == "bc":
            return loss
        heads, bias = self._heads(self.q, s)
        taken_q = self._take(heads, taken_actions)  # [T, N, B]
        with torch.no_grad():
            best = self._best(self._heads(self.q, next_states)[0], next_states)
            next_heads, next_bias = self._heads(self.old, next_states)
            values = self._take(next_heads, best)
            target = r + self.config.gamma * goes_on * self._mix(values, next_bias, self.old_weights)  # [T, N]
        q = self._mix(taken_q, bias, self.weights)
        T = len(self.config.thresholds)  # a sum over thresholds, so that each is trained independently
        loss = loss + T * F.smooth_l1_loss(q, target)
        if self.config.kind == "ad-bcq":
            block_target = r[:, None] + self.config.gamma * goes_on[:, None] * values
            backdoor_weight = (logs.sum(dim=0).exp() / propensity).detach().clamp(max=LIMIT)[:, None]
            projected = F.smooth_l1_loss(taken_q, block_target, reduction="none")
            loss = loss + self.config.projected * T * (backdoor_weight * projected).mean()
        return loss

    def _heads(self, nets: Nets, s: Tensor) -> tuple[list[Tensor], Tensor]:
        """Q_b(s, ·): B of [T, N, |A_b|]; and a value of s alone [T, N]."""
        *heads, bias = nets(s).split((*self._widths, 1), dim=2)
        return list(heads), bias[:, :, 0]

    @staticmethod
    def _take(heads: Sequence[Tensor], actions: Sequence[Tensor]) -> Tensor:
        """[T, N, B]: Q_b(s, a_b) of actions B of [N] or [T, N]."""
        return torch.stack(
            [
                head.gather(2, a.expand(head.shape[:2])[:, :, None])[:, :, 0]
                for head, a in zip(heads, actions, strict=True)
            ],
            dim=2,
        )

    def _mix(self, parts: Tensor, bias: Tensor, weights: Tensor) -> Tensor:
        """F(Q_1, …, Q_B; s) [T, …] of [T, …, B], increasing in each part: the heads' greedy actions are jointly greedy.

        BCQf sums (Tang et al.). AD-BCQ averages, or uses a positive weight per block, initially 1/B, and adds a state
        value. Σ_b Q_b − (B − 1) V, exact for additive Q, is a special case.
        """
        if self.config.kind != "ad-bcq":
            return parts.sum(dim=-1)
        if self.config.mixer == "mean":
            return parts.mean(dim=-1)
        w = weights.reshape(len(weights), *[1] * (parts.dim() - 2), -1).exp() / len(self.blocks)
        return (w * parts).sum(dim=-1) + bias

    def _best(self, heads: Sequence[Tensor], s: Tensor) -> list[Tensor]:
        """B of [T, N]: each block's part of the allowed action of the highest Q, of heads B of [T, N, |A_b|].

        BCQf masks joint actions by the product of their factors' ratios. AD-BCQ masks each block by its ratio; the
        joint mask is the outer product, so that blocks choose independently.
        """
        ratios = [part - part.amax(dim=2, keepdim=True) for part in self.pi(s).split(self._widths, dim=2)]
        if self.config.kind != "bcqf":
            return [self._masked(head, ratio).argmax(dim=2) for head, ratio in zip(heads, ratios, strict=True)]
        q, ratio = (
            torch.stack([part[:, :, i] for part, i in zip(parts, self._columns, strict=True)]).sum(dim=0)
            for parts in (heads, ratios)
        )
        joint = self._masked(q, ratio).argmax(dim=2)
        return [columns[joint] for columns in self._columns]

    def _masked(self, q: Tensor, log_ratio: Tensor) -> Tensor:
        """Q, or −∞ where π_b/max π_b is not above the threshold; the likeliest action is always allowed."""
        return q.masked_fill(~((log_ratio.exp() > self._threshold) | (log_ratio == 0)), -torch.inf)

    @torch.no_grad()
    def greedy(self) -> np.ndarray:
        """[T, S]: the joint action in each state, for each threshold."""
        s, T = torch.arange(len(self.table)), len(self.config.thresholds)
        if self.config.kind == "bc":
            chosen = [part.argmax(dim=2).expand(T, -1) for part in self.pi(s).split(self._widths, dim=2)]
        else:
            chosen = self._best(self._heads(self.q, s)[0], s)
        code = np.ravel_multi_index([part.numpy() for part in chosen], self._widths)  # blocks in their own order
        return self._joint[code]

    def predict(self, state: int, threshold: int = 0) -> np.ndarray:
        """The action, one value a factor, in a state, of the policy of the ``threshold``-th threshold."""
        return np.array(np.unravel_index(self.greedy()[threshold, state], self.sizes))

    def save(self, path: Path) -> None:
        modules = {name: getattr(self, name).state_dict() for name in ("q", "old", "pi", "optimiser")}
        state = {name: getattr(self, name) for name in ("table", "weights", "old_weights", "sizes", "updates")}
        state["weights"] = self.weights.detach()
        torch.save(modules | state | {"config": asdict(self.config), "generator": self.generator.get_state()}, path)

    @classmethod
    def load(cls, path: Path) -> OfflineAgent:
        saved = torch.load(path, weights_only=True)
        agent = cls(spaces.MultiDiscrete(saved["sizes"]), saved["table"].numpy(), OfflineConfig(**saved["config"]))
        for name in ("q", "old", "pi", "optimiser"):
            getattr(agent, name).load_state_dict(saved[name])
        agent.weights.data.copy_(saved["weights"])
        agent.old_weights.copy_(saved["old_weights"])
        agent.generator.set_state(saved["generator"])
        agent.updates = saved["updates"]
        return agent
