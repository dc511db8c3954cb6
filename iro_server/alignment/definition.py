"""What an alignment job is: the one definition that the API, the command line and the trainer share.

How a job is done belongs to ``training``. A field's description is also the command line's help, the API document's
text and a row of docs/hyperparameters.md. Lengths are in tokens, times in seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from iro_server import JsonObject
from iro_server.decoding.base import Beta, SearchParams, Selection
from iro_server.engines.endpoints import DEFAULT_KIND, EngineUrl, Precision
from iro_server.engines.opening import EngineKind

Auto = Literal["auto"]
Betas = Annotated[list[Beta], Field(min_length=1, max_length=16)]
TokenCount = Annotated[int, Field(ge=1)]
MAX_SUCCESSORS = 256

SERVER_LIMITS: dict[str, int] = {
    "prompts_per_iteration": 100_000,
    "validation_prompts": 10_000,
    "chunk_length": 8192,
    "guided_searches": 64,
    "max_tokens": 8192,
    "counted_tokens": 5000,
    "backbone_layers": 1000,
    "eval_interval": 100_000,
    "epochs": 1000,
    "learning_rate_multiplier": 1000,
}
"""The largest values that a server accepts of options that are otherwise unbounded."""


class Departure(BaseModel):
    """A measure of an aligned model's validation completions, whose median is beyond nearly all of the frozen model's
    (5 % and 95 % quantiles)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    measure: str
    median: float
    frozen_low: float
    frozen_high: float


