"""The counts of penalties, as rows fork and repeat."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given
from hypothesis import strategies as st

from iro_server.engines.adjusted import AdjustedRows
from iro_server.engines.base import Sampling

VOCABULARY = 5
SAMPLING = Sampling(presence_penalty=0.5, frequency_penalty=0.25)


@given(st.data())
def test_each_row_has_the_penalties_of_its_own_tokens(data: st.DataObject) -> None:
    rows, texts = AdjustedRows(SAMPLING, None), [[]]
    for _ in range(data.draw(st.integers(1, 4))):
        parents = data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=4))
        rows.select(parents)
        texts = [texts[parent] for parent in parents]
        for successors in (data.draw(st.integers(1, 3)), 1, 1):
            token_lists = st.lists(st.integers(0, VOCABULARY - 1), min_size=successors, max_size=successors)
            tokens = [data.draw(token_lists) for _ in texts]
            rows.take(tokens)
            texts = [[*text, token] for text, row in zip(texts, tokens, strict=True) for token in row]
        penalties = [
            [-0.25 * text.count(token) - 0.5 * (token in text) for token in range(VOCABULARY)] for text in texts
        ]
        assert torch.equal(rows.logits(torch.zeros(len(texts), VOCABULARY)), torch.tensor(penalties))


def test_a_row_that_goes_on_one_way_is_not_copied() -> None:
    rows = AdjustedRows(SAMPLING, None)
    rows.select([0, 0])
    before = rows._counts
    rows.take([[1], [2]])
    assert all(counts is same for counts, same in zip(rows._counts, before, strict=True))
    assert rows._counts == [Counter([1]), Counter([2])]
