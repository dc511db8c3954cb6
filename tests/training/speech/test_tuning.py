"""The search for a rate ends inside its grid, or says that it did not."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from training.speech.config import BLJustConfig
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


@pytest.mark.parametrize("grid", [(0.0, 0.01, 0.1), (0.0, 0.1)])
def test_a_grid_with_zero_ends_whichever_value_is_best(grid: tuple[float, ...]) -> None:
    """No value is in a ratio to zero: it is neither extended nor counted as the grid's ratio."""
    least = finished(GridSearch(grid, extensions=4), lambda value: value)
    assert list(least.tried) == list(grid) and least.best == 0 and least.at_edge
    greatest = finished(GridSearch(grid, extensions=2), lambda value: -value)
    assert list(greatest.tried) == pytest.approx([0.0, 0.01, 0.1, 1.0, 10.0] if len(grid) == 3 else [0.0, 0.1])


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ({"lr": []}, "lr: one value or more, ascending and distinct, not []"),
        ({"gamma": [0.1, 0.1]}, "gamma: one value or more, ascending and distinct, not [0.1, 0.1]"),
        ({"gamma": [0.3, 0.1]}, "gamma: one value or more, ascending and distinct, not [0.3, 0.1]"),
        ({"lr": [0, 0.1]}, "lr: Input should be greater than 0, not 0"),
        ({"pseudo_share": [0.5, 3]}, "pseudo_share: Input should be less than or equal to 1, not 3"),
    ],
)
def test_a_grid_has_ascending_values_that_its_rate_may_have(grids: dict[str, list[float]], message: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(message)):
        BLJustConfig(grids=grids)
    assert BLJustConfig(grids={"weight_decay": [0, 0.01]}).grids == {"weight_decay": (0.0, 0.01)}


def test_gamma_is_not_tuned_where_it_stays_zero() -> None:
    tuned = {"tune": True, "gamma_step": 0.1, "tuning_epochs": 1}
    with pytest.raises(ValidationError, match="γ of bl_just stays 0 in tuning runs of 1 epochs, whichever"):
        BLJustConfig(**tuned)
    for changes in ({"tune": False}, {"gamma_step": None}, {"tuning_epochs": 2}, {"methods": ["fixed", "supervised"]}):
        assert BLJustConfig(**tuned | changes).tuning_epochs


@pytest.mark.parametrize("rates", [{0.1: 0.5, 0.3: 0.5, 0.9: 0.5}, {0.3: 0.5, 0.9: 0.5, 0.1: 0.5}])
def test_the_least_of_equals_is_chosen(rates: dict[float, float]) -> None:
    search = GridSearch((0.1, 0.3, 0.9))
    search.add(rates)
    assert search.best == 0.1


def test_a_single_value_is_kept() -> None:
    search = finished(GridSearch((0.3,), extensions=4), lambda value: value)
    assert list(search.tried) == [0.3] and not search.at_edge
