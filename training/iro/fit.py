"""A value function from rollouts on disk: min_V E sum_t (V(s_t) - r(s_T))^2 over every response prefix (iro.md)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Protocol, overload

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pad_sequence

from training.iro.config import AlignConfig
from training.iro.data import AlignError
from training.iro.prefixes import STRIDE, Prefixes, places_of
from training.iro.ridge import fit_values
from training.iro.rollouts import PREFIXES, Source, completions_of
from value_heads import FeatureSpec, ValueStack, fit_mlp, mlp_fit
from value_heads.fit import Rows, fit_logistic, lambda_returns, pools, score
from value_heads.heads import Head, feature_places, with_ended

if TYPE_CHECKING:
    from datasets import Dataset

ROWS_AT_ONCE = 4096  # whose features are in memory, or one prompt's
MOST_DEVIATIONS = 1e6  # of a reward from the mean: a float32 holds the squares of sums


@dataclass(frozen=True)
class Scale:
    """Rewards in the fit are (r - mean) / sd of the first iteration's, ``MOST_DEVIATIONS`` at most; reports are in the
    user's units."""

    mean: float = 0.0
    sd: float = 1.0

    def standard(self, rewards: Sequence[float]) -> Tensor:
        """[R] float32, from differences in float64: rewards may be large, or lie far from 0 and close together."""
        deviations_R = (torch.tensor(rewards, dtype=torch.float64) - self.mean) / self.sd
        return deviations_R.clamp(-MOST_DEVIATIONS, MOST_DEVIATIONS).float()


