"""Mixing matrices: known spectra, and errors that say what to change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from training.bilevel import topology

ALL = {
    "ring": topology.ring(8),
    "adjusted ring": topology.ring(8, self_weight=0.6),
    "torus": topology.torus(3, 4),
    "exponential": topology.exponential(8),
    "fully connected": topology.fully_connected(8),
}


@pytest.mark.parametrize("name", ALL)
def test_every_topology_is_symmetric_and_doubly_stochastic(name: str) -> None:
    W = ALL[name]
    torch.testing.assert_close(W, W.T)
    torch.testing.assert_close(W.sum(1), torch.ones(len(W), dtype=torch.float64))
    assert (W >= 0).all() and W.dtype == torch.float64


def test_neighbours_are_those_of_the_topology() -> None:
    heard = {name: set(torch.nonzero(W[0]).flatten().tolist()) for name, W in ALL.items()}
    assert heard["ring"] == heard["adjusted ring"] == {0, 1, 7}
    assert heard["torus"] == {0, 1, 3, 4, 8}  # right, left, down, up in 3 rows of 4
    assert heard["exponential"] == {0, 1, 2, 4, 6, 7}
    assert heard["fully connected"] == set(range(8))


def test_spectral_gaps_are_those_of_circulants() -> None:
    """Eigenvalues of a ring are a + (1 - a) cos(2 pi k/n); a torus adds those of its two rings."""
    cosine = math.cos(2 * math.pi / 8)
    assert topology.spectral_gap(ALL["ring"]) == pytest.approx(2 / 3 * (1 - cosine))
    assert topology.spectral_gap(ALL["adjusted ring"]) == pytest.approx(0.4 * (1 - cosine))
    assert topology.spectral_gap(ALL["torus"]) == pytest.approx(1 - (1 + 2 + 2 * math.cos(2 * math.pi / 4)) / 5)
    assert topology.spectral_gap(ALL["exponential"]) == pytest.approx(2 / 3)
    assert topology.spectral_gap(ALL["fully connected"]) == pytest.approx(1)


@pytest.mark.parametrize("agents", [1, 2, 3, 5])
def test_few_agents_are_no_special_case(agents: int) -> None:
    for W in (topology.ring(agents), topology.exponential(agents), topology.torus(1, agents)):
        torch.testing.assert_close(W.sum(1), torch.ones(agents, dtype=torch.float64))


def test_a_file_gives_its_matrix(tmp_path: Path) -> None:
    path = tmp_path / "W.csv"
    path.write_text("0.5, 0.25, 0.25\n0.25, 0.5, 0.25\n0.25, 0.25, 0.5\n")
    assert topology.from_file(path).tolist() == [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.25, 0.5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.5 0.5\n0.4 0.5\n", "row 1 sums to 0.9; make it 1"),
        ("0.3333333 0.6666666\n0.6666667 0.3333333\n", "row 0 sums to 0.9999999; make it 1 to within 1e-08"),
        ("0.9 0.1\n0.9 0.1\n", "column 0 sums to 1.8; make it 1"),
        ("1.5 -0.5\n-0.5 1.5\n", "not below 0"),
        ("nan 1\n1 0\n", "finite"),
        ("1 0\n0 1\n", "not connected: 2 groups"),
        ("0 1\n1 0\n", "increase the self-weights"),
        ("0.5 0.5\n", "must be square"),
        ("0.5 half\n", "not a matrix of numbers"),
    ],
)
def test_a_bad_file_is_one_line_that_says_what_to_change(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "W.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        topology.from_file(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
