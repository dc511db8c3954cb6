"""Decoding methods by the name that results give them.

A method is built for a piece, a task at a seed, whose rollouts and value functions it may use. To add one, write a
class with ``answers`` and enter it in ``METHODS`` with the numbers of rows that it can use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from benchmarks.bench_tasks.piece import Piece

if TYPE_CHECKING:
    from iro_server.decoding.base import Final, SearchParams, SearchResult
    from training.iro.data import Prompt
    from training.iro.values import Stack


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


class Entry(NamedTuple):
    """``min_rows``: with fewer the method is plain sampling. ``max_rows`` None: any number."""

    build: Callable[[Piece], DecodingMethod]
    min_rows: int = 2
    max_rows: int | None = None

    def takes(self, rows: int) -> bool:
        return rows >= self.min_rows and (self.max_rows is None or rows <= self.max_rows)


@dataclass(frozen=True)
class Base:
    """Plain samples of the frozen model."""

    piece: Piece

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        results = self.piece.search(prompts, best_of(1), None, seed)
        return [answer_of(result.finals[0], result, kl=0.0) for result in results]


@dataclass(frozen=True)
class BestOfN:
    """The plain sample of the highest reward."""

    piece: Piece

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        return picked_by_reward(self.piece, prompts, self.piece.search(prompts, best_of(rows), None, seed))


@dataclass(frozen=True)
class Blockwise:
    """Controlled decoding (arXiv:2310.17022): of ``rows`` continuations by a chunk the one of the highest value stays.

    One beam, so that its base tokens are those of best-of-N.
    """

    piece: Piece
    stack: Stack | None

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        params = best_of(rows).model_copy(update={"chunk_length": self.piece.config.chunk_length})
        results = self.piece.search(prompts, params, self.stack, seed)
        return [answer_of(result.finals[0], result) for result in results]


@dataclass(frozen=True)
class Iro:
    """The aligned model at so many rows: steered by its tilt, if its job kept one, and searched by its values.

    ``by_reward``: the grader picks among its finals, else the values do. ``tilted``: False leaves the search alone.
    """

    piece: Piece
    stack: Stack | None
    by_reward: bool = False
    tilted: bool = True

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        tilt = getattr(self.stack, "tilt", None) if self.tilted else None
        params = iro_search(rows, self.piece.config.chunk_length) if rows > 1 else best_of(1)
        params = params.model_copy(update={"strength": 1.0 if tilt is not None else 0.0})
        results = self.piece.search(prompts, params, self.stack, seed, tilt)
        if self.by_reward:
            return picked_by_reward(self.piece, prompts, results)
        return [
            answer_of(result.finals[0], result, kl=result.finals[0].kl if rows == 1 else None) for result in results
        ]


@dataclass(frozen=True)
class StaticBias:
    """A number for each token added to its logit, and the sample of the highest reward where there are several."""

    piece: Piece

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        params = best_of(rows).model_copy(update={"strength": 1.0})
        results = self.piece.search(prompts, params, None, seed, self.piece.trained.static_bias)
        if rows > 1:
            return picked_by_reward(self.piece, prompts, results)
        return [answer_of(result.finals[0], result, kl=result.finals[0].kl) for result in results]


def best_of(rows: int) -> SearchParams:
    from iro_server.decoding.base import SearchParams

    return SearchParams(num_successors=rows)


def iro_search(rows: int, chunk_length: int) -> SearchParams:
    """W beams x K successors = ``rows``: 1 x 2 to 1 x 4, the job's default 2 x 8 at 16 rows, 4 x 16 at 64.

    ValueError where ``rows`` is no multiple of the beams.
    """
    from iro_server.decoding.base import SearchParams

    beams = 4 if rows >= 64 else 2 if rows >= 8 else 1
    if rows % beams:
        raise ValueError(f"{rows} rows are no multiple of {beams} beams")
    return SearchParams(beam_width=beams, num_successors=rows // beams, chunk_length=chunk_length)


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


METHODS: dict[str, Entry] = {
    "base": Entry(Base, min_rows=1, max_rows=1),
    "best_of_n": Entry(BestOfN),
    "blockwise": Entry(lambda piece: Blockwise(piece, piece.trained.stack)),
    "static_bias": Entry(StaticBias, min_rows=1),
    "iro": Entry(lambda piece: Iro(piece, piece.trained.stack), min_rows=1),
    "iro_search": Entry(lambda piece: Iro(piece, piece.trained.stack, tilted=False)),
    "iro_by_reward": Entry(lambda piece: Iro(piece, piece.trained.stack, by_reward=True)),
}
