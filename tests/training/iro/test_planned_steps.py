from __future__ import annotations

from training.iro.planned_steps import planned_rounds
from training.iro.tilting import Round


def test_rounds_go_on_until_one_finds_no_tilt() -> None:
    assert planned_rounds([], 3) == [Round()] * 3 and all(each.is_better for each in planned_rounds([], 3))
    better, worse = Round(5, True), Round(5, False)
    assert planned_rounds([better], 3) == [better, Round(), Round()]
    assert planned_rounds([worse], 3) == [worse] and planned_rounds([better, worse], 3) == [better, worse]
    assert planned_rounds([better] * 2, 2) == [better] * 2
