"""Delay models, trace files and the Dirichlet partition."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.federated.delays import LARGE, MILD, heavy_tailed, official, read_trace
from training.federated.partition import dirichlet


@pytest.mark.parametrize(("ranges", "slowest"), [(MILD, (5, 8)), (LARGE, (50, 80))])
def test_official_delays_lie_in_the_range_of_their_class(ranges: tuple, slowest: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    delays = official(3000, ranges, rng)
    bounds = [(1, 2), (3, 5), slowest]
    for client, speed in enumerate(delays.classes[:300]):
        low, high = bounds[speed]
        assert low <= delays.duration(client, 0, rng) <= high
    counts = np.bincount(delays.classes, minlength=3)
    assert counts[0] > counts[1] > counts[2] > 0  # Dirichlet(3, 2, 1): slow clients are the fewest


def test_the_heavy_tail_is_log_normal_between_and_within_clients() -> None:
    rng = np.random.default_rng(0)
    delays = heavy_tailed(2000, rng)
    logarithms = np.log([[delays.duration(client, turn, rng) for turn in range(20)] for client in range(2000)])
    assert abs(logarithms.mean()) < 0.05
    assert logarithms.var(axis=1, ddof=1).mean() == pytest.approx(1.0, abs=0.05)  # within a client
    assert logarithms.mean(axis=1).var() == pytest.approx(1 + 1 / 20, abs=0.1)  # between clients


def test_a_trace_file_is_followed_turn_by_turn(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("client,duration\n0,1.5\n1,inf\n0,2\n")
    trace, rng = read_trace(path, 2), np.random.default_rng(0)
    assert [trace.duration(0, turn, rng) for turn in range(3)] == [1.5, 2.0, 1.5]
    assert trace.duration(1, 0, rng) == np.inf


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("who,when\n0,1\n", "must name the columns client and duration"),
        ("client,duration\n0,soon\n", "line 2: a whole number and a number are needed"),
        ("client,duration\n0\n", "line 2: a whole number and a number are needed"),
        ("client,duration\n0,0\n", "line 2: durations must be above 0"),
        ("client,duration\n0,nan\n", "line 2: durations must be above 0"),
        ("client,duration\n0,1\n", r"has no duration of client 1 \(1 of 2 are missing\)"),
    ],
)
def test_a_bad_trace_file_says_what_is_wrong(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_trace(tmp_path / "trace.csv", 2)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), clients=st.integers(1, 8), alpha=st.floats(0.1, 10))
def test_every_example_has_one_owner_and_every_client_an_example(seed: int, clients: int, alpha: float) -> None:
    labels = np.random.default_rng(seed).integers(0, 10, 1000)
    parts = dirichlet(labels, clients, alpha, np.random.default_rng(seed))
    assert len(parts) == clients and min(map(len, parts)) >= 1
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    repeated = dirichlet(labels, clients, alpha, np.random.default_rng(seed))
    assert all(np.array_equal(a, b) for a, b in zip(parts, repeated, strict=True))


def test_a_small_alpha_makes_clients_differ() -> None:
    labels = np.repeat(np.arange(10), 1000)

    def unlike(alpha: float) -> float:
        """Mean distance in total variation of a client's labels from everybody's."""
        parts = dirichlet(labels, 20, alpha, np.random.default_rng(0))
        shares = np.array([np.bincount(labels[part], minlength=10) / len(part) for part in parts])
        return float(np.abs(shares - 0.1).sum(1).mean() / 2)

    assert unlike(0.1) > unlike(0.3) > unlike(1) > unlike(100)
    assert unlike(1e4) < 0.02


def test_a_split_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="fewer clients, or a larger alpha"):
        dirichlet(np.zeros(5, dtype=int), 6, 1.0, np.random.default_rng(0))
