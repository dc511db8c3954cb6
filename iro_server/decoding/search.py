"""Chunk-level value-guided search (IRO, arXiv:2506.17828, test-time search).

Per round: continue every live beam K ways by L tokens, score each row by sum_t V_t / beta_t at its last token, keep
W. Finished rows stay in the pool. Plain sampling is W=K=1, best-of-N is W=1, K=N, L to the end, blockwise best-of-K
is W=1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from iro_server.decoding import selection
from iro_server.decoding.base import Final, Scorer, SearchParams, SearchResult, SearchUsage
from iro_server.engines.base import Chunk, Engine, Sampling
from iro_server.telemetry import metrics, tracing
from iro_server.telemetry.request import first_chunk

RESAMPLING = 0x9E3779B97F4A7C15  # apart from any seed that users choose


@dataclass
class Beam:
    """A row since the prompt. ``row``: its place in the last chunk. ``log_weight``: for SMC, since it was resampled."""

    tokens: list[int]
    logprobs: list[float]
    hidden: dict[int, list[torch.Tensor]]
    row: int
    value: float = 0.0
    log_weight: float = 0.0
    finished: bool = False


async def guided_search(
    engine: Engine,
    prompt_ids: Sequence[int],
    params: SearchParams,
    sampling: Sampling,
    max_tokens: int,
    scorer: Scorer | None = None,
    *,
    keep_hidden: tuple[int, ...] = (),
    stop_text: Callable[[list[int]], bool] | None = None,
    on_agreed: Callable[[list[int]], None] | None = None,
) -> SearchResult:
    """Search for completions of one prompt.

    Args:
        params: W, K, L and the selection rule. ``betas`` are the scorer's concern.
        sampling: how the frozen model's tokens are drawn; ``stop_ids`` end a row. Temperature 0 draws a single row.
        scorer: value functions; without them every value is 0 and the first rows are kept.
        keep_hidden: layers whose hidden states are returned with each final.
        stop_text: a row for which it returns True (given the row's tokens) is finished at this chunk's end.
        on_agreed: called with the tokens that every live or finished beam now shares, as they grow.

    Returns finals best first by value; with "smc" in random order, where each is a draw from
    pi_base * exp(sum V/beta) as W grows.
    Raises ValueError if the prompt and ``max_tokens`` do not fit the model.
    """
    layers = tuple(sorted({*keep_hidden, *(scorer.layers if scorer else ())}))
    if len(prompt_ids) + max_tokens > engine.info.max_length:
        longest = engine.info.max_length
        raise ValueError(f"{len(prompt_ids)} prompt tokens and {max_tokens} new ones do not fit the model's {longest}")
    params = params.drawn_by(sampling)
    metrics.PROMPT_TOKENS.inc(len(prompt_ids))
    with tracing.span("prefill"):
        session = await engine.open(prompt_ids, sampling, layers)
    search = _Search(params, keep_hidden, stop_text, sampling.seed)
    values = scorer.start(prompt_ids) if scorer else None
    try:
        left = max_tokens
        while left and (live := [b for b in search.beams if not b.finished]):
            length = min(params.chunk_length or left, left)
            parents = [b.row for b in live]
            with tracing.span("round"):
                with tracing.span("extend"):
                    chunk = await session.extend(parents, search.successors(), length)
                scores = None
                if values:
                    with tracing.span("score"):
                        scores = await values.score(parents, search.successors(), chunk)
                left -= length
                search.advance(live, chunk, scores, last=left == 0)
            first_chunk()
            if on_agreed:
                on_agreed(common_prefix([b.tokens for b in search.beams]))
    finally:
        session.close()
    return search.result(value_tokens=scorer is not None)


class _Search:
    def __init__(
        self,
        params: SearchParams,
        keep_hidden: tuple[int, ...],
        stop_text: Callable[[list[int]], bool] | None,
        seed: int | None,
    ) -> None:
        self.params, self.keep_hidden, self.stop_text = params, keep_hidden, stop_text
        self.generator = torch.Generator()
        # Another stream than the session's, whose uniforms drew the tokens that are resampled here.
        self.generator.manual_seed((seed + RESAMPLING) % 2**63) if seed is not None else self.generator.seed()
        self.beams = [Beam([], [], {i: [] for i in keep_hidden}, row=0)]
        self.usage = SearchUsage()

    def successors(self) -> int:
        """K, but W*K in the first round, where the prompt is the only beam."""
        if self.usage.rounds == 0:
            return self.params.beam_width * self.params.num_successors
        return self.params.num_successors

    def advance(self, live: list[Beam], chunk: Chunk, scores: torch.Tensor | None, last: bool) -> None:
        """Fan the live beams out into the chunk's rows, then let the pool shrink to W (the last round keeps all)."""
        fan = self.successors()
        drawn = int(chunk.lengths_R.sum())
        self.usage.rounds += 1
        self.usage.base_tokens += drawn
        metrics.ROUNDS.inc()
        metrics.BASE_TOKENS.inc(drawn)
        if scores is not None:
            metrics.VALUE_TOKENS.inc(drawn)
        pool = [b for b in self.beams if b.finished]
        for row in range(len(chunk.lengths_R)):
            pool.append(self._grow(live[row // fan], chunk, row, fan, scores))
        if self.params.selection != "smc" and (last or all(b.finished for b in pool)):
            self.beams = pool
        else:
            self.beams = [pool[i] for i in self._select(pool)]

    def _grow(self, parent: Beam, chunk: Chunk, row: int, fan: int, scores: torch.Tensor | None) -> Beam:
        length = int(chunk.lengths_R[row])
        value = float(scores[row]) if scores is not None else 0.0
        tokens = parent.tokens + chunk.tokens_RL[row, :length].tolist()
        return Beam(
            tokens=tokens,
            logprobs=parent.logprobs + chunk.logprobs_RL[row, :length].tolist(),
            hidden={i: [*parent.hidden[i], chunk.hidden[i][row, :length]] for i in self.keep_hidden},
            row=row,
            value=value,
            log_weight=value - parent.value - torch.tensor(float(fan)).log().item(),
            finished=bool(chunk.stopped_R[row]) or bool(self.stop_text and self.stop_text(tokens)),
        )

    def _select(self, pool: list[Beam]) -> list[int]:
        width = self.params.beam_width
        values = [b.value for b in pool]
        if self.params.selection == "smc":
            return self._resample(pool, width)
        if self.params.selection == "top":
            return selection.top(values, width)
        return selection.diversity_first(values, [tuple(b.tokens) for b in pool], width)

    def _resample(self, pool: list[Beam], width: int) -> list[int]:
        kept = selection.resample(torch.tensor([b.log_weight for b in pool]), width, self.generator)
        for i in kept:
            pool[i].log_weight = 0.0
        return kept

    def _order(self) -> list[int]:
        """Places of the beams in the result: by value, or ("smc") at random, as resampling keeps the pool's order, in
        which rows that stopped early come first."""
        if self.params.selection == "smc":
            return torch.randperm(len(self.beams), generator=self.generator).tolist()
        return selection.top([b.value for b in self.beams], len(self.beams))

    def result(self, value_tokens: bool) -> SearchResult:
        self.usage.value_tokens = self.usage.base_tokens if value_tokens else 0
        finals = [
            Final(
                tokens=b.tokens,
                logprobs=b.logprobs,
                value=b.value,
                finish_reason="stop" if b.finished else "length",
                hidden={i: torch.cat(h) for i, h in b.hidden.items()},
            )
            for b in (self.beams[i] for i in self._order())
        ]
        return SearchResult(finals, self.usage)


def common_prefix(rows: Sequence[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    first, last = min(rows), max(rows)
    for i, token in enumerate(first):
        if token != last[i]:
            return first[:i]
    return first
