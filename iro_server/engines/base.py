"""The frozen model behind one protocol: continue prefixes, token ids in and out.

Axes in tensor names: R rows (beams x successors), L tokens of one chunk, D hidden width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import torch

from iro_server import JsonObject
from value_heads.features import HEAD_STATE
from value_heads.tilt import TILT_PARTS, Tilt, TiltPart

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Alternatives = list[tuple[int, float]]
GREEDY_BELOW = 1e-3  # a temperature this low divides logits past fp32, and draws the likeliest token all the same
SMALLEST_NUCLEUS = 1e-9  # for a top_p of 0: below any likeliest token's probability, which is at least 1 / vocabulary


@dataclass(frozen=True)
class Sampling:
    """How the frozen model's next token is drawn. ``seed`` None draws a fresh one.

    ``salt``: whose the prompt is. A server that keeps prompts for other requests to share does so among equal salts.
    ``schema``: a JSON schema, as JSON, that a row's text has to fit; ``stop_ids`` hold the model's end tokens then.
    ``logit_bias``: added to tokens' logits. The penalties count a row's tokens since the prompt. Bias and penalties
    come first, then the schema's mask, and a tilt, the temperature and truncation after them.
    ``alternatives``: how many of the likeliest tokens are reported beside each one drawn. ``likeliest``: the K
    successors of a beam begin with its K likeliest tokens, the likeliest first, and no token is drawn at random.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_ids: tuple[int, ...] = ()
    salt: str | None = None
    schema: str | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    alternatives: int = 0
    likeliest: bool = False

    @property
    def adjusts(self) -> bool:
        """Whether it changes the frozen model's logits."""
        return bool(self.schema is not None or self.logit_bias or self.remembers)

    @property
    def remembers(self) -> bool:
        """Whether the next token depends on where in the completion it stands."""
        return bool(self.schema is not None or self.presence_penalty or self.frequency_penalty)


@dataclass(frozen=True, eq=False)
class Steering:
    """A tilt of the frozen model's logits: tokens are drawn from q(a|s) = pi_0(a|s) exp(strength A(s,a)) / Z(s).

    The sampling's temperature is that of q, and of the pi_0 that KL is from; top-p and top-k truncate q, but not the q
    of log-ratios and KL. ``max_kl``:
    nats, summed over a row's tokens, of KL(q || pi_0). Where a step would exceed what is left of it, the step's
    strength is lowered.
    """

    tilt: Tilt
    strength: float = 1.0
    max_kl: float | None = None


