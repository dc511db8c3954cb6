"""Decoding methods by the name that results give them.

A method is built for a piece, a task at a seed, whose rollouts and value functions it may use. To add one, write a
class with ``answers`` and enter it in ``METHODS`` with the numbers of rows that it can use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from benchmarks.bench_tasks.answers import Answer, DecodingMethod, answer_of, best_of, picked_by_reward
from benchmarks.bench_tasks.args import Args
from benchmarks.bench_tasks.dpo import train_dpo
from benchmarks.bench_tasks.dvts import SUBTREE_ROWS, Dvts
from benchmarks.bench_tasks.grpo import train_grpo
from benchmarks.bench_tasks.piece import Piece
from benchmarks.bench_tasks.refitted_bias import NAME as REFITTED_BIAS
from benchmarks.bench_tasks.refitted_bias import refitted_bias
from benchmarks.bench_tasks.smc import Smc
from benchmarks.bench_tasks.strengths import at_best_strength
from benchmarks.bench_tasks.temperatures import Tempered, TiltedSamples, tempered
from benchmarks.bench_tasks.vas import Vas
from benchmarks.bench_tasks.yardsticks import tuned_adapter

if TYPE_CHECKING:
    from iro_server.decoding.base import SearchParams
    from training.iro.data import Prompt
    from training.iro.values import Stack


class Entry(NamedTuple):
    """``min_rows``: with fewer the method is another one. ``max_rows`` None: any number, that ``of`` divides."""

    build: Callable[[Piece], DecodingMethod]
    min_rows: int = 2
    max_rows: int | None = None
    of: int = 1

    def takes(self, rows: int) -> bool:
        return rows >= self.min_rows and (self.max_rows is None or rows <= self.max_rows) and rows % self.of == 0


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

    ``way``: by chunks of L tokens, among whole ``samples``, or the way of the highest reward on the job's validation
    prompts (``validated``). ``by_reward``: the grader picks among its finals, else the values do. ``strength``: of the
    tilt; 0 leaves the search alone.
    """

    piece: Piece
    stack: Stack | None
    way: Literal["chunks", "samples", "validated"] = "chunks"
    by_reward: bool = False
    strength: float = 1.0

    def answers(self, prompts: Sequence[Prompt], rows: int, seed: int) -> list[Answer]:
        tilt = getattr(self.stack, "tilt", None)
        params = best_of(rows)
        if rows > 1 and self.way == "chunks":
            params = iro_search(rows, self.piece.config.chunk_length)
        elif rows > 1 and self.way == "validated":
            params = validated_search(self.piece, rows)
        params = params.model_copy(update={"strength": self.strength if tilt is not None else 0.0})
        results = self.piece.search(prompts, params, self.stack, seed, tilt)
        if self.by_reward:
            return picked_by_reward(self.piece, prompts, results)
        return [
            answer_of(result.finals[0], result, kl=result.finals[0].kl if rows == 1 else None) for result in results
        ]


def validated_search(piece: Piece, rows: int) -> SearchParams:
    """Of the ways to serve the job's model, that of the highest reward on validation prompts with as many rows, among
    those that write like the frozen model if there are any; where the job tried none with as many, the best one's
    chunks."""
    from iro_server.decoding.base import SearchParams
    from training.iro.over_optimization import writes_alike

    searches = [price for price in piece.trained.prices if price["rows"] > 1]
    tried = [price for price in searches if price["rows"] == rows] or searches
    if not tried:
        return iro_search(rows, piece.config.chunk_length)
    usual = [price for price in tried if writes_alike(price["over_optimization"])] or tried
    search = SearchParams.model_validate(max(usual, key=lambda price: price["reward"])["search"])
    return search.overridden({"rows": rows}) if search.rows != rows else search


def iro_search(rows: int, chunk_length: int) -> SearchParams:
    """W beams x K successors = ``rows``: 1 x 2 to 1 x 4, the job's default 2 x 8 at 16 rows, 4 x 16 at 64.

    ValueError where ``rows`` is no multiple of the beams.
    """
    from iro_server.decoding.base import SearchParams

    beams = 4 if rows >= 64 else 2 if rows >= 8 else 1
    if rows % beams:
        raise ValueError(f"{rows} rows are no multiple of {beams} beams; take a multiple of {beams}")
    return SearchParams(beam_width=beams, num_successors=rows // beams, chunk_length=chunk_length)


def at_strength(piece: Piece, method: str, strength: float) -> DecodingMethod:
    """The method, one of ``SCALED``, at a multiple of its tilt at one row: with its temperature and its penalty."""
    decoder = METHODS[method].build(piece)
    if isinstance(decoder, Tempered):
        return TiltedSamples(piece, decoder.tuned(rows=1), strength)
    return Iro(piece, piece.trained.stack, strength=strength)


SCALED = ("iro", "static_bias", REFITTED_BIAS)
METHODS: dict[str, Entry] = {
    "base": Entry(Base, min_rows=1, max_rows=1),
    "best_of_n": Entry(BestOfN),
    "tempered": Entry(lambda piece: tempered(piece, "tempered", [piece.no_tilt]), min_rows=1),
    "blockwise": Entry(lambda piece: Blockwise(piece, piece.trained.stack)),
    "static_bias": Entry(lambda piece: tempered(piece, "static_bias", piece.trained.static_biases), min_rows=1),
    REFITTED_BIAS: Entry(lambda piece: tempered(piece, REFITTED_BIAS, refitted_bias(piece)), min_rows=1),
    "iro": Entry(lambda piece: Iro(piece, piece.trained.stack, "validated"), min_rows=1),
    "iro_by_chunk": Entry(lambda piece: Iro(piece, piece.trained.stack)),
    "iro_samples": Entry(lambda piece: Iro(piece, piece.trained.stack, "samples")),
    "iro_search": Entry(lambda piece: Iro(piece, piece.trained.stack, strength=0.0)),
    "iro_by_reward": Entry(lambda piece: Iro(piece, piece.trained.stack, by_reward=True)),
    "iro_best_of_n": Entry(lambda piece: TiltedSamples(piece, getattr(piece.trained.stack, "tilt", None))),
    "args": Entry(lambda piece: at_best_strength(piece, "args", Args), min_rows=1, max_rows=1),
    "vas": Entry(lambda piece: at_best_strength(piece, "vas", Vas), min_rows=1, max_rows=1),
    "smc": Entry(lambda piece: at_best_strength(piece, "smc", Smc, rows=4)),
    "dvts": Entry(lambda piece: Dvts(piece, piece.trained.stack), min_rows=2 * SUBTREE_ROWS, of=SUBTREE_ROWS),
    "dpo": Entry(lambda piece: tuned_adapter(piece, "dpo", train_dpo), min_rows=1, max_rows=1),
    "grpo": Entry(lambda piece: tuned_adapter(piece, "grpo", train_grpo), min_rows=1, max_rows=1),
}
