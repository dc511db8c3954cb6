"""What a tilt reads of a candidate token beside the model's state: whether the prompt or the response holds it.

Tokens that spell the same word, with or without a leading space or a capital, form a group: a prompt's "river" and a
sentence's "River" are one. Axes in tensor names: V vocabulary, M rows, T tokens of a response, K candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol

import torch
from torch import Tensor

from value_heads.length_features import Lengths, Spelling

FEATURES = ("prompt", "prompt_repeated", "repeated", "continues_prompt", "stop")
"""prompt: a word of the prompt that the response lacks; prompt_repeated: one that it has; repeated: a word that the
response alone has; continues_prompt: a word that follows the response's last word somewhere in the prompt; stop: a stop
token. Words that most training prompts share are none of the prompt's."""

WORD_START = "Ġ▁ "  # how tokenizers write a leading space


class Tokenizer(Protocol):
    def __len__(self) -> int: ...
    def convert_ids_to_tokens(self, ids: list[int]) -> Sequence[str]: ...


class TokenGroups:
    """The groups of a vocabulary, from its tokens' spellings in the order of their ids."""

    def __init__(self, pieces: Sequence[str | None]) -> None:
        numbers: dict[str, int] = {}
        words = [_word(piece) if piece else f"\0{token}" for token, piece in enumerate(pieces)]
        self.group_V = torch.tensor([numbers.setdefault(word, len(numbers)) for word in words])
        self._spelling = [Spelling.of(piece or "", WORD_START) for piece in pieces]
        self._order = torch.argsort(self.group_V, stable=True)
        self._start = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(self.group_V).cumsum(0)]).tolist()

    @classmethod
    def of_tokenizer(cls, tokenizer: Tokenizer, vocabulary: int) -> TokenGroups:
        """Of an output head of ``vocabulary`` rows, which may be more than the tokenizer has tokens, or fewer."""
        pieces: list[str | None] = [*tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        return cls([*pieces, *[None] * (vocabulary - len(pieces))][:vocabulary])

    def __len__(self) -> int:
        return len(self._start) - 1

    def of(self, tokens: Iterable[int]) -> list[int]:
        """The group of each token."""
        return list(self.group_V[list(tokens)].tolist())

    def lengthened(self, lengths: Lengths, token: int) -> Lengths:
        """Of a response with one more token."""
        return lengths.followed_by(self._spelling[token])

    def lengths(self, tokens: Iterable[int]) -> list[Lengths]:
        """Of a response before each of its tokens, and after the last."""
        return list(accumulate(tokens, self.lengthened, initial=Lengths()))

    def members(self, groups: Iterable[int]) -> Tensor:
        """The tokens of these groups, [n] int64."""
        parts = [self._order[self._start[group] : self._start[group + 1]] for group in groups]
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)


def _word(piece: str) -> str:
    return piece.strip(WORD_START).lower() or piece


class PromptWords:
    """A prompt's words, and which words follow which.

    ``ignored``: tokens whose words do not count as the prompt's.
    """

    def __init__(self, groups: TokenGroups, prompt_ids: Sequence[int], ignored: Iterable[int]) -> None:
        self.groups = groups
        sequence = groups.of(prompt_ids)
        self.words = sorted(set(sequence) - set(groups.of(ignored)))
        self.last = sequence[-1]
        self.pairs = set(pairwise(sequence))


@dataclass(frozen=True, eq=False)
class Row:
    """A response so far. ``words``: its groups. ``in_prompt``: [W] bool, of each of the prompt's words whether the
    response has it. ``others``: tokens of its words that are not the prompt's."""

    words: frozenset[int]
    in_prompt: Tensor
    others: Tensor
    last: int
    lengths: Lengths


