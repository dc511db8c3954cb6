"""A value function from rollouts on disk: min_V E sum_t (V(s_t) - r(s_T))^2 over every response prefix (iro.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, overload

import torch
from torch import Tensor

from training.iro.config import AlignConfig, block_scales
from training.iro.data import AlignError
from training.iro.rollouts import unpack
from value_heads import FeatureSpec, features, fit_mlp, mlp_fit
from value_heads.fit import Rows, fit_logistic, fit_ridge, lambda_returns, response_rows
from value_heads.heads import Head, feature_places

STRIDE = 4  # tokens between the prefixes that a fit reads


@dataclass(frozen=True)
class Scale:
    """Rewards in the fit are (r - mean) / sd of the first iteration's; reports are in the user's units."""

    mean: float = 0.0
    sd: float = 1.0

    def standard(self, rewards: Tensor) -> Tensor:
        return (rewards - self.mean) / self.sd


@dataclass
class Graded:
    """Graded completions of a shard, ungraded ones left out. R completions, T tokens, D width."""

    tokens: list[list[int]]
    hidden: dict[int, Tensor]  # [R, T, D]
    lengths_R: Tensor
    prompt_R: Tensor
    rewards_R: Tensor  # standardised
    weights_R: Tensor  # each prompt weighs 1

    @property
    def mask_RT(self) -> Tensor:
        return torch.arange(int(self.lengths_R.max())) < self.lengths_R[:, None]


class Source(Protocol):
    """Where shards are read from. A ``Run`` is one; ``stop_if_asked`` may raise, to end the fit."""

    def load(self, name: str) -> Any: ...
    def stop_if_asked(self) -> None: ...


@dataclass
class Shards(Sequence[Rows]):
    """Shards of rollouts as rows for a fit, read from disk one at a time. ``head``: for targets G_t(lambda)."""

    source: Source
    names: Sequence[tuple[str, str]]  # checkpoints of rollouts and of rewards
    scale: Scale
    spec: FeatureSpec | None = None  # needed for rows, not for `graded`
    head: Head | None = None
    return_lambda: float = 1.0

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Rows: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rows]: ...
    def __getitem__(self, index: int | slice) -> Rows | Sequence[Rows]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        assert self.spec is not None
        graded = self.graded(index)
        features_RTF = features(self.spec, graded.hidden)
        check_finite(self.spec, features_RTF[graded.mask_RT])
        targets = graded.rewards_R
        if self.head is not None:
            with torch.no_grad():
                values_RT = self.head(features_RTF)
            targets = lambda_returns(values_RT, graded.rewards_R, graded.mask_RT, self.return_lambda)
        return response_rows(features_RTF, targets, graded.lengths_R, graded.prompt_R, graded.weights_R, STRIDE)

    def completion_tokens(self) -> int:
        """Of the graded completions: what one fit reads."""
        return sum(
            len(completion)
            for rollouts, rewards in self.names
            for group in zip(self.source.load(rollouts)["tokens"], self.source.load(rewards)["rewards"], strict=True)
            for completion, reward in zip(*group, strict=True)
            if not math.isnan(reward)
        )

    def graded(self, index: int) -> Graded:
        self.source.stop_if_asked()
        rollouts, rewards = self.names[index]
        shard = self.source.load(rollouts)
        hidden, lengths_R, prompt_R = unpack(shard)
        tokens = [completion for group in shard["tokens"] for completion in group]
        rewards_R = torch.tensor([reward for group in self.source.load(rewards)["rewards"] for reward in group])
        kept = ~rewards_R.isnan()
        prompt_R = prompt_R[kept]
        counts = torch.bincount(prompt_R)
        longest = int(lengths_R[kept].max())
        return Graded(
            tokens=[completion for completion, keep in zip(tokens, kept.tolist(), strict=True) if keep],
            hidden={layer: states[kept, :longest] for layer, states in hidden.items()},
            lengths_R=lengths_R[kept],
            prompt_R=prompt_R,
            rewards_R=self.scale.standard(rewards_R[kept]),
            weights_R=1 / counts[prompt_R],
        )


def check_finite(spec: FeatureSpec, features_NF: Tensor) -> None:
    """AlignError, naming the layers, where the model's hidden states hold infinities or NaN."""
    finite_F = features_NF.isfinite().all(0)
    if finite_F.all():
        return
    places = feature_places(spec, len(finite_F))
    layers = sorted({block.layer for block, place in places.items() if not finite_F[place].all()})
    message = (
        f"the hidden states of layer {', '.join(map(str, layers))} are not finite numbers: "
        "load the model in float32 or bfloat16, or name other layers in feature_spec"
    )
    raise AlignError(message, "non_finite_features", "feature_spec")


@dataclass(frozen=True)
class Fitted:
    """``judged``: fitted without the held-out prompts, so that diagnostics on them are honest."""

    head: Head
    judged: Head
    setting: float


def fit_head(config: AlignConfig, spec: FeatureSpec, train: Shards, heldout: Shards, seed: int) -> Fitted:
    """The head that the config asks for; held-out prompts choose its regularisation."""
    train, heldout = replace(train, spec=spec), replace(heldout, spec=spec)
    fitted = _fit(config, spec, train, heldout, seed)
    if config.return_lambda == 1:
        return fitted
    towards = replace(train, head=fitted.judged, return_lambda=config.return_lambda)
    return _fit(config, spec, towards, heldout, seed)


def _fit(config: AlignConfig, spec: FeatureSpec, train: Shards, heldout: Shards, seed: int) -> Fitted:
    if config.value_model == "mlp":
        mlp = fit_mlp(
            spec,
            list(train),
            list(heldout),
            epochs=config.epochs or mlp_fit.EPOCHS,
            learning_rate=mlp_fit.LEARNING_RATE * config.learning_rate_multiplier,
            seed=seed,
            on_batch=train.source.stop_if_asked,
        )
        return Fitted(mlp.head, mlp.head, mlp.chosen)
    # With the strength chosen, held-out prompts are worth more as data.
    if config.loss == "bce":
        rows, heldout_rows = list(train), list(heldout)  # in memory: L-BFGS reads them hundreds of times
        chosen = fit_logistic(spec, rows, heldout_rows)
        whole = fit_logistic(spec, [*rows, *heldout_rows], alphas=[chosen.chosen])
    else:
        ridge = partial(fit_ridge, spec, within=True, block_scales=block_scales(spec))
        chosen = ridge(train, heldout)
        whole = ridge(replace(train, names=[*train.names, *heldout.names]), alphas=[chosen.chosen])
    return Fitted(whole.head, chosen.head, chosen.chosen)
