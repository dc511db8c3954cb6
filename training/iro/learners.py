"""From graded rollouts to a value function more: a head on the model's features, or a LoRA adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from iro_server.engines.describe import Description
from training.iro.config import AlignConfig, default_feature_spec
from training.iro.data import AlignError, Prompt
from training.iro.diagnostics import diagnose
from training.iro.fit import Graded, Shards, fit_head
from training.iro.rollouts import commonest_tokens
from training.iro.values import Stack
from training.json_values import JsonObject
from value_heads import Example, FeatureSpec, LoraBackbone, LoraValues, ValueStack, backbone_fit, fit_lora
from value_heads.features import HEAD_STATE
from value_heads.heads import Head
from value_heads.text_counts import packed_counts

NO_HEAD_STATES = (
    f"feature_spec names layer {HEAD_STATE}, the output head's state: on servers it needs engine_adapters, vLLM's "
    "--enable-scale-out, two unused tokens for each feature of it, all weights in the model's directory, and a "
    "value_model other than mlp"
)


class Learned(NamedTuple):
    """``stack``: the stack before with a value function more, its beta 1. ``judged``: the same without the held-out
    prompts in the fit. ``report``: diagnostics of ``judged`` on the held-out prompts."""

    stack: Stack
    judged: Stack
    report: JsonObject


class Learner(Protocol):
    @property
    def spec(self) -> FeatureSpec | None:
        """What rollouts have to store for its fits, counts of tokens apart; None: tokens alone."""
        ...

    @property
    def spreads(self) -> bool:
        """Whether several processes fit it sooner than one."""
        ...

    def fit(self, before: Stack | None, train: Shards, heldout: Shards, seed: int) -> Learned:
        """A value function more on top of ``before``."""
        ...


class HeadLearner:
    """Heads that read the frozen model's own hidden states, and counts of tokens."""

    spreads = False

    def __init__(self, config: AlignConfig, spec: FeatureSpec):
        self.config, self.spec = config, spec

    def fit(self, before: Stack | None, train: Shards, heldout: Shards, seed: int) -> Learned:
        spec = self.spec.model_copy(update={"counted": self._counted(train, heldout)})
        fitted = fit_head(self.config, spec, train, heldout, seed)
        judged = _push(before, fitted.judged)

        def new(graded: Graded) -> Tensor:
            values_N = fitted.judged(graded.features(fitted.judged.spec))
            return values_N.sigmoid() if self.config.loss == "bce" else values_N

        report = diagnose(heldout, new, lambda graded: graded.values(judged))
        return Learned(
            _push(before, fitted.head),
            judged,
            {"setting": fitted.setting, "ended_setting": fitted.ended_setting} | report,
        )

    def _counted(self, *parts: Shards) -> tuple[int, ...]:
        """The commonest tokens of this iteration's rollouts: what guidance favours shifts from one to the next."""
        return commonest_tokens(chain.from_iterable(part.completions() for part in parts), self.config.counted_tokens)


def _push(before: Stack | None, head: Head) -> ValueStack:
    if before is None:
        return ValueStack([head], [1.0])
    assert isinstance(before, ValueStack)
    return ValueStack([*before.heads, head], [*before.betas, 1.0])