class RunningFeatures:
    """The features of one session's rows, which follow its beams."""

    def __init__(
        self, groups: TokenGroups, prompt_ids: Sequence[int], ignored: Iterable[int], stop_ids: Tensor
    ) -> None:
        self.groups, self.stop_ids = groups, stop_ids
        prompt = PromptWords(groups, prompt_ids, ignored)
        self._place = {word: place for place, word in enumerate(prompt.words)}
        self._prompt_ids = groups.members(prompt.words)
        self._prompt_place = torch.tensor(
            [self._place[group] for group in groups.of(self._prompt_ids.tolist())], dtype=torch.int64
        )
        following: dict[int, list[int]] = {}
        for first, second in sorted(prompt.pairs):
            following.setdefault(first, []).append(second)
        self._following = {first: groups.members(seconds) for first, seconds in following.items()}
        nothing = torch.empty(0, dtype=torch.int64)
        self.rows = [
            Row(frozenset(), torch.zeros(len(prompt.words), dtype=torch.bool), nothing, prompt.last, Lengths())
        ]

    def select(self, parents: Sequence[int]) -> None:
        """Keep these rows, in this order; repeats allowed."""
        self.rows = [self.rows[parent] for parent in parents]

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """Every row goes on as many ways as it has tokens here."""
        self.rows = [self._taken(row, token) for row, drawn in zip(self.rows, tokens, strict=True) for token in drawn]

    def follow(self, parents: Sequence[int], tokens: Sequence[Sequence[int]]) -> None:
        """The rows are now these tokens, of any number, after these rows."""
        rows = []
        for parent, drawn in zip(parents, tokens, strict=True):
            row = self.rows[parent]
            for token in drawn:
                row = self._taken(row, token)
            rows.append(row)
        self.rows = rows

    def along(self, tokens: Sequence[int]) -> None:
        """The rows are now the places of one response after the only row: before each of its tokens."""
        (row,) = self.rows
        self.rows = []
        for token in tokens:
            self.rows.append(row)
            row = self._taken(row, token)

    def part(self, rows: slice) -> RunningFeatures:
        """The features of these rows alone."""
        part = copy.copy(self)
        part.rows = self.rows[rows]
        return part

    def _taken(self, row: Row, token: int) -> Row:
        word = int(self.groups.group_V[token])
        lengths = self.groups.lengthened(row.lengths, token)
        if word in row.words:
            return Row(row.words, row.in_prompt, row.others, word, lengths)
        if word in self._place:
            in_prompt = row.in_prompt.clone()
            in_prompt[self._place[word]] = True
            return Row(row.words | {word}, in_prompt, row.others, word, lengths)
        others = torch.cat([row.others, self.groups.members([word])])
        return Row(row.words | {word}, row.in_prompt, others, word, lengths)

    def add(self, addition_MV: Tensor, gates_MF: Tensor) -> None:
        """Add sum_f gate_f f(a), in place."""
        prompt, prompt_repeated, repeated, continues, stop = gates_MF.unbind(1)
        in_prompt = torch.stack([row.in_prompt for row in self.rows])[:, self._prompt_place].to(gates_MF.device)
        addition_MV[:, self._prompt_ids] += torch.where(in_prompt, prompt_repeated[:, None], prompt[:, None])
        addition_MV[:, self.stop_ids] += stop[:, None]
        nothing = torch.empty(0, dtype=torch.int64)
        _add_to_rows(addition_MV, [row.others for row in self.rows], repeated)
        _add_to_rows(addition_MV, [self._following.get(row.last, nothing) for row in self.rows], continues)


class FeatureSets:
    """Several ways to read the words of one session's rows: gates [M, sets x F], one set after another."""

    def __init__(self, sets: Sequence[RunningFeatures]) -> None:
        self.sets = sets

    @property
    def rows(self) -> list[Row]:
        return self.sets[0].rows

    def select(self, parents: Sequence[int]) -> None:
        for features in self.sets:
            features.select(parents)

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        for features in self.sets:
            features.take(tokens)

    def along(self, tokens: Sequence[int]) -> None:
        for features in self.sets:
            features.along(tokens)

    def part(self, rows: slice) -> FeatureSets:
        """The features of these rows alone."""
        return FeatureSets([features.part(rows) for features in self.sets])

    def add(self, addition_MV: Tensor, gates_MF: Tensor) -> None:
        for features, gates in zip(self.sets, gates_MF.split(len(FEATURES), dim=1), strict=True):
            features.add(addition_MV, gates)


RowFeatures = RunningFeatures | FeatureSets


def _add_to_rows(addition_MV: Tensor, tokens: Sequence[Tensor], number_M: Tensor) -> None:
    """Add each row's number to its tokens, which differ from each other, in place."""
    counts_M = torch.tensor([len(of_row) for of_row in tokens])
    row_N = torch.arange(len(tokens)).repeat_interleave(counts_M).to(addition_MV.device)
    token_N = torch.cat(list(tokens)).to(addition_MV.device)
    addition_MV[row_N, token_N] += number_M[row_N]


def candidate_features(
    groups: TokenGroups,
    prompt_ids: Sequence[int],
    ignored: Iterable[int],
    stop_ids: Tensor,
    tokens: Sequence[int],
    candidates_TK: Tensor,
) -> Tensor:
    """The features of candidates before each token of a response, [T, K, FEATURES] bool: what RunningFeatures adds."""
    prompt = PromptWords(groups, prompt_ids, ignored)
    words = groups.of(tokens)
    count = len(groups)
    first = torch.full((count,), len(words))
    for place in range(len(words) - 1, -1, -1):
        first[words[place]] = place
    of_prompt = torch.zeros(count, dtype=torch.bool)
    of_prompt[prompt.words] = True
    group_TK = groups.group_V[candidates_TK]
    said_TK = first[group_TK] < torch.arange(len(words))[:, None]
    last_T = torch.tensor([prompt.last, *words[:-1]])
    pairs = torch.tensor([a * count + b for a, b in prompt.pairs])
    continues_TK = torch.isin(last_T[:, None] * count + group_TK, pairs)
    in_prompt_TK = of_prompt[group_TK]
    stop_TK = torch.isin(candidates_TK, stop_ids)
    parts = [in_prompt_TK & ~said_TK, in_prompt_TK & said_TK, said_TK & ~in_prompt_TK, continues_TK, stop_TK]
    return torch.stack(parts, dim=-1)


def common_tokens(prompts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Tokens that more than half of the prompts hold, sorted: an instruction's or a template's."""
    counts: dict[int, int] = {}
    for prompt_ids in prompts:
        for token in set(prompt_ids):
            counts[token] = counts.get(token, 0) + 1
    return tuple(sorted(token for token, number in counts.items() if 2 * number > len(prompts)))