class ServedDefaults(BaseModel):
    """What a model does where a request says nothing. ``max_tokens`` None: the route's own default.

    ``improved``: whether its job's held-out gain has a 95 % interval above 0; None where no job has said so.
    ``over_optimization``: where its text leaves the frozen model's range while the reward rises; None where no job has
    measured it. ``response_format``: the job's, of chats without one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    search: SearchParams = SearchParams.model_validate({})
    temperature: float = 1.0
    max_tokens: int | None = None
    improved: bool | None = None
    over_optimization: tuple[Departure, ...] | None = None
    response_format: JsonObject | None = None


class AlignmentOptions(BaseModel):
    """How a model is aligned. Every option has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    iterations: int = Field(
        1,
        ge=1,
        le=16,
        description="Value functions, one for each iteration. Iterations share the prompts: each takes its part.",
    )
    betas: Betas | Auto = Field(
        "auto",
        description="How strongly each value function guides: one number for each iteration. Smaller values guide more "
        "strongly. Without `iterations`, their number is the number of iterations. `auto` takes 1 unless 0.5 or 2 is "
        "significantly better on held-out prompts.",
    )
    rollouts_per_prompt: int = Field(
        16,
        ge=2,
        le=256,
        description="Plain samples of each prompt in the first iteration; half as many of each tilt that it chooses.",
    )
    prompts_per_iteration: int | None = Field(
        None,
        ge=2,
        description="Prompts in each iteration. Null takes an equal share of the training prompts. With more, "
        "iterations sample anew for prompts that earlier ones had.",
    )
    validation_prompts: int = Field(
        32,
        ge=1,
        description="Maximum number of prompts that choose the best iteration. As many other prompts compare that "
        "iteration with the frozen model at the end. Both sets come from the validation file, half each where it has "
        "fewer prompts; without a validation file they come from a quarter of the training file.",
    )
    beam_width: int = Field(2, ge=1, le=256, description="W: beams that the search keeps after each chunk.")
    num_successors: int = Field(
        8, ge=1, le=MAX_SUCCESSORS, description="K: continuations of each beam that the search draws."
    )
    chunk_length: int = Field(
        4,
        ge=1,
        description="L: tokens between two selections of the search. A job that fits tilts also tries 4·L, and serves "
        "what its validation prefers.",
    )
    selection: Selection = Field(
        "diversity",
        description="Which beams the search keeps: `diversity`, the highest values among different texts; `top`, the "
        "highest values; `smc`, resampled by weight, which makes each completion a sample of the guided distribution.",
    )
    guided_searches: int = Field(
        4,
        ge=1,
        description="Independent searches of each prompt in the rollouts of later iterations. They share the prompt's "
        "W·K rows and keep one beam each, so that completions of a prompt differ from their first token. 1 searches as "
        "the served model does.",
    )
    max_tokens: TokenCount | Auto = Field(
        "auto",
        description="Maximum length of a completion, in the job and by default in its model. `auto` takes the length "
        "within which nine in ten of the frozen model's completions that stop do so, up to 512 tokens.",
    )
    temperature: float = Field(
        1.0, gt=0, le=2, description="Sampling temperature of the frozen model. A job with `tilt` tries lower ones too."
    )
    value_model: Literal["linear", "mlp", "lora", "auto"] = Field(
        "linear",
        description="`linear` and `mlp` read the frozen model's own features: its hidden states or, over HTTP, its "
        "embeddings. `lora` is a separate backbone. `auto` takes `linear` or `lora`, whichever ranks held-out "
        "completions of the first iteration better; it is the default where the model is served over HTTP and "
        "`return_lambda` is 1.",
    )
    loss: Literal["mse", "bce"] = Field(
        "mse", description="`bce` is for rewards in [0, 1] and not for `mlp`; a value is then a log-odds."
    )
    return_lambda: float = Field(
        1.0,
        ge=0,
        le=1,
        description="1 regresses on the reward. Smaller values lean on the values of later tokens, by λ to the power "
        "of 4 from each fourth token to the next. Below 1 it requires `loss` `mse` and `value_model` `linear` or "
        "`mlp`.",
    )
    counted_tokens: int = Field(
        1500, ge=0, description="How many of the most common tokens of the rollouts get a weight of their own."
    )
    backbone_layers: int | None = Field(
        None, ge=1, description="For `lora`: the first layers of the model that form the backbone. Null takes a third."
    )
    tilt: Literal["auto", "exportable", "off"] = Field(
        "auto",
        description="`auto` fits tilts, which steer each token as it is drawn, and keeps the best of them where it is "
        "surely better than none at one row. It needs all weights of the frozen model in `model_dir`, an engine that "
        "applies tilts (in process, or vLLM; in process alone for `selection` `smc`) and a `value_model` other than "
        "`lora`. Elsewhere (Ray, text endpoints), as with `off`, values steer the search alone. `exportable` leaves "
        "out the parts that read words and lengths, so that `iro export` writes the whole tilt.",
    )
    tilt_rounds: int = Field(
        3,
        ge=1,
        le=8,
        description="Maximum number of rounds of tilts in each iteration. The first fits tilts to the iteration's "
        "rollouts, each further one to samples of the tilt that the one before chose; the first that finds no better "
        "tilt is the last. Fewer rounds take less time and leave the model nearer to the frozen one.",
    )
    max_kl: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="How far the tilt may move a completion of one row from the frozen model, in nats on average over "
        "held-out prompts. Null sets no maximum; the text's perplexity and distinct-2 are limited in any case. "
        "`search.max_kl` of a request limits each completion. It needs the frozen model in the job's own process.",
    )
    max_rows: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Maximum rows W·K that the aligned model is served with. A model with a tilt is served with the "
        "fewest rows, of 1, 2, a quarter of W·K and W·K, whose validation reward the best does not surely exceed. With "
        "more rows than one, values steer a search or pick among whole samples, whichever validation prefers.",
    )
    early_stop: bool = Field(
        True, description="Stop at the first validation whose reward does not exceed all earlier ones."
    )
    epochs: int | None = Field(
        None,
        ge=1,
        description="Maximum epochs of each value fit of `mlp` (null: 30) and `lora` (null: 10). The best epoch on "
        "held-out prompts is kept. `linear` is fitted in closed form and has none.",
    )
    learning_rate_multiplier: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="Factor on the learning rate of `mlp` (1e-3) and `lora` (2e-4).",
    )
    eval_interval: int = Field(
        1,
        ge=1,
        description="Validate after every so many iterations, and after the last. Checkpoints are made, and a job "
        "stops early, only at validations.",
    )
    eval_samples: int = Field(
        1,
        ge=1,
        le=64,
        description="Searches of each validation prompt, with different seeds; their rewards are averaged.",
    )
    keep_unproven: bool = Field(
        False,
        description="Serve values and tilt also where the 95 % interval of the held-out gain is not above 0. By "
        "default such a model answers as the frozen model does.",
    )

    @model_validator(mode="before")
    @classmethod
    def _iterations_of_betas(cls, values: object) -> object:
        if not isinstance(values, dict) or "iterations" in values:
            return values
        betas = values.get("betas")
        return values | {"iterations": len(betas)} if isinstance(betas, list | tuple) and betas else values

    @field_validator("betas")
    @classmethod
    def _one_beta_for_each_iteration(cls, betas: Betas | Auto, info: ValidationInfo) -> Betas | Auto:
        iterations = info.data.get("iterations")
        if betas != "auto" and iterations is not None and len(betas) != iterations:
            raise ValueError(f"{iterations} iterations need as many betas, not {len(betas)}")
        return betas

    @model_validator(mode="after")
    def _value_model_has_the_loss(self) -> Self:
        if self.loss == "bce" and self.value_model == "mlp":
            raise ValueError("loss bce goes with linear and lora value functions")
        if self.return_lambda < 1 and (self.value_model in ("lora", "auto") or self.loss == "bce"):
            raise ValueError("return_lambda below 1 goes with value_model linear or mlp, and loss mse")
        return self

    @property
    def search(self) -> SearchParams:
        """The aligned model's search, as the job validates it and the server runs it."""
        return SearchParams(
            beam_width=self.beam_width,
            num_successors=self.num_successors,
            chunk_length=self.chunk_length,
            selection=self.selection,
        )

    @property
    def served_defaults(self) -> ServedDefaults:
        """The defaults of the aligned model; without ``max_tokens`` where the job has yet to measure it."""
        max_tokens = None if self.max_tokens == "auto" else self.max_tokens
        return ServedDefaults(search=self.search, temperature=self.temperature, max_tokens=max_tokens)


