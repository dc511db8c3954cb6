"""What an alignment job is told."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, ValidationInfo, field_validator, model_validator

from iro_server.decoding.base import Selection
from iro_server.engines.base import ModelInfo
from iro_server.engines.endpoints import Endpoints, EngineUrl
from iro_server.engines.opening import EngineKind
from iro_server.graders import parse_grader
from iro_server.graders.response_format import parse_response_format
from training.run import JobConfig
from value_heads import FeatureSpec
from value_heads.features import FINISHED, LENGTH, TOKENS, Block

ROOM_TOKENS = 48  # that every prompt has to leave in the model's context, where max_tokens is "auto"
BLOCK_PRIORS = {Block(LENGTH): 1.5, Block(FINISHED): 1.5}
"""How far functions of the length may bend, in standard deviations of the reward and for one prompt's rollouts."""

Betas = Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]


def default_feature_spec(info: ModelInfo, horizon: int) -> FeatureSpec:
    """What heads read unless told otherwise, beside the counts of tokens.

    Measured on SmolLM2-135M: the last layer, made for the next token, tells far less about the reward to come.
    """
    common: dict[str, Any] = {"stop_ids": tuple(sorted(set(info.eos_ids))), "position": False, "horizon": horizon}
    if not info.hidden:
        return FeatureSpec(summed=(0,), **common)
    early, late = math.ceil(info.num_layers / 3), round(info.num_layers * 5 / 6)
    return FeatureSpec(current=(late,), summed=(0, early), **common)


def block_scales(spec: FeatureSpec) -> dict[Block, float]:
    """How large each block counts in the ridge fit: larger is shrunk less. Chosen by held-out correlation."""
    emphasis = {"current": 0.3, "sum": 0.5}
    scales = {block: emphasis.get(block.kind, 1.0) for block in spec.blocks}
    return scales | {Block("sum", 0): 1.0, Block("sum", TOKENS): 2.0}


class AlignConfig(JobConfig):
    """Rollouts, reward, value fit and held-out evaluation of each iteration.

    Files are JSONL. A row is an item for the grader, with either ``messages`` (a conversation the model answers) or
    ``prompt`` (a text it continues). Lengths are in tokens. The validation context is the grader's surroundings, None
    those of this process.
    """

    movable = frozenset({"engine_urls", "engine_kind", "engine_model", "engine_timeout", "engine_patience"})

    model_dir: Path | None = Field(None, description="None: the default model, prepared the first time")
    model_name: str | None = None
    engine_urls: tuple[EngineUrl, ...] = Field((), description="servers of the model; none: it runs in this process")
    engine_kind: EngineKind = "vllm"
    engine_model: str | None = Field(None, description="its name there; None: the first that is served")
    engine_timeout: float = Field(600.0, gt=0, description="seconds that one answer of an engine may take")
    engine_patience: float = Field(600.0, ge=0, description="seconds that a rollout waits for an engine which fails")
    training_file: Path
    validation_file: Path | None = Field(None, description="without it, validation prompts come out of training_file")
    grader: dict[str, Any]
    response_format: dict[str, Any] | None = Field(
        None, description="OpenAI's; a completion that does not conform gets the reward 0 and is not graded"
    )

    iterations: int = Field(3, ge=1, le=16)
    betas: Literal["auto"] | Betas = "auto"
    rollouts_per_prompt: int = Field(16, ge=2, le=256, description="plain samples of a prompt in the first iteration")
    beam_width: int = Field(2, ge=1, le=256)
    num_successors: int = Field(8, ge=1, le=256)
    chunk_length: int = Field(4, ge=1)
    selection: Selection = "diversity"
    guided_searches: int = Field(
        4,
        ge=1,
        description="independent searches a prompt in guided rollouts, which share its W·K rows",
    )
    max_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="of a completion; auto: within which most of the frozen model's stop, up to 512"
    )
    temperature: float = Field(1.0, gt=0, le=2)

    prompts_per_iteration: int | None = Field(
        None, ge=2, description="at most; None: an equal share of the training prompts, which is all there can be"
    )
    validation_prompts: int = Field(
        32, ge=1, description="at most, to choose the best iteration by; as many others check that one at the end"
    )
    eval_interval: int = Field(1, ge=1, description="validate after every so many iterations, and after the last")
    eval_samples: int = Field(1, ge=1, le=64, description="validation searches a prompt, averaged")
    value_model: Literal["linear", "mlp", "lora", "auto"] = Field(
        "linear", description="auto: linear or lora, whichever ranks held-out completions better; so with engine_urls"
    )
    feature_spec: FeatureSpec | None = Field(None, description="None: default_feature_spec of the model")
    counted_tokens: int = Field(1500, ge=0, description="how many of the rollouts' commonest tokens get a weight each")
    backbone_layers: int | None = Field(None, ge=1, description="lora: the model's first so many; None: a third")
    loss: Literal["mse", "bce"] = Field("mse", description="bce: for rewards in [0, 1]; V is then a log-odds")
    return_lambda: float = Field(1.0, ge=0, le=1, description="1 regresses on the reward itself, as the paper does")
    epochs: int | None = Field(None, ge=1, description="mlp and lora: at most; None: 30 and 10")
    learning_rate_multiplier: float = Field(1.0, gt=0, allow_inf_nan=False, description="mlp and lora")
    early_stop: bool = True
    concurrency: int = Field(8, ge=1, le=256, description="prompts that are rolled out at once")

    @field_validator("grader")
    @classmethod
    def _is_a_grader(cls, grader: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        parse_grader(grader, info.context).close()
        return grader

    @field_validator("response_format")
    @classmethod
    def _is_a_format(cls, response_format: dict[str, Any] | None) -> dict[str, Any] | None:
        if response_format is not None:
            parse_response_format(response_format)
        return response_format

    @property
    def horizon(self) -> int:
        """``max_tokens`` as a number. ValueError where it is still to be measured."""
        if self.max_tokens == "auto":
            raise ValueError("max_tokens is auto: the job measures it first")
        return self.max_tokens

    @property
    def least_tokens(self) -> int:
        """For which every prompt has to leave room in the model's context."""
        return ROOM_TOKENS if self.max_tokens == "auto" else self.max_tokens

    def endpoints(self, key: str | None) -> Endpoints:
        return Endpoints(
            urls=self.engine_urls,
            kind=self.engine_kind,
            model=self.engine_model,
            key=key,
            timeout=self.engine_timeout,
            patience=self.engine_patience,
        )

    @model_validator(mode="before")
    @classmethod
    def _auto_without_hidden_states(cls, given: Any) -> Any:
        if isinstance(given, dict) and given.get("engine_urls") and given.get("return_lambda", 1) == 1:
            return {"value_model": "auto"} | given
        return given

    @model_validator(mode="after")
    def _goes_together(self) -> AlignConfig:
        if self.betas != "auto" and len(self.betas) != self.iterations:
            raise ValueError(f"betas: {self.iterations} iterations need as many, not {len(self.betas)}")
        if self.loss == "bce" and self.value_model == "mlp":
            raise ValueError("loss: bce goes with linear and lora value functions")
        if self.return_lambda < 1 and (self.value_model in ("lora", "auto") or self.loss == "bce"):
            raise ValueError("return_lambda below 1 goes with value_model linear or mlp, and loss mse")
        if self.engine_urls and self.feature_spec and any(self.feature_spec.layers):
            raise ValueError("feature_spec: with engine_urls there is layer 0 alone, the embedding")
        return self
