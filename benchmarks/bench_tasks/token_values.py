"""Decoding by the values of single tokens: a row's likeliest next tokens are scored by log pi_0 + w V, one is taken.

V(s.a) of a candidate a needs the frozen model's states after it, a forward pass of each candidate at each token. Axes
in tensor names: K candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import Answer
from benchmarks.bench_tasks.piece import DECODING, Piece
from training.run import derive_seed

if TYPE_CHECKING:
    from torch import Tensor

    from iro_server.decoding.base import Scorer
    from training.iro.data import Prompt

CANDIDATES = 10
"""ARGS' number; VAS takes 20 from a value model that scores all of them in one pass."""
Proposal = Callable[["Tensor"], "Tensor"]


@dataclass(frozen=True)
class TokenValues:
    """``values``: None for none. ``strength``: w. ``proposal``: from the scores [K] of a row's candidates to the
    probabilities [K] that the next token is drawn by."""

    piece: Piece
    values: Scorer | None
    strength: float
    proposal: Proposal
    candidates: int = CANDIDATES

    def answers(self, prompts: Sequence[Prompt], seed: int) -> list[Answer]:
        async def decode(prompt: Prompt) -> Answer:
            return await self.decode(prompt, derive_seed(seed, DECODING, prompt.index))

        return self.piece.in_lockstep(prompts, self.piece.prompts_at_once(self.candidates), decode)

    async def decode(self, prompt: Prompt, seed: int) -> Answer:
        """An answer whose base tokens are those of all candidates, and whose KL is exact: sum_t KL(q_t || pi_0)."""
        import torch

        from training.iro.rollouts import rollout_sampling

        engine, values = self.piece.engine, self.values
        sampling = replace(rollout_sampling(1.0, engine.info), likeliest=True)
        session = await engine.open(prompt.token_ids, sampling, values.layers if values else ())
        state = values.start(prompt.token_ids) if values else None
        generator = torch.Generator().manual_seed(seed)
        tokens: list[int] = []
        logprobs: list[float] = []
        place = base_tokens = 0
        kl, finished = 0.0, False
        try:
            while len(tokens) < self.piece.max_tokens and not finished:
                chunk = await session.extend([place], self.candidates, 1)
                logprobs_K = chunk.logprobs_RL[:, 0].double()
                values_K = await state.score([place], self.candidates, chunk) if state else torch.zeros(len(logprobs_K))
                q_K = self.proposal(logprobs_K + self.strength * values_K.double())
                place = int(torch.multinomial(q_K, 1, generator=generator))
                kl += float(torch.special.xlogy(q_K, q_K).sum() - (q_K * logprobs_K).sum())
                tokens.append(int(chunk.tokens_RL[place, 0]))
                logprobs.append(float(logprobs_K[place]))
                base_tokens += len(logprobs_K)
                finished = bool(chunk.stopped_R[place])
        finally:
            session.close()
        return Answer(tokens, logprobs, finished, base_tokens, kl=kl)
