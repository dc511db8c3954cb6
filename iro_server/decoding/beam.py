"""A beam: one row of a chunk, and the beam that it continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

    from iro_server.engines.base import Alternatives

Term = TypeVar("Term")


@dataclass(slots=True)
class SampledTokens:
    """Tokens with their log-probabilities; the likeliest tokens beside each, its log-ratio by a tilt, its share of the
    value and the KL where it was drawn, where there are any, and else nothing."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    log_ratios: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    kl: list[float] = field(default_factory=list)

    def __add__(self, more: SampledTokens) -> SampledTokens:
        return SampledTokens(
            self.tokens + more.tokens,
            self.logprobs + more.logprobs,
            self.alternatives + more.alternatives,
            self.log_ratios + more.log_ratios,
            self.values + more.values,
            self.kl + more.kl,
        )

    def __getitem__(self, places: slice) -> SampledTokens:
        return SampledTokens(
            self.tokens[places],
            self.logprobs[places],
            self.alternatives[places],
            self.log_ratios[places],
            self.values[places],
            self.kl[places],
        )


@dataclass(eq=False, slots=True)
class Beam:
    """A row's tokens in one chunk, after those of its parent. The beam of the prompt has neither parent nor tokens.

    Beams are equal where all their tokens since the prompt are, however chunks divide them.

    ``logprobs``, ``alternatives``, ``log_ratios`` and ``token_kl`` (where it was steered; see ``Chunk``),
    ``token_values`` (their shares of the value, where they are asked for), ``hidden[layer]`` [L, D]: of ``tokens``.
    ``row``: its place in the chunk. ``number``: its place among all rows of the search, from 1. ``value``: sum_t
    V_t/beta_t at the last token. ``log_weight``: of SMC, since the beam was resampled. ``length``: tokens since the
    prompt.
    """

    parent: Beam | None = None
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[Alternatives] = field(default_factory=list)
    log_ratios: list[float] = field(default_factory=list)
    token_values: list[float] = field(default_factory=list)
    token_kl: list[float] = field(default_factory=list)
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    row: int = 0
    number: int = 0
    value: float = 0.0
    log_weight: float = 0.0
    finished: bool = False
    length: int = field(init=False)
    _digest: int = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.tokens) + (self.parent.length if self.parent else 0)
        self._digest = self.parent._digest if self.parent else 0
        for token in self.tokens:
            self._digest = hash((self._digest, token))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Beam):
            return NotImplemented
        if (self.length, self._digest) != (other.length, other._digest):
            return False
        if self.parent is other.parent:
            return self.tokens == other.tokens
        return self.tokens_from(0) == other.tokens_from(0)

    def __hash__(self) -> int:
        return self._digest

    def path(self) -> list[Beam]:
        """The beams of all chunks since the prompt, this one last."""
        return self._path_from(0)

    def tokens_from(self, start: int) -> list[int]:
        """The tokens since the prompt, without the first ``start``."""
        return _last([beam.tokens for beam in self._path_from(start)], self.length - start)

    def sampled_from(self, start: int) -> SampledTokens:
        """What was sampled since the prompt, without the first ``start`` tokens."""
        path, count = self._path_from(start), self.length - start
        return SampledTokens(
            _last([beam.tokens for beam in path], count),
            _last([beam.logprobs for beam in path], count),
            _last([beam.alternatives for beam in path], count),
            _last([beam.log_ratios for beam in path], count),
            _last([beam.token_values for beam in path], count),
            _last([beam.token_kl for beam in path], count),
        )

    def _path_from(self, start: int) -> list[Beam]:
        """Those that reach past token ``start``."""
        path: list[Beam] = []
        beam = self
        while beam.parent is not None and beam.length > start:
            path.append(beam)
            beam = beam.parent
        return path[::-1]


def _last(parts: Sequence[list[Term]], count: int) -> list[Term]:
    """The last ``count`` of all parts' terms, or fewer where there are fewer."""
    terms = [term for part in parts for term in part]
    return terms[max(0, len(terms) - count) :]
