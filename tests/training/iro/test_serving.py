"""The rows that an aligned model is served with."""

from __future__ import annotations

import math
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from iro_server import JsonObject
from iro_server.alignment.definition import AlignmentOptions
from iro_server.decoding.base import SearchParams
from iro_server.jobs.estimates.cost import served_rows
from tests.training.iro.test_tilting import config_in
from training.iro.over_optimization import departures, measures
from training.iro.serving import STRENGTHS, best_way, cheapest, searches, serve, step_name, within_max_rows
from training.iro.validation import Validated
from training.run import Run

OPTIONS = {"beam_width", "num_successors", "max_rows"}


def test_one_row_is_served_where_more_are_not_surely_better() -> None:
    rows = {"tilt": 1, "search": 16}
    assert cheapest({"tilt": [0.9, 0.5, 0.7], "search": [0.8, 0.7, 0.7]}, rows) == "tilt"
    assert cheapest({"tilt": [0.1, 0.2, 0.1], "search": [0.8, 0.9, 0.9]}, rows) == "search"


def test_of_ways_with_equal_rows_that_are_as_good_the_best_is_served() -> None:
    rows = {"samples": 4, "search": 4, "wide search": 16}
    rewards = {"samples": [0.5, 0.9, 0.7], "search": [0.8, 0.7, 0.8], "wide search": [0.9, 0.8, 0.7]}
    assert cheapest(rewards, rows) == "search"


@pytest.mark.parametrize("names", [("tilt", "search"), ("search", "tilt")])
def test_a_way_without_a_reward_is_not_served(names: tuple[str, str]) -> None:
    rewards = {"tilt": [math.nan] * 4, "search": [1.0, 2.0, 1.0, 2.0]}
    assert cheapest({name: rewards[name] for name in names}, {"tilt": 1, "search": 16}) == "search"


