"""Diverse verifier tree search (Beeching, Tunstall and Rush, "Scaling test-time compute", 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from benchmarks.bench_tasks.answers import Answer, answer_of, best_of
from benchmarks.bench_tasks.piece import DECODING, Piece
from training.run import derive_seed

if TYPE_CHECKING:
    from iro_server.decoding.base import Scorer, SearchResult
    from training.iro.data import Prompt

SUBTREE_ROWS = 4


@dataclass(frozen=True)
class Dvts:
    """N / M independent subtrees. Each keeps, of M continuations of its beam by a chunk, that of the highest value:
    s' = argmax over M draws of V. The answer is the final of the highest value among all subtrees'."""

    piece: Piece
    values: Scorer | None

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        from iro_server.decoding.search import guided_search
        from training.iro.rollouts import rollout_sampling

        piece, subtrees = self.piece, rows // SUBTREE_ROWS
        params = best_of(SUBTREE_ROWS).model_copy(update={"chunk_length": piece.config.chunk_length})
        sampling = rollout_sampling(1.0, piece.engine.info)

        async def search_subtree(subtree: tuple[Prompt, int]) -> SearchResult:
            prompt, number = subtree
            seeded = replace(sampling, seed=derive_seed(seed, DECODING, prompt.index, number))
            return await guided_search(piece.engine, prompt.token_ids, params, seeded, piece.max_tokens, self.values)

        every_subtree = [(prompt, number) for prompt in prompts for number in range(subtrees)]
        results = piece.in_lockstep(every_subtree, piece.prompts_at_once(rows) * subtrees, search_subtree)
        return [best_answer(results[start : start + subtrees]) for start in range(0, len(results), subtrees)]


def best_answer(results: Sequence[SearchResult]) -> Answer:
    """The final of the highest value, with the base tokens of all subtrees."""
    best = max(results, key=lambda result: result.finals[0].value)
    base_tokens = sum(result.usage.base_tokens for result in results)
    return replace(answer_of(best.finals[0], best), base_tokens=base_tokens)
