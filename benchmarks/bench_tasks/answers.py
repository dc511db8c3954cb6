"""Answers of decoding methods, and what methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from benchmarks.bench_tasks.piece import Piece

if TYPE_CHECKING:
    from iro_server.decoding.base import Final, SearchParams, SearchResult
    from training.iro.data import Prompt


@dataclass(frozen=True)
class Answer:
    """A completion and what it took. ``logprobs``: of its tokens under the frozen model at temperature 1. ``kl``: from
    the frozen model, in nats, where the proposal of each token is known."""

    tokens: list[int]
    logprobs: list[float]
    finished: bool
    base_tokens: int
    reward_calls: int = 0
    kl: float | None = None


class DecodingMethod(Protocol):
    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        """An answer to each prompt by ``rows`` sampled rows."""
        ...


def best_of(rows: int) -> SearchParams:
    from iro_server.decoding.base import SearchParams

    return SearchParams(num_successors=rows)


def answer_of(final: Final, result: SearchResult, reward_calls: int = 0, kl: float | None = None) -> Answer:
    return Answer(
        final.tokens, final.logprobs, final.finish_reason == "stop", result.usage.base_tokens, reward_calls, kl
    )


def picked_by_reward(piece: Piece, prompts: Sequence[Prompt], results: Sequence[SearchResult]) -> list[Answer]:
    """The final of the highest reward of each search. A text is graded once."""
    pairs = [
        (prompt, text)
        for prompt, result in zip(prompts, results, strict=True)
        for text in dict.fromkeys(piece.text(final.tokens) for final in result.finals)
    ]
    rewards = piece.rewards([prompt for prompt, _ in pairs], [text for _, text in pairs])
    reward_of = {(prompt.index, text): reward for (prompt, text), reward in zip(pairs, rewards, strict=True)}
    answers = []
    for prompt, result in zip(prompts, results, strict=True):
        texts = [piece.text(final.tokens) for final in result.finals]
        place = max(range(len(texts)), key=lambda i: reward_of[prompt.index, texts[i]])
        answers.append(answer_of(result.finals[place], result, reward_calls=len(set(texts))))
    return answers
