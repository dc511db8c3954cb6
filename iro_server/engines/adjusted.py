"""What a request changes in the frozen model's logits, before tilt and temperature: biases, penalties, a schema's mask.

Axes in tensor names: M rows, K successors, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

import torch

from iro_server.engines.base import Sampling
from iro_server.engines.grammars import GrammarRows
from iro_server.engines.sample import Distribution


class AdjustedRows:
    """The rows of one session. Their tokens since the prompt are what penalties count."""

    def __init__(self, sampling: Sampling, grammar: GrammarRows | None) -> None:
        self.sampling, self.grammar = sampling, grammar
        self._counts: list[Counter[int]] = [Counter()]

    @property
    def penalises(self) -> bool:
        return self.sampling.presence_penalty != 0 or self.sampling.frequency_penalty != 0

    def select(self, parents: Sequence[int]) -> None:
        """Keep these rows, in this order; repeats allowed."""
        if self.penalises:
            rows = {parent: iter(forks(self._counts[parent], count)) for parent, count in Counter(parents).items()}
            self._counts = [next(rows[parent]) for parent in parents]
        if self.grammar:
            self.grammar.select(parents)

    def take(self, tokens: Sequence[Sequence[int]]) -> None:
        """Every row goes on as many ways as it has tokens here. SchemaRefused as ``GrammarRows.take``."""
        if self.grammar:
            self.grammar.take(tokens)
        if self.penalises:
            pairs = zip(self._counts, tokens, strict=True)
            self._counts = [counts for counts, successors in pairs for counts in forks(counts, len(successors))]
            for counts, token in zip(self._counts, chain.from_iterable(tokens), strict=True):
                counts[token] += 1

    def logits(self, logits_MV: torch.Tensor) -> torch.Tensor:
        """The adjusted logits, a copy; a token that the schema does not allow is at -inf. SchemaRefused as
        ``GrammarRows.allowed``."""
        logits_MV = logits_MV.clone()
        if self.sampling.logit_bias:
            ids, biases = zip(*self.sampling.logit_bias, strict=True)
            logits_MV[:, list(ids)] += torch.tensor(biases, device=logits_MV.device, dtype=logits_MV.dtype)
        if self.penalises:
            self._penalise(logits_MV)
        if self.grammar:
            allowed_MV = self.grammar.allowed(logits_MV.shape[1]).to(logits_MV.device)
            logits_MV.masked_fill_(~allowed_MV, -torch.inf)
        return logits_MV

    def _penalise(self, logits_MV: torch.Tensor) -> None:
        """OpenAI's: less frequency_penalty for each time that a token was drawn, and presence_penalty once."""
        for logits_V, counts in zip(logits_MV, self._counts, strict=True):
            if counts:
                ids, drawn = list(counts), torch.tensor(list(counts.values()), device=logits_V.device)
                logits_V[ids] -= self.sampling.presence_penalty + self.sampling.frequency_penalty * drawn


def forks(counts: Counter[int], number: int) -> list[Counter[int]]:
    """So many rows' counts, the first of them these themselves: a row that goes on one way is not copied."""
    return [counts.copy() if copied else counts for copied in range(number)]


def top_alternatives(logits_MV: torch.Tensor, count: int) -> list[list[tuple[int, float]]]:
    """Of each row, the likeliest ``count`` tokens with their log-probabilities, the numbers that a draw reports; fewer
    where fewer are possible."""
    ids = logits_MV.topk(min(count, logits_MV.shape[1]), dim=-1).indices
    logprobs = Distribution.of(logits_MV).logprobs(logits_MV, ids)
    rows = zip(ids.tolist(), logprobs.tolist(), strict=True)
    return [[(id, value) for id, value in zip(*row, strict=True) if value > -torch.inf] for row in rows]