class StrengthAsReward:
    """Validation rewards of a policy are the strength of its tilt, in texts that are far likelier than any other."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def validate(self, name: str, prompts: Any, params: SearchParams, *args: object) -> Validated:
        return Validated([row_of(params.strength, measures(list(range(10)), -1.0))] * 2, {}, {}, [name])


def row_of(reward: float, *completions: dict[str, float]) -> JsonObject:
    means = {"mean": reward, "value_pick": reward, "kl": reward, "tokens": 10.0, "logprob": -10.0}
    return means | {"completions": list(completions), "picks": list(completions[:1])}


@pytest.mark.parametrize("sharpness", [0.0, 1.0])
def test_one_row_is_measured_at_rising_strengths_and_may_be_likelier_where_it_is_sharpened(
    tmp_path: Path, sharpness: float
) -> None:
    texts = [measures(list(range(10)), -25.0 - part / 10) for part in range(100)]
    stack: Any = SimpleNamespace(tilt=SimpleNamespace(sharpness=sharpness))
    validation: Any = StrengthAsReward(config_in(tmp_path))
    with closing(Run(tmp_path / "run", seed=0)) as run:
        served = serve(run, validation, 1, [], stack, [row_of(0.0, *texts)] * 2)
    measured = [(each["search"]["strength"], each["reward"]) for each in served.strengths]
    assert measured == [(strength, strength) for strength in (*STRENGTHS, 1.0)]
    assert [part["measure"] for part in served.outside or []] == ([] if sharpness else ["perplexity"])


def test_a_way_that_writes_unlike_the_frozen_model_is_served_only_where_no_other_is_better() -> None:
    usual, repeated = measures(list(range(10)), -30.0), measures([7] * 10, -30.0)
    longer = measures(list(range(20)), -60.0)
    texts = [measures(list(range(10)), -25.0 - i / 10) for i in range(100)]
    frozen = [{"mean": 0.1 * i, "value_pick": 0.1 * i, "completions": texts, "picks": texts[:1]} for i in range(4)]

    def way(gain: float, completion: dict[str, float]) -> list[JsonObject]:
        parts = {"completions": [completion], "picks": [completion]}
        return [row | {"value_pick": row["mean"] + gain + 0.01 * i} | parts for i, row in enumerate(frozen)]

    def best(ways: dict[str, list[JsonObject]]) -> str:
        outside = {name: departures(frozen, valid) for name, valid in ways.items()}
        return best_way(frozen, ways, outside, {"tilt": 1, "search": 16})

    assert best({"tilt": way(1.0, usual), "search": way(2.0, usual)}) == "search"
    assert best({"tilt": way(1.0, usual), "search": way(2.0, repeated)}) == "tilt"
    assert best({"tilt": way(-1.0, usual), "search": way(2.0, repeated)}) == "search"
    assert [part["measure"] for part in departures(frozen, way(2.0, longer)) or []] == ["length"]
    assert best({"tilt": way(1.0, usual), "search": way(2.0, longer)}) == "search"


def test_without_a_tilt_values_steer_a_search_or_pick_among_samples(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    untilted = searches(config, tilted=False)
    assert untilted["search"] == config.search and untilted["samples"].rows == config.search.rows
    assert untilted["samples"].beam_width == 1 and untilted["samples"].chunk_length is None


@pytest.mark.parametrize(
    ("search", "max_rows", "limited"),
    [
        ((2, 8), 16, (2, 8)),
        ((2, 8), 15, (2, 7)),
        ((2, 8), 3, (1, 3)),
        ((2, 8), 1, (1, 1)),
        ((32, 64), 8, (4, 2)),
        ((8, 1), 4, (4, 1)),
    ],
)
def test_no_way_to_serve_takes_more_rows_than_the_maximum(
    tmp_path: Path, search: tuple[int, int], max_rows: int, limited: tuple[int, int]
) -> None:
    config = config_in(tmp_path, beam_width=search[0], num_successors=search[1], max_rows=max_rows)
    params = within_max_rows(config)
    assert (params.beam_width, params.num_successors) == limited
    assert served_rows(AlignmentOptions.model_validate(config.model_dump(include=OPTIONS))) == params.rows
    for tilted in (False, True):
        assert all(way.rows <= max_rows for way in searches(config, tilted).values())
    assert searches(config, tilted=False)["search"] == params


def test_a_search_is_tried_by_longer_chunks_too_where_a_completion_has_several(tmp_path: Path) -> None:
    ways = searches(config_in(tmp_path), tilted=True)  # 20 tokens at most
    assert [(params.rows, params.chunk_length) for params in ways.values() if params.strength] == [
        (1, None),
        *[(2, length) for length in (None, 16, 4)],
        *[(4, length) for length in (None, 16, 4)],
    ]
    assert not any("longer" in name for name in searches(config_in(tmp_path, max_tokens=16), tilted=True))


def test_the_price_of_two_rows_is_told_where_a_quarter_of_the_search_takes_more(tmp_path: Path) -> None:
    def rows(successors: int) -> list[int]:
        ways = searches(config_in(tmp_path, beam_width=2, num_successors=successors), tilted=True)
        return sorted({params.rows for params in ways.values() if params.strength})

    assert rows(8) == [1, 2, 4, 16]
    assert rows(4) == [1, 2, 8]
    assert rows(2) == [1, 2, 4]


def test_ways_of_different_searches_are_validated_apart_and_can_be_served(tmp_path: Path) -> None:
    for width, successors in ((1, 1), (2, 1), (1, 2), (4, 4), (32, 64)):
        config = config_in(tmp_path, beam_width=width, num_successors=successors, max_rows=4096)
        ways = searches(config, tilted=True)
        params_of_steps = {step_name(config, params): params for params in ways.values()}
        assert all(params_of_steps[step_name(config, params)] == params for params in ways.values())
        assert all(SearchParams.model_validate(params.model_dump()) == params for params in ways.values())