class LoraLearner:
    """A LoRA adapter an iteration on a backbone apart from the engine: the frozen model's own first layers."""

    spec: FeatureSpec | None = None
    spreads = True

    def __init__(self, config: AlignConfig, num_layers: int, prompts: Mapping[int, Prompt]):
        self.config, self.prompts = config, prompts
        self.num_layers = config.backbone_layers or math.ceil(num_layers / 3)

    def fit(self, before: Stack | None, train: Shards, heldout: Shards, seed: int) -> Learned:
        assert not isinstance(before, ValueStack) and self.config.model_dir is not None
        backbone = before.backbone if before else LoraBackbone(self.config.model_dir, self.num_layers)
        betas = (*(before.betas if before else ()), 1.0)
        scores = fit_lora(
            backbone,
            self._examples(train),
            self._examples(heldout),
            loss=self.config.loss,
            epochs=self.config.epochs or backbone_fit.EPOCHS,
            learning_rate=backbone_fit.LEARNING_RATE * self.config.learning_rate_multiplier,
            seed=seed,
            on_batch=train.source.stop_if_asked,
        )

        def new(graded: Graded) -> Tensor:
            values_N = self._values(backbone, len(betas) - 1, graded)
            return values_N.sigmoid() if self.config.loss == "bce" else values_N

        def stack_values(graded: Graded) -> Tensor:
            return torch.stack([self._values(backbone, t, graded) / beta for t, beta in enumerate(betas)]).sum(0)

        best = max(scores, key=scores.__getitem__)
        stack = LoraValues(backbone, betas)  # held-out prompts chose its epoch, and taught it nothing
        return Learned(stack, stack, {"setting": best} | diagnose(heldout, new, stack_values))

    def _examples(self, shards: Shards) -> list[Example]:
        examples = []
        for index, graded in enumerate(map(shards.graded, range(len(shards)))):
            groups = shards.groups(index, graded.prompt_R).tolist()
            columns = (graded.prompt_R.tolist(), graded.tokens, graded.rewards_R.tolist(), groups)
            for prompt, tokens, reward, group in zip(*columns, strict=True):
                examples.append(Example(self.prompts[prompt].token_ids, tokens, reward, group))
        return examples

    def _values(self, backbone: LoraBackbone, iteration: int, graded: Graded) -> Tensor:
        """[N] at the prefixes of its completions."""
        prompts = [self.prompts[prompt].token_ids for prompt in graded.prompt_R.tolist()]
        return graded.at_prefixes(backbone.response_values(iteration, prompts, graded.tokens).cpu())


class BetterLearner:
    """Heads or a LoRA backbone: what the first iteration's held-out prompts say, by correlation within a prompt."""

    spreads = True

    def __init__(self, heads: HeadLearner, lora: LoraLearner):
        self.heads, self.lora = heads, lora

    @property
    def spec(self) -> FeatureSpec | None:
        return self.heads.spec

    def fit(self, before: Stack | None, train: Shards, heldout: Shards, seed: int) -> Learned:
        if before is not None:
            learner = self.lora if isinstance(before, LoraValues) else self.heads
            return learner.fit(before, train, heldout, seed)
        linear, lora = (learner.fit(None, train, heldout, seed) for learner in (self.heads, self.lora))
        by_heads, by_lora = (learned.report["overall"]["correlation"] for learned in (linear, lora))
        name, better = ("lora", lora) if by_lora > by_heads else ("linear", linear)
        message = (
            f"Value functions are {name}: held-out correlation {by_heads:.3f} by linear ones, {by_lora:.3f} by lora"
        )
        return better._replace(report=better.report | {"message": message})


def make_learner(config: AlignConfig, model: Description, prompts: Mapping[int, Prompt], has_frozen: bool) -> Learner:
    """The learner of a job's ``value_model``. ``has_frozen``: whether the frozen model can be in this process.

    AlignError where ``feature_spec`` names states that neither it nor the engine reports.
    """
    lora = LoraLearner(config, model.info.num_layers, prompts)
    heads = HeadLearner(config, _head_spec(config, model, has_frozen))
    match config.value_model:
        case "lora":
            return lora
        case "auto":
            return BetterLearner(heads, lora)
        case _:
            return heads


def _head_spec(config: AlignConfig, model: Description, has_frozen: bool) -> FeatureSpec:
    info = model.info
    if not has_frozen or config.value_model == "mlp":  # an mlp reads no numbers of a state
        info = replace(info, head_values=0)
    spec = config.feature_spec or default_feature_spec(info, config.horizon, packed_counts(model.tokenizer))
    numbers = 2 * sum(block.layer == HEAD_STATE for block in spec.blocks)  # finished responses may have their own
    if not info.hidden and numbers > info.head_values:
        raise AlignError(NO_HEAD_STATES, "no_head_states", "feature_spec")
    return spec
