from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scale_model import Costs, Gpu, Model, Workload, carried, reckoned, simulate

COSTS = Costs((1, 4, 16), (0.02, 0.03, 0.06), 0.001)
ALONE = Workload(users=1, think=1.0, beam_width=1, num_successors=4, chunk_length=5, prompt_tokens=40, tokens=20)


def test_a_step_between_two_measured_ones_lies_between_them():
    assert [COSTS.step(rows, 0) for rows in (0, 1, 4, 10, 16, 32)] == pytest.approx([0, 0.02, 0.03, 0.045, 0.06, 0.12])
    assert COSTS.step(4, 100) == pytest.approx(0.13)


def test_one_user_waits_for_the_prompt_and_the_steps():
    told = simulate(COSTS, ALONE, seconds=200)
    assert told.first_chunk == pytest.approx((0.04 + 5 * 0.03,) * 2)
    assert told.whole == pytest.approx((0.04 + 20 * 0.03,) * 2)
    assert told.busy == pytest.approx(0.64 / 1.64, rel=0.1)


@settings(deadline=None, derandomize=True, max_examples=10)
@given(users=st.integers(2, 60), think=st.floats(0.5, 10), rows=st.integers(1, 8))
def test_littles_law(users, think, rows):
    workload = Workload(users, think, 1, rows, 5, 40, 20)
    told = simulate(COSTS, workload, seconds=1000)
    in_the_server = told.requests_per_second * told.whole[0]  # the median is near the mean here
    assert in_the_server + told.requests_per_second * think == pytest.approx(users, rel=0.15)


def test_rows_beyond_the_servers_limit_wait_their_turn():
    many = Workload(
        users=200, think=0.001, beam_width=1, num_successors=256, chunk_length=1, prompt_tokens=0, tokens=10
    )
    told = simulate(Costs((1, 512), (0.01, 0.01), 0.0), many, seconds=100)
    assert told.requests_per_second == pytest.approx(2 / (11 * 0.01), rel=0.05)  # two at once, a step to join


def test_more_rows_carry_fewer_users_and_the_last_one_carried_is_within_the_limits():
    users = [carried(COSTS, ALONE.searching(1, k)) for k in (1, 4, 16)]
    assert users[0] > users[1] > users[2] > 0
    assert simulate(COSTS, ALONE.searching(1, 4).of(users[1]), seconds=120).bearable()
    assert not simulate(COSTS, ALONE.searching(1, 4).of(2 * users[1] + 2), seconds=120).bearable()


def test_a_reckoned_step_reads_the_weights_and_computes_them_for_every_row():
    gpu, model = Gpu("g", memory=1e12, bandwidth=1e12, flops=1e15), Model("m", parameters=1e9, kv_bytes=0)
    costs = reckoned(gpu, model, ALONE)
    assert costs.seconds[0] == pytest.approx(2e9 / 0.6e12)
    assert costs.seconds[-1] == pytest.approx(max(2e9 / 0.6e12, 2e9 * 512 / 0.4e15))
