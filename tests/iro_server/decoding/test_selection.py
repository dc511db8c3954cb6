from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from iro_server.decoding import selection
from iro_server.decoding.search import common_prefix

POOLS = st.lists(st.tuples(st.floats(-5, 5), st.sampled_from("abcde")), min_size=1, max_size=30)


@given(POOLS, st.integers(1, 12))
def test_diversity_first_takes_each_groups_best_before_any_duplicate(pool: list[tuple[float, str]], width: int) -> None:
    values, texts = [v for v, _ in pool], [t for _, t in pool]
    kept = selection.diversity_first(values, texts, width)
    assert len(kept) == len(set(kept)) == min(width, len(pool))
    groups = len(set(texts))
    assert len({texts[i] for i in kept}) == min(groups, width)
    for i in kept[:groups]:
        assert values[i] == max(v for v, t in pool if t == texts[i])


@given(POOLS, st.integers(1, 12))
def test_top_keeps_the_highest(pool: list[tuple[float, str]], width: int) -> None:
    values = [v for v, _ in pool]
    assert sorted((values[i] for i in selection.top(values, width)), reverse=True) == sorted(values)[::-1][:width]


def test_resampling_is_unbiased() -> None:
    """The expected number of copies is width * weight (systematic resampling: exact within one copy, each draw)."""
    log_weights = torch.tensor([0.0, 1.0, -2.0, 0.5])
    weights = torch.softmax(log_weights.double(), 0)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4, dtype=torch.float64)
    for _ in range(2000):
        copies = torch.bincount(torch.tensor(selection.resample(log_weights, 8, generator)), minlength=4)
        assert ((copies - 8 * weights).abs() < 1).all()
        counts += copies
    torch.testing.assert_close(counts / 2000, 8 * weights, atol=0.05, rtol=0)


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_common_prefix_is_the_longest(rows: list[list[int]]) -> None:
    prefix = common_prefix(rows)
    assert all(row[: len(prefix)] == prefix for row in rows)
    longer = len(prefix) + 1
    assert any(len(row) < longer for row in rows) or len({row[longer - 1] for row in rows}) > 1