DEFAULT_OPTIONS = AlignmentOptions()


class Alignment(AlignmentOptions):
    """An alignment job: the frozen model, the prompts, the grader, and how the model is aligned.

    Files are JSONL, Parquet or CSV. A row is an item for the grader, with either ``messages`` (a conversation that the
    model answers) or ``prompt`` (a text that it continues).
    """

    model_dir: Path | None = Field(
        None, description="Directory of the frozen model. Null prepares the default model the first time."
    )
    model_name: str | None = Field(None, description="Name by which the server serves the frozen model.")
    engine_urls: tuple[EngineUrl, ...] = Field(
        (), description="Servers of the frozen model. Without any it runs in this process."
    )
    engine_kind: EngineKind = Field(
        DEFAULT_KIND, description="Engine of the frozen model. The default without `engine_urls` is the embedded one."
    )
    engine_model: str | None = Field(
        None, description="Name of the frozen model on those servers. Null takes the first that is served."
    )
    engine_timeout: float = Field(600.0, gt=0, description="Maximum seconds that one answer of an engine takes.")
    engine_patience: float = Field(
        600.0, ge=0, description="Maximum seconds that a rollout waits for an engine that fails."
    )
    engine_adapters: Path | None = Field(
        None, description="Directory that vLLM servers read too, for tilts as LoRA adapters. Null: they take none."
    )
    engine_precision: Precision = Field(
        "float32", description="Of the products of an engine in this process on a CPU (docs/models.md#data-types)."
    )
    training_file: Path = Field(description="Training rows.")
    validation_file: Path | None = Field(
        None, description="Validation rows. Null takes validation prompts out of training_file."
    )
    grader: JsonObject = Field(description="The reward, in OpenAI's shape.")
    response_format: JsonObject | None = Field(
        None, description="OpenAI's. A completion that does not conform gets the reward 0 and is not graded."
    )

    @property
    def served_defaults(self) -> ServedDefaults:
        return super().served_defaults.model_copy(update={"response_format": self.response_format})

    @field_validator("response_format")
    @classmethod
    def _is_a_response_format(cls, response_format: JsonObject | None) -> JsonObject | None:
        from iro_server.graders.response_format import parse_response_format  # loads the graders: slow

        if response_format is not None:
            parse_response_format(response_format)
        return response_format

    @model_validator(mode="before")
    @classmethod
    def _auto_value_model_over_http(cls, values: object) -> object:
        if isinstance(values, dict) and values.get("engine_urls") and values.get("return_lambda", 1) == 1:
            return {"value_model": "auto"} | values
        return values