def cache_salt(project: str) -> str:
    """The salt of a project's prompts, which tells nothing of its name."""
    return hashlib.sha256(f"iro {project}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class ModelInfo:
    """What identifies a frozen model; value functions are tied to both hashes.

    ``hidden``: whether its engine reports hidden states past layer 0, which is the token's embedding; ``head_values``:
    where it does not, how many numbers <w, s> of the state s that a token was drawn from it reports with the token.
    ``logprobs``: whether it reports log-probabilities; else they are 0. ``steers``: the parts of a
    tilt that it applies. ``drift``: whether it reports how far a tilt has moved a row.
    ``adjusts``: whether it takes a schema, biases and penalties, which it may do only where a completion is a single
    chunk, or a single row (``resumes`` False).
    """

    name: str
    model_hash: str
    template_hash: str
    eos_ids: tuple[int, ...]
    num_layers: int
    hidden_size: int
    max_length: int
    hidden: bool = True
    head_values: int = 0
    logprobs: bool = True
    steers: frozenset[TiltPart] = TILT_PARTS
    drift: bool = True
    adjusts: bool = True
    resumes: bool = True

    def lacks(self, layers: Iterable[int]) -> bool:
        """Whether its engine cannot report all of these layers, or what linear value functions read of them."""
        reported = {0, HEAD_STATE} if self.head_values else {0}
        return not self.hidden and not reported.issuperset(layers)

    def cannot_apply(self, tilt: Tilt) -> frozenset[TiltPart]:
        """The parts of the tilt that its engine does not apply."""
        return tilt.parts - self.steers


@dataclass
class Chunk:
    """New tokens of R rows. Positions at or past ``lengths`` are padding.

    tokens_RL: int64; logprobs_RL: float32, log-probability under the frozen model, adjusted as the sampling says and at
    its temperature, before top-p/top-k truncation; lengths_R: int64, tokens that count (a stop id is counted);
    stopped_R: bool, the row drew a stop id. hidden[layer]: [R, L, D] float32, the frozen model's hidden state
    at each new token: layer 0 is the token embedding, layer i the output of decoder layer i, HEAD_STATE the state that
    the token was drawn from, or numbers of it (``Engine.open``). log_ratios_RL: log q/pi_0 of each token, and kl_RL:
    KL(q || pi_0) where it was drawn, both float32; None without steering, and from an engine that does not report
    drift. alternatives[row][position]: the
    likeliest tokens and their log-probabilities, the likeliest first, where the sampling asks for them.
    discarded_tokens: drawn past the strings that end rows, and in none of them.
    """

    tokens_RL: torch.Tensor
    logprobs_RL: torch.Tensor
    lengths_R: torch.Tensor
    stopped_R: torch.Tensor
    hidden: dict[int, torch.Tensor] = field(default_factory=dict)
    log_ratios_RL: torch.Tensor | None = None
    kl_RL: torch.Tensor | None = None
    alternatives: list[list[Alternatives]] | None = None
    discarded_tokens: int = 0


class Session(Protocol):
    """One prompt being continued. Rows of the last chunk are the possible parents of the next."""

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not read for this session; known after the first chunk."""
        ...

    async def extend(self, parents: Sequence[int], num_successors: int, length: int, more: int = 0) -> Chunk:
        """Continue each parent ``num_successors`` ways by up to ``length`` tokens.

        ``parents`` are row indices of the previous chunk (the first call: ``[0]``, the prompt), repeats allowed.
        ``more``: tokens that the caller, of a single row, will ask for next unless it stops, ``length`` at a time: an
        engine may draw them meanwhile, and return some of them too.
        Returns len(parents) * num_successors rows, parent-major. Ends early once every row has stopped.
        """
        ...

    def close(self) -> None:
        """Free the rows at once; safe to call twice and in mid-extend."""
        ...


@dataclass(frozen=True)
class EngineHealth:
    """The state of an engine at this moment.

    ``live_rows``: rows in its batch; None where servers batch them. ``cache_capacity``: tokens whose keys and values
    fit in half of the memory that was free once the model was loaded; None where it is unknown. ``shared_rows``: rows
    of one project that slow another project's single row by half at most; None where it is unknown. ``replicas``: a
    report of each server, in the order of the settings; none where the model runs in this process.
    """

    live_rows: int | None = None
    cache_capacity: int | None = None
    shared_rows: int | None = None
    replicas: tuple[JsonObject, ...] = ()

    @property
    def up(self) -> bool:
        """Whether the model runs in this process, or some server of it answers."""
        return not self.replicas or any(replica["up"] for replica in self.replicas)


class Engine(Protocol):
    """A frozen model and its tokenizer. Rows of all open sessions step in one batch."""

    @property
    def info(self) -> ModelInfo: ...

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    async def open(
        self,
        prompt_ids: Sequence[int],
        sampling: Sampling,
        layers: Sequence[int] = (),
        steering: Steering | None = None,
        head_rows: torch.Tensor | None = None,
    ) -> Session:
        """Start a session. ``layers`` asks for hidden features, ``steering`` tilts what is drawn. ``head_rows``: rows w
        [K, D], for an engine that reports the numbers <w, s>, followed by zeros, in place of HEAD_STATE's states s.
        ValueError if the engine can do none of this, or if the prompt does not fit ``info.max_length``."""
        ...

    def lockstep(self, sessions: int) -> AbstractContextManager[None]:
        """For so many sessions, which are opened and closed within: their results do not depend on their timing, not
        even in the last bits. An engine that cannot promise it documents that."""
        ...

    def health(self) -> EngineHealth:
        """Returns at once, without asking a server."""
        ...

    def close(self) -> None:
        """Free the model; chunks in progress fail with CancelledError."""
        ...
