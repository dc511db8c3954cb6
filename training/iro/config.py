"""An alignment job's config: what the job is (``iro_server.alignment``), and how it is done."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from iro_server.alignment.definition import Alignment
from iro_server.engines.base import ModelInfo
from iro_server.engines.endpoints import Endpoints
from training.json_values import JsonObject
from training.run import JobConfig
from value_heads import FeatureSpec
from value_heads.features import FINISHED, HEAD_STATE, LENGTH, TEXT, TOKENS, Block

MIN_ROOM = 48  # tokens of the model's context that every prompt has to leave where max_tokens is "auto"
HEAD_NUMBERS = 4  # of the output head's state: current and averaged, each with a copy for finished responses
BLOCK_PRIORS = {Block(LENGTH): 1.5, Block(FINISHED): 1.5}
"""How far functions of the length may bend, in standard deviations of the reward and for one prompt's rollouts."""


def default_feature_spec(info: ModelInfo, horizon: int, text_counts: str = "") -> FeatureSpec:
    """What heads read by default, beside the counts of tokens: the mean of a layer's states over the response, and the
    counts of its text.

    Chosen by held-out correlation on SmolLM2-135M (results/value_features): on two of three tasks a mean predicts the
    reward of the whole response far better than the newest state with two sums, on the third it is not shown to. A
    server that reports no layer may report the output head's state.
    """
    common: JsonObject = {"stop_ids": tuple(sorted(set(info.eos_ids))), "position": False, "horizon": horizon}
    common["text_counts"] = text_counts
    if not info.hidden:
        head_state = (HEAD_STATE,) if info.head_values >= HEAD_NUMBERS else ()
        return FeatureSpec(current=head_state, averaged=head_state, summed=(0,), **common)
    return FeatureSpec(averaged=(round(info.num_layers * 2 / 3),), **common)


def block_scales(spec: FeatureSpec, mean_scale: float = 3.0, text_scale: float = 1.0) -> dict[Block, float]:
    """How large each block counts in the ridge fit: larger is shrunk less. Chosen by held-out correlation.

    ``mean_scale``: of the states' means. ``text_scale``: of functions of the text.
    """
    emphasis = {"current": 0.3, "sum": 0.5, "mean": mean_scale, TEXT: text_scale}
    scales = {block: emphasis.get(block.kind, 1.0) for block in spec.blocks}
    return scales | {Block("current", HEAD_STATE): 0.9, Block("sum", 0): 1.0, Block("sum", TOKENS): 2.0}


class AlignConfig(Alignment, JobConfig):
    """Rollouts, rewards, value fit and held-out evaluation of each iteration."""

    movable = frozenset(
        {"engine_urls", "engine_kind", "engine_model", "engine_timeout", "engine_patience", "engine_adapters"}
    )

    feature_spec: FeatureSpec | None = Field(
        None,
        description="Features of the model's states that heads read. Null takes its `default_feature_spec`.",
    )
    concurrency: int = Field(8, ge=1, le=256, description="Number of prompts sampled at once.")

    @model_validator(mode="after")
    def _engine_has_the_layers(self) -> Self:
        if self.engine_urls and self.feature_spec and not {0, HEAD_STATE}.issuperset(self.feature_spec.layers):
            raise ValueError(
                f"feature_spec: with engine_urls there are layers 0, the embedding, and {HEAD_STATE} alone"
            )
        return self

    @property
    def horizon(self) -> int:
        """``max_tokens`` as a number. ValueError where it is still to be measured."""
        if self.max_tokens == "auto":
            raise ValueError("max_tokens is auto: the job measures it first")
        return self.max_tokens

    @property
    def min_room(self) -> int:
        """Tokens for which every prompt has to leave room in the model's context."""
        return MIN_ROOM if self.max_tokens == "auto" else self.max_tokens

    def endpoints(self, key: str | None) -> Endpoints:
        return Endpoints(
            urls=self.engine_urls,
            kind=self.engine_kind,
            model=self.engine_model,
            key=key,
            timeout=self.engine_timeout,
            patience=self.engine_patience,
            adapters=self.engine_adapters,
            precision=self.engine_precision,
        )
