"""The parameters of a search, the protocols that it uses, and its result."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from math import prod
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from iro_server import JsonObject
from iro_server.decoding.selection import RULES, SelectionRule

if TYPE_CHECKING:  # the command line reads SearchParams for its help, without a model library
    import torch

    from iro_server.decoding.beam import Beam
    from iro_server.engines.base import Alternatives, Chunk, Sampling

    Selection = str
else:
    Selection = Literal[tuple(RULES)]

Stage = Literal["prefill", "round", "extend", "score"]
Beta = Annotated[float, Field(ge=1e-6, allow_inf_nan=False)]  # below, values divided by it leave what a float32 holds


class Rows(BaseModel):
    """Rows that step at once, as a request asks for them, and W and K where it asks for these too."""

    beam_width: int | None = None
    num_successors: int | None = None
    rows: int = Field(ge=1, le=256)

    @field_validator("rows")
    @classmethod
    def _is_a_product(cls, rows: int, info: ValidationInfo) -> int:
        factors = {name: factor for name, factor in info.data.items() if factor is not None}
        if rows % prod(factors.values()) or (len(factors) == 2 and rows != prod(factors.values())):
            with_factors = ", ".join(f"{name} {factor}" for name, factor in factors.items())
            raise ValueError(f"beam_width * num_successors cannot be {rows} with {with_factors}")
        return rows


class SearchParams(BaseModel):
    """Chunk-level search: W beams, K successors of each, L tokens a chunk (None: to the end).

    W=K=1 is plain sampling; W=1, L=None is best-of-K; W=1 with values is blockwise best-of-K. ``pick``: what orders the
    finals. A search orders them by value; "grader" is for callers that have one, such as the API. ``strength``: of the
    aligned model's tilt at each token, 0 for none. ``max_kl``: nats that a completion may move from the frozen model by
    it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    beam_width: int = Field(default=1, ge=1, le=256)
    num_successors: int = Field(default=1, ge=1, le=256)
    chunk_length: int | None = Field(default=None, ge=1)
    selection: Selection = "diversity"
    betas: tuple[Beta, ...] | None = None
    pick: Literal["value", "grader"] = "value"
    strength: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    max_kl: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @property
    def rows(self) -> int:
        """W*K: rows that step at once."""
        return self.beam_width * self.num_successors

    @property
    def rule(self) -> SelectionRule:
        return RULES[self.selection]

    @property
    def max_finals(self) -> int:
        """The most completions that the search ends with."""
        return self.rule.max_finals(self.beam_width, self.num_successors)

    def overridden(self, changes: JsonObject) -> SearchParams:
        """With some fields changed. ``rows``, which is none, sets W·K, beside a changed W or K; without, 1 is a single
        row; more keep W where it divides them, and else one beam. ``values`` is for who resolves models.
        ValidationError for what is no search."""
        no_fields = ("rows", "values")
        fields = self.model_dump() | {name: value for name, value in changes.items() if name not in no_fields}
        params = SearchParams.model_validate(fields)
        if "rows" not in changes:
            return params
        factors = {name: fields[name] for name in ("beam_width", "num_successors") if name in changes}
        rows = Rows.model_validate(factors | {"rows": changes["rows"]}).rows
        width = self.beam_width if rows > self.beam_width and rows % self.beam_width == 0 else 1
        if "beam_width" in changes:
            width = params.beam_width
        elif "num_successors" in changes:
            width = rows // params.num_successors
        return params.model_copy(update={"beam_width": width, "num_successors": rows // width})

    def drawn_by(self, sampling: Sampling) -> SearchParams:
        """W=K=1 at temperature 0, where all successors of a beam are the same row."""
        return self if sampling.temperature else self.model_copy(update={"beam_width": 1, "num_successors": 1})


def repeatable(sampling: Sampling, temperature: float, prompt_ids: Sequence[int]) -> Sampling:
    """Temperature 0 where values choose among rows: ``temperature``, with the seed of ``sampling``, or one derived from
    the prompt. Greedy rows would all be the frozen model's likeliest text."""
    digest = hashlib.sha256(" ".join(map(str, prompt_ids)).encode()).digest()
    seed = int.from_bytes(digest[:8], "big") >> 2 if sampling.seed is None else sampling.seed
    return replace(sampling, temperature=temperature, seed=seed)


class ScorerState(Protocol):
    """The values of one search, whose rows are dropped and repeated as its beams are."""

    async def score(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> torch.Tensor:
        """Sum_t V_t / beta_t [R] at each row's last counted token; arguments as ``Session.extend``."""
        ...


class Scorer(Protocol):
    """Value functions ready to steer a search."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Hidden layers wanted from the engine; empty when the scorer runs a backbone of its own."""
        ...

    def start(self, prompt_ids: Sequence[int]) -> ScorerState: ...


@dataclass(frozen=True)
class Round:
    """One round: its rows, and the beams chosen among them and those that finished before. A beam may be chosen twice
    where the selection rule resamples. ``last``: the chosen beams are the finals."""

    rows: Sequence[Beam]
    chosen: Sequence[Beam]
    last: bool


class TokenShares(Protocol):
    """The shares of one search's tokens in a value."""

    def shares(self, parents: Sequence[int], num_successors: int, chunk: Chunk) -> torch.Tensor:
        """[R, L]; arguments as ``Session.extend``."""
        ...


class Attribution(Protocol):
    """Value functions whose value is a sum over tokens."""

    @property
    def layers(self) -> tuple[int, ...]: ...

    def start_tokens(self) -> TokenShares: ...


class SearchObserver(Protocol):
    """Follows the searches that it is passed to, such as for telemetry."""

    def prompt(self, tokens: int) -> None:
        """A search begins, of a prompt of so many tokens."""
        ...

    def stage(self, name: Stage) -> AbstractContextManager[object]:
        """Entered for the time of a stage; "extend" and "score" lie within "round"."""
        ...

    def round(self, usage: SearchUsage, selection: Round) -> None:
        """A round has ended; ``usage`` is the round's."""
        ...


@dataclass
class Final:
    """One finished completion. ``hidden[layer]``: [T, D] where the search was asked to keep it.

    ``value``: sum_t V_t/beta_t at the last token (0 without values).
    ``finish_reason``: "stop" or "length". ``alternatives``: of each token, as ``Chunk``; empty where the sampling asks
    for none. ``log_ratios``: log q/pi_0 of each token where the engine reports drift of a tilt q, else none.
    ``number``: of the beam that it ends with.
    ``token_values``: each token's share of a value, where the search was asked for them.
    ``token_kl``: nats from the frozen model in the state that each token was drawn from; none without steering, NaN
    where the engine does not report them.
    """

    tokens: list[int]
    logprobs: list[float]
    value: float
    finish_reason: Literal["stop", "length"]
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    alternatives: list[Alternatives] = field(default_factory=list)
    log_ratios: list[float] = field(default_factory=list)
    number: int = 0
    token_values: list[float] = field(default_factory=list)
    token_kl: list[float] = field(default_factory=list)

    @property
    def kl(self) -> float:
        """Nats from the frozen model along its tokens (0 without steering, NaN where the engine reports none)."""
        return sum(self.token_kl, 0.0)


@dataclass
class SearchUsage:
    """``cached_tokens``: of the prompt, that were not read for this search."""

    base_tokens: int = 0
    value_tokens: int = 0
    rounds: int = 0
    cached_tokens: int = 0


@dataclass
class SearchResult:
    """``finals``: every completion at the end, in the order of the selection rule."""

    finals: list[Final]
    usage: SearchUsage