@dataclass
class Graded:
    """Graded completions of a shard, ungraded ones left out. R completions, N prefixes of them, F features."""

    tokens: list[list[int]]
    prompt_R: Tensor
    rewards_R: Tensor  # standardised
    weights_R: Tensor  # each prompt weighs 1
    table: Callable[[], Dataset]
    places: list[int]  # of the completions in the shard

    def __post_init__(self) -> None:
        self.row_N, self.length_N = places_of(self.tokens)

    @cached_property
    def prefixes(self) -> Prefixes:
        return Prefixes(self.table(), self.places, self.tokens)

    @property
    def lengths_R(self) -> Tensor:
        return torch.tensor([len(tokens) for tokens in self.tokens])

    def parts(self) -> Iterator[Graded]:
        """These completions, the prompts whole, so few at once that their features fit in memory."""
        sizes = torch.bincount(self.prompt_R) * -(-int(self.lengths_R.max()) // STRIDE)
        part_of_prompt = (sizes.cumsum(0) - sizes) // ROWS_AT_ONCE
        part_R = part_of_prompt[self.prompt_R]
        for part in part_R.unique():
            chosen = (part_R == part).nonzero()[:, 0]
            yield Graded(
                tokens=[self.tokens[i] for i in chosen],
                prompt_R=self.prompt_R[chosen],
                rewards_R=self.rewards_R[chosen],
                weights_R=self.weights_R[chosen],
                table=self.table,
                places=[self.places[i] for i in chosen],
            )

    def features(self, spec: FeatureSpec) -> Tensor:
        """At each prefix, [N, F] float32. AlignError where they are not finite."""
        features_NF = self.prefixes.features(spec)
        check_finite(spec, features_NF)
        return features_NF

    def values(self, stack: ValueStack) -> Tensor:
        """Sum_t V_t / beta_t at each prefix, [N]."""
        return torch.stack([head(self.features(head.spec)) / beta for head, beta in stack.terms()]).sum(0)

    def at_prefixes(self, values_RT: Tensor) -> Tensor:
        """[N], from values at every token."""
        return values_RT[self.row_N, self.length_N - 1]

    def rows(self, spec: FeatureSpec, head: Head | None, return_lambda: float) -> Rows:
        """What searches compare after every ``STRIDE`` tokens. ``head``: for targets G_t(lambda)."""
        features_NF = self.features(spec)
        target_N = self.rewards_R[self.row_N]
        if head is not None:
            with torch.no_grad():
                target_N = self._returns(head(self.features(head.spec)), return_lambda)
        compared = pools(self.lengths_R, self.prompt_R, self.weights_R, STRIDE)
        first_R = torch.searchsorted(self.row_N, torch.arange(len(self.tokens)))
        place = first_R[compared.rows] + (compared.t + STRIDE - 1) // STRIDE - 1
        return Rows(features_NF[place], target_N[place].float(), compared.weights.float(), compared.groups)

    def finished(self, spec: FeatureSpec) -> Tensor:
        """Places of the completions that end with a stop id."""
        last = torch.tensor([tokens[-1] for tokens in self.tokens])
        return torch.isin(last, torch.tensor(spec.stop_ids)).nonzero()[:, 0]

    def finished_rows(self, spec: FeatureSpec) -> Rows:
        """Finished completions at their last token, which a search compares with each other at its end."""
        finished = self.finished(spec)
        place = torch.searchsorted(self.row_N, finished, right=True) - 1
        rewards, weights, prompts = (values[finished] for values in (self.rewards_R, self.weights_R, self.prompt_R))
        return Rows(self.features(spec)[place], rewards.float(), weights.float(), prompts)

    def _returns(self, values_N: Tensor, return_lambda: float) -> Tensor:
        """G_t(lambda) at each prefix, from the values of the later ones, which are ``STRIDE`` tokens apart."""
        sizes = torch.bincount(self.row_N, minlength=len(self.tokens)).tolist()
        values_RP = pad_sequence(list(values_N.split(sizes)), batch_first=True)
        mask_RP = torch.arange(values_RP.shape[1]) < torch.tensor(sizes)[:, None]
        return lambda_returns(values_RP, self.rewards_R, mask_RP, return_lambda**STRIDE)[mask_RP]


class FitSource(Source, Protocol):
    """``stop_if_asked`` may raise, to end the fit."""

    def stop_if_asked(self) -> None: ...


@dataclass
class Shards(Sequence[Rows]):
    """Shards of rollouts as rows for a fit, read from disk one at a time. ``head``: for targets G_t(lambda).
    ``finished``: rows of finished completions alone, at their last token."""

    source: FitSource
    names: Sequence[tuple[str, str]]  # checkpoints of rollouts and of rewards
    scale: Scale
    spec: FeatureSpec | None = None  # needed for rows, not for `graded`
    head: Head | None = None
    return_lambda: float = 1.0
    finished: bool = False

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Rows: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Rows]: ...
    def __getitem__(self, index: int | slice) -> Rows | Sequence[Rows]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._rows(self.graded(index))

    def _rows(self, graded: Graded) -> Rows:
        assert self.spec is not None
        if self.finished:
            return graded.finished_rows(self.spec)
        return graded.rows(self.spec, self.head, self.return_lambda)

    def __iter__(self) -> Iterator[Rows]:
        """All rows, in batches that may be smaller than a shard."""
        return (self._rows(part) for index in range(len(self)) for part in self.graded(index).parts())

    def completions(self) -> Iterator[list[int]]:
        """Tokens of the graded completions."""
        return (tokens for index in range(len(self)) for tokens in self.graded(index).tokens)

    def groups(self, index: int, prompt_R: Tensor) -> Tensor:
        """Numbers [R] for prompts of shard ``index`` that no other shard has. Shards share a prompt where different
        policies drew its completions, which no search compares."""
        return prompt_R * len(self) + index

    def graded(self, index: int) -> Graded:
        self.source.stop_if_asked()
        rollouts, rewards = self.names[index]
        groups = completions_of(self.source, rollouts)
        reward_of = [reward for group in self.source.load(rewards)["rewards"] for reward in group]
        prompts = self.source.load(rollouts)["prompts"]
        searched = [prompt for prompt, group in zip(prompts, groups, strict=True) for _ in group]
        places = [place for place, reward in enumerate(reward_of) if not math.isnan(reward)]
        tokens = [tokens for group in groups for tokens in group]
        prompt_R = torch.tensor([searched[place] for place in places])
        counts = torch.bincount(prompt_R)
        return Graded(
            tokens=[tokens[place] for place in places],
            prompt_R=prompt_R,
            rewards_R=self.scale.standard([reward_of[place] for place in places]),
            weights_R=1 / counts[prompt_R],
            table=partial(self.source.table, rollouts, PREFIXES),
            places=places,
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
    """``judged``: fitted without the held-out prompts, so that diagnostics on them are honest. ``ended_setting``: that
    of finished completions' own value function, None where held-out prompts did not prefer one."""

    head: Head
    judged: Head
    setting: float
    ended_setting: float | None = None


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
            train,
            heldout,
            epochs=config.epochs or mlp_fit.EPOCHS,
            learning_rate=mlp_fit.LEARNING_RATE * config.learning_rate_multiplier,
            seed=seed,
            on_batch=train.source.stop_if_asked,
        )
        return Fitted(mlp.head, mlp.head, mlp.chosen)
    if config.loss == "bce":
        rows, heldout_rows = list(train), list(heldout)  # in memory: L-BFGS reads them hundreds of times
        chosen = fit_logistic(spec, rows, heldout_rows)
        refit = fit_logistic(spec, [*rows, *heldout_rows], alphas=[chosen.chosen])
        return Fitted(refit.head, chosen.head, chosen.chosen)
    prefixes = fit_values(spec, train, heldout)
    if spec.ended or not spec.stop_ids or not _finished_vary(train, spec):
        return Fitted(prefixes.head, prefixes.judged, prefixes.alpha)
    finished_heldout = replace(heldout, finished=True)
    ended = fit_values(spec, replace(train, finished=True), finished_heldout)
    if _correlation(ended.judged, finished_heldout) <= _correlation(prefixes.judged, finished_heldout):
        return Fitted(prefixes.head, prefixes.judged, prefixes.alpha)
    head, judged = with_ended(prefixes.head, ended.head), with_ended(prefixes.judged, ended.judged)
    return Fitted(head, judged, prefixes.alpha, ended.alpha)


def _finished_vary(shards: Shards, spec: FeatureSpec) -> bool:
    """Whether the rewards of some prompt's finished completions differ."""
    for graded in map(shards.graded, range(len(shards))):
        finished = graded.finished(spec)
        pairs = torch.stack([graded.prompt_R[finished].double(), graded.rewards_R[finished].double()], 1)
        if len(pairs.unique(dim=0)) > len(pairs[:, 0].unique()):
            return True
    return False


def _correlation(head: Head, shards: Shards) -> float:
    """Within prompts; 0 where nothing varies."""
    return score(head, shards, "correlation", mse_loss)
