"""The search for a rate ends inside its grid, or says that it did not."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.speech.tuning import GridSearch


def finished(search: GridSearch, rate: Callable[[float], float]) -> GridSearch:
    while pending := search.pending():
        search.add({value: rate(value) for value in pending})
    return search


@given(st.floats(-3, 3))
def test_it_finds_the_value_next_to_the_minimum_and_has_tried_its_neighbours(exponent: float) -> None:
    search = finished(GridSearch((0.5, 1.0, 2.0), extensions=9), lambda value: abs(math.log2(value) - exponent))
    assert abs(math.log2(search.best) - exponent) <= 0.5 + 1e-9
    assert not search.at_edge and search.best / 2 in search.tried and search.best * 2 in search.tried


def test_it_stops_after_its_extensions_and_says_that_the_edge_is_best() -> None:
    search = finished(GridSearch((1.0, 10.0), extensions=2), lambda value: -value)
    assert list(search.tried) == [1.0, 10.0, 100.0, 1000.0] and search.best == 1000.0 and search.at_edge


def test_it_stays_within_its_bounds() -> None:
    search = finished(GridSearch((0.1, 0.3, 0.9), extensions=4, bounds=(0.0, 1.0)), lambda value: -value)
    assert list(search.tried) == [0.1, 0.3, 0.9] and search.at_edge


@pytest.mark.parametrize("rates", [{0.1: 0.5, 0.3: 0.5, 0.9: 0.5}, {0.3: 0.5, 0.9: 0.5, 0.1: 0.5}])
def test_the_least_of_equals_is_chosen(rates: dict[float, float]) -> None:
    search = GridSearch((0.1, 0.3, 0.9))
    search.add(rates)
    assert search.best == 0.1


def test_a_single_value_is_kept() -> None:
    search = finished(GridSearch((0.3,), extensions=4), lambda value: value)
    assert list(search.tried) == [0.3] and not search.at_edge
