from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from iro_server.decoding import selection
from iro_server.decoding.base import Round, SearchParams, SearchUsage, Stage
from iro_server.decoding.beam import Beam
from iro_server.decoding.search import common_prefix, guided_search
from iro_server.decoding.selection import RULES
from iro_server.engines.base import Sampling
from tests.toy import ToyEngine, ToyScorer

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
    log_weights = [0.0, 1.0, -2.0, 0.5]
    weights = torch.softmax(torch.tensor(log_weights).double(), 0)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(4, dtype=torch.float64)
    for _ in range(2000):
        copies = torch.bincount(torch.tensor(selection.resample(log_weights, 8, generator)), minlength=4)
        assert ((copies - 8 * weights).abs() < 1).all()
        counts += copies
    torch.testing.assert_close(counts / 2000, 8 * weights, atol=0.05, rtol=0)


def weighted(log_weights: list[float]) -> list[Beam]:
    return [Beam(Beam(), [token], [0.0], log_weight=weight) for token, weight in enumerate(log_weights)]


def test_smc_resamples_where_the_effective_size_falls_below_half() -> None:
    smc, generator = RULES["smc"], torch.Generator().manual_seed(0)
    assert selection.effective_size([0.0] * 4) == pytest.approx(4)
    assert selection.effective_size([0.0, -1000.0, -1000.0, -1000.0]) == pytest.approx(1)
    even = weighted([0.0, -0.1, 0.1, 0.0])
    assert smc.select(even, 4, generator) == [0, 1, 2, 3]
    assert [beam.log_weight for beam in even] == [0.0, -0.1, 0.1, 0.0]
    uneven = weighted([0.0, -9.0, -9.0, -9.0])
    assert smc.select(uneven, 4, generator) == [0, 0, 0, 0] and uneven[0].log_weight == 0
    assert smc.finish(weighted([9.0, 0.0, 0.0, 0.0]), 4, generator) == [0, 0, 0, 0]


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=5))
def test_common_prefix_is_the_longest(rows: list[list[int]]) -> None:
    prefix = common_prefix(rows)
    assert all(row[: len(prefix)] == prefix for row in rows)
    longer = len(prefix) + 1
    assert any(len(row) < longer for row in rows) or len({row[longer - 1] for row in rows}) > 1


@pytest.mark.parametrize("name", RULES)
@given(pool=st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=12), width=st.integers(1, 6))
def test_every_rule_chooses_and_orders_beams_of_the_pool(name: str, pool: list[tuple[int, float]], width: int) -> None:
    rule, prompt, generator = RULES[name], Beam(), torch.Generator().manual_seed(0)
    beams = [Beam(prompt, [token], value=value, log_weight=value) for token, value in pool]
    survivors = rule.select(beams, width, generator)
    assert 0 < len(survivors) <= width and set(survivors) <= set(range(len(beams)))
    finals = rule.finish(beams, width, generator)
    assert 0 < len(finals) <= rule.max_finals(width, len(beams)) and set(finals) <= set(range(len(beams)))
    ordered = rule.order([beams[place] for place in finals], generator)
    assert sorted(ordered) == list(range(len(finals)))
    if not rule.samples:
        assert [beams[finals[place]].value for place in ordered] == sorted((value for _, value in pool), reverse=True)


def test_a_search_takes_the_rules_in_the_table_and_no_others() -> None:
    schema = SearchParams.model_json_schema()["properties"]["selection"]
    assert schema["enum"] == list(RULES)
    assert [SearchParams(selection=name).rule for name in RULES] == list(RULES.values())
    with pytest.raises(ValidationError, match=f"Input should be '{next(iter(RULES))}'"):
        SearchParams(selection="best")


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"rows": 1}, (1, 1)),
        ({"rows": 3}, (1, 3)),  # the width does not divide it
        ({"rows": 4}, (1, 4)),
        ({"rows": 8}, (4, 2)),
        ({"rows": 8, "beam_width": 2}, (2, 4)),
        ({"rows": 8, "beam_width": 8}, (8, 1)),
        ({"rows": 8, "num_successors": 8}, (1, 8)),
        ({"rows": 8, "beam_width": 2, "num_successors": 4}, (2, 4)),
        ({"beam_width": 2}, (2, 3)),
    ],
)
def test_rows_keep_the_width_or_the_successors_asked_for_beside_them(
    changes: dict[str, int], shape: tuple[int, int]
) -> None:
    params = SearchParams(beam_width=4, num_successors=3).overridden(changes)
    assert (params.beam_width, params.num_successors) == shape


class Recorder:
    """Notes what an observer is called with."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.usage = SearchUsage()
        self.rounds: list[Round] = []

    def prompt(self, tokens: int) -> None:
        self.calls.append(f"prompt {tokens}")

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        self.calls.append(name)
        yield
        self.calls.append(f"/{name}")

    def round(self, usage: SearchUsage, selection: Round) -> None:
        self.calls.append("counted")
        self.rounds.append(selection)
        self.usage.base_tokens += usage.base_tokens
        self.usage.value_tokens += usage.value_tokens
        self.usage.rounds += usage.rounds


@pytest.mark.parametrize("scorer", [None, ToyScorer(lambda tokens: tokens.count(1))])
def test_an_observer_follows_every_stage_and_round(scorer: ToyScorer | None) -> None:
    recorder, params = Recorder(), SearchParams(beam_width=2, num_successors=2, chunk_length=3)
    search = guided_search(ToyEngine(), [0, 1], params, Sampling(seed=0), 6, scorer, observer=recorder)
    usage = asyncio.run(search).usage
    assert recorder.usage == usage
    score = ["score", "/score"] if scorer else []
    of_round = ["round", "extend", "/extend", *score, "/round", "counted"]
    assert recorder.calls == ["prompt 2", "prefill", "/prefill", *of_round, *of_round]


def test_smc_gives_all_that_it_resamples_an_equal_weight() -> None:
    beams = weighted([2.0, 1.0, -9.0, -9.0])
    survivors = RULES["smc"].select(beams, 8, torch.Generator().manual_seed(0))
    assert set(survivors) == {0, 1} and [beams[place].log_weight for place in survivors] == [0.0] * 8


def test_smc_puts_any_final_first_equally_often() -> None:
    """The finals come in the order of the pool, in which rows that stopped early are first."""
    generator, finals = torch.Generator().manual_seed(0), weighted([0.0] * 4)
    firsts = torch.tensor([RULES["smc"].order(finals, generator)[0] for _ in range(2000)])
    torch.testing.assert_close(torch.bincount(firsts, minlength=4) / 2000, torch.full((4,), 0.25), atol=0.05, rtol=0)
