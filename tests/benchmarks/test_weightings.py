"""The control of mixed models: a pick by the weighted sum of two rewards."""

from __future__ import annotations

import pytest

from benchmarks.weightings import NAMES, WEIGHTS, Mixing

FIRST, SECOND = NAMES
REWARDS = [  # of three samples of two prompts
    {FIRST: [0.0, 5.0], SECOND: [9.0, 0.0]},
    {FIRST: [4.0, 5.0], SECOND: [6.0, 1.0]},
    {FIRST: [8.0, 0.0], SECOND: [0.0, 9.0]},
]


@pytest.mark.parametrize(
    ("factors", "prompt", "pick"),
    [
        ((1.0, 0.0), 0, 2),
        ((0.0, 1.0), 0, 0),
        ((0.5, 0.5), 0, 1),
        ((1.0, 0.0), 1, 0),  # of two equal ones the first
        ((1.0, 0.1), 1, 1),
    ],
)
def test_the_pick_has_the_highest_weighted_sum(factors: tuple[float, float], prompt: int, pick: int) -> None:
    assert Mixing.pick(REWARDS, prompt, factors) == pick


def test_eleven_weightings_sum_to_one_and_one_has_both_whole() -> None:
    assert [sum(weights) for weights in WEIGHTS] == pytest.approx([1.0] * 11 + [2.0])
    assert WEIGHTS[0] == (0.0, 1.0) and WEIGHTS[10] == (1.0, 0.0)
