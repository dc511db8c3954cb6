"""Chunk-level value-guided search (IRO, arXiv:2506.17828, test-time search).

Per round: continue every live beam K ways by L tokens, score each row by sum_t V_t / beta_t at its last token, keep
W. Finished rows stay in the pool. Plain sampling is W=K=1, best-of-N is W=1, K=N, L to the end, blockwise best-of-K
is W=1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain

import torch

from iro_server.decoding.base import (
    Attribution,
    Final,
    Round,
    Scorer,
    ScorerState,
    SearchObserver,
    SearchParams,
    SearchResult,
    SearchUsage,
    Stage,
    TokenShares,
)
from iro_server.decoding.beam import Beam, SampledTokens
from iro_server.decoding.stopping import STOP_TOKENS, StoppingSession, StopStrings
from iro_server.engines.base import Chunk, Engine, Sampling, Session, Steering
from value_heads.features import HEAD_STATE
from value_heads.stack import ValueStack

RESAMPLING = 0x9E3779B97F4A7C15  # apart from any seed that users choose


class NullObserver:
    """An observer that records nothing."""

    def prompt(self, tokens: int) -> None:
        pass

    def stage(self, name: Stage) -> AbstractContextManager[object]:
        return nullcontext()

    def round(self, usage: SearchUsage, selection: Round) -> None:
        pass


async def guided_search(
    engine: Engine,
    prompt_ids: Sequence[int],
    params: SearchParams,
    sampling: Sampling,
    max_tokens: int,
    scorer: Scorer | None = None,
    *,
    steering: Steering | None = None,
    attribution: Attribution | None = None,
    keep_hidden: tuple[int, ...] = (),
    stops: StopStrings | None = None,
    on_agreed: Callable[[SampledTokens], None] | None = None,
    observer: SearchObserver | None = None,
) -> SearchResult:
    """Search for completions of one prompt.

    Args:
        params: W, K, L and the selection rule. ``betas`` are the scorer's concern.
        sampling: of the frozen model's tokens; ``stop_ids`` end a row. Temperature 0 draws a single row. Where the next
            token depends on the earlier ones and the engine does not resume, a search of several rows is one round.
        scorer: value functions; without them every value is 0 and the first rows are kept.
        steering: tilts what is drawn. Rules that resample correct for it: their finals are draws from
            pi_base * exp(sum V/beta) still, where neither top-p nor top-k cuts q: log-ratios are those of the whole q.
            Rules that rank order what q proposes by value.
        attribution: value functions whose value is shared among the tokens of each final.
        keep_hidden: layers whose hidden states are returned with each final.
        stops: strings that end a row at the token that completes one. Its value is read there.
        on_agreed: called with what was sampled that every live or finished beam now shares, as it grows.
        observer: follows the search's stages and rounds.

    Returns finals best first by value; with "smc" in random order, where each is a draw from
    pi_base * exp(sum V/beta) as W grows.
    Raises ValueError if the prompt and ``max_tokens`` do not fit the model.
    """
    if len(prompt_ids) + max_tokens > engine.info.max_length:
        limit = engine.info.max_length
        raise ValueError(f"{len(prompt_ids)} prompt tokens and {max_tokens} new ones do not fit the model's {limit}")
    knows_drift = steering is None or engine.info.drift
    if params.rule.samples and not knows_drift:
        raise ValueError(f"{engine.info.name} reports no log-ratios of a tilt, which {params.selection} corrects for")
    observer = observer or NullObserver()
    observer.prompt(len(prompt_ids))
    read_layers = [values.layers for values in (scorer, attribution) if values is not None]
    layers = tuple(sorted({*keep_hidden, *chain.from_iterable(read_layers)}))
    scorer, attribution, head_rows = _as_reported(engine, scorer, attribution)
    if head_rows is not None and HEAD_STATE in keep_hidden:
        raise ValueError(f"{engine.info.name} reports numbers of the output head's state, and no state to keep")
    with observer.stage("prefill"):
        session: Session = await engine.open(prompt_ids, sampling, layers, steering, head_rows)
    drawn = params.drawn_by(sampling)
    chunk_length, part_length = _lengths(drawn, engine.info.resumes or not sampling.remembers)
    if stops:
        session = StoppingSession(session, stops, part_length)
    try:
        values = scorer.start(prompt_ids) if scorer else None
        shares = attribution.start_tokens() if attribution else None
        search = _Search(session, values, shares, drawn, sampling.seed, keep_hidden, observer, knows_drift)
        agreed = SampledTokens()
        remaining_tokens = max_tokens
        while remaining_tokens and search.live:
            length = min(chunk_length or remaining_tokens, remaining_tokens)
            remaining_tokens = await search.round(length, remaining_tokens - length)
            if on_agreed:
                agreed = agreed + search.agreed_from(len(agreed.tokens))
                on_agreed(agreed)
    finally:
        session.close()
    return search.result()


def _lengths(drawn: SearchParams, resumes: bool) -> tuple[int | None, int | None]:
    """Tokens of a round, and those between looks for strings that end rows; None: all that remain.

    Where rows do not resume, several are drawn whole. A single one is a stream, whose parts are equally long.
    """
    if resumes:
        return drawn.chunk_length, STOP_TOKENS
    if drawn.rows > 1:
        return None, None
    return drawn.chunk_length and min(drawn.chunk_length, STOP_TOKENS), STOP_TOKENS


def _as_reported(
    engine: Engine, scorer: Scorer | None, attribution: Attribution | None
) -> tuple[Scorer | None, Attribution | None, torch.Tensor | None]:
    """What reads the output head's state as the engine reports it: where that is in numbers, the rows [K, D] that they
    are products with, and the values that read them."""
    values = scorer or attribution
    if engine.info.hidden or not isinstance(values, ValueStack) or HEAD_STATE not in values.layers:
        return scorer, attribution, None
    if attribution not in (None, values):
        raise ValueError("a search reads one stack's numbers of the output head's state")
    projected, head_rows = values.projected()
    return scorer and projected, attribution and projected, head_rows


class _Search:
    """The beams of one search; the first is the prompt."""

    def __init__(
        self,
        session: Session,
        values: ScorerState | None,
        shares: TokenShares | None,
        params: SearchParams,
        seed: int | None,
        keep_hidden: tuple[int, ...],
        observer: SearchObserver,
        knows_drift: bool,
    ) -> None:
        self.session, self.values, self.params, self.observer = session, values, params, observer
        self.shares, self.keep_hidden = shares, keep_hidden
        self.generator = torch.Generator()
        # Another stream than the session's, whose uniforms drew the tokens that are resampled here.
        self.generator.manual_seed((seed + RESAMPLING) % 2**63) if seed is not None else self.generator.seed()
        self.knows_drift = knows_drift
        self.beams = [Beam()]
        self.num_rows = 0  # so far
        self.usage = SearchUsage()

    @property
    def live(self) -> list[Beam]:
        return [beam for beam in self.beams if not beam.finished]

    async def round(self, length: int, remaining_tokens: int) -> int:
        """Continue the live beams by ``length`` tokens, then let the rule choose from their rows and finished beams.
        Returns how many tokens remain: fewer than before where the engine brings more of a single row at once."""
        live, rule = self.live, self.params.rule
        successors = self.params.num_successors if self.usage.rounds else self.params.rows  # first the prompt has W*K
        with self.observer.stage("round"):
            parents = [beam.row for beam in live]
            more = remaining_tokens if self.params.rows == 1 else 0
            chunk, scores_R = await self._extend(parents, successors, length, more)
            if more:
                remaining_tokens -= min(remaining_tokens, max(0, chunk.tokens_RL.shape[1] - length))
            shares_RL = self.shares.shares(parents, successors, chunk).tolist() if self.shares else None
            rows = self._rows(live, successors, chunk, scores_R, shares_RL)
            pool = [beam for beam in self.beams if beam.finished] + rows
            last = not remaining_tokens or all(beam.finished for beam in pool)
            choose = rule.finish if last else rule.select
            self.beams = [pool[place] for place in choose(pool, self.params.beam_width, self.generator)]
        self._count(chunk, Round(rows, self.beams, last))
        return remaining_tokens

    async def _extend(
        self, parents: list[int], successors: int, length: int, more: int
    ) -> tuple[Chunk, torch.Tensor | None]:
        """The chunk of R rows, ``successors`` of each parent, and their values [R]."""
        with self.observer.stage("extend"):
            chunk = await self.session.extend(parents, successors, length, more)
        if self.values is None:
            return chunk, None
        with self.observer.stage("score"):
            return chunk, await self.values.score(parents, successors, chunk)

    def _rows(
        self,
        live: list[Beam],
        successors: int,
        chunk: Chunk,
        scores_R: torch.Tensor | None,
        shares_RL: list[list[float]] | None,
    ) -> list[Beam]:
        """A beam of each row of the chunk."""
        tokens, logprobs = chunk.tokens_RL.tolist(), chunk.logprobs_RL.tolist()
        lengths, stopped = chunk.lengths_R.tolist(), chunk.stopped_R.tolist()
        values = scores_R.tolist() if scores_R is not None else [0.0] * len(lengths)
        log_ratios = _sums(chunk.log_ratios_RL, chunk.lengths_R)
        kl = [] if chunk.kl_RL is None else chunk.kl_RL.tolist()
        if not self.knows_drift:
            kl = [[math.nan] * length for length in lengths]
        ratios = [] if chunk.log_ratios_RL is None else chunk.log_ratios_RL.tolist()
        log_successors = torch.tensor(float(successors)).log().item()
        beams = []
        for row, length in enumerate(lengths):
            parent = live[row // successors]
            beams.append(
                Beam(
                    parent,
                    tokens[row][:length],
                    logprobs[row][:length],
                    chunk.alternatives[row][:length] if chunk.alternatives else [],
                    ratios[row][:length] if ratios else [],
                    shares_RL[row][:length] if shares_RL else [],
                    kl[row][:length] if kl else [],
                    {layer: chunk.hidden[layer][row, :length] for layer in self.keep_hidden},
                    row,
                    self.num_rows + row + 1,
                    values[row],
                    log_weight=parent.log_weight + values[row] - parent.value - log_ratios[row] - log_successors,
                    finished=stopped[row],
                )
            )
        self.num_rows += len(beams)
        return beams

    def agreed_from(self, start: int) -> SampledTokens:
        """What all beams share past their first ``start`` tokens, which they share too."""
        shared = common_prefix([beam.tokens_from(start) for beam in self.beams])
        return self.beams[0].sampled_from(start)[: len(shared)]

    def _count(self, chunk: Chunk, selection: Round) -> None:
        num_tokens = int(chunk.lengths_R.sum())
        round_usage = SearchUsage(num_tokens + chunk.discarded_tokens, num_tokens if self.values else 0, rounds=1)
        self.usage.base_tokens += round_usage.base_tokens
        self.usage.value_tokens += round_usage.value_tokens
        self.usage.rounds += 1
        self.usage.cached_tokens = self.session.cached_tokens
        self.observer.round(round_usage, selection)

    def result(self) -> SearchResult:
        order = self.params.rule.order(self.beams, self.generator)
        return SearchResult([self._final(self.beams[place]) for place in order], self.usage)

    def _final(self, beam: Beam) -> Final:
        """The beam, written out from the prompt on."""
        path, sampled = beam.path(), beam.sampled_from(0)
        return Final(
            tokens=sampled.tokens,
            logprobs=sampled.logprobs,
            log_ratios=sampled.log_ratios,
            token_values=sampled.values,
            token_kl=sampled.kl,
            value=beam.value,
            finish_reason="stop" if beam.finished else "length",
            hidden={layer: torch.cat([part.hidden[layer] for part in path]) for layer in self.keep_hidden},
            alternatives=sampled.alternatives,
            number=beam.number,
        )


def _sums(terms_RL: torch.Tensor | None, lengths_R: torch.Tensor) -> list[float]:
    """Of each row's counted tokens; zeros without terms."""
    if terms_RL is None:
        return [0.0] * len(lengths_R)
    counted_RL = torch.arange(terms_RL.shape[1]) < lengths_R[:, None]
    sums: list[float] = terms_RL.masked_fill(~counted_RL, 0.0).double().sum(1).tolist()
    return sums


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    first, last = min(rows), max(rows)
    for i, token in enumerate(first):
        if token != last[i]:
            return first[:i]
    return first
