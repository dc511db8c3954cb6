"""The estimate's statistics against closed forms, and its verdicts on rewards whose trouble is known."""

from __future__ import annotations

import math
from itertools import chain, combinations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.alignment.definition import AlignmentOptions
from iro_server.graders.base import Grade
from iro_server.jobs.estimates import cost
from iro_server.jobs.estimates.cost import Rates, Rows, job_cost, job_work, num_completions
from iro_server.jobs.estimates.rollouts import Completion, Rollouts
from iro_server.jobs.estimates.running import affordable_prompts, drawn_rows, report
from iro_server.jobs.estimates.statistics import (
    Repeats,
    best_of,
    best_of_curve,
    equal_share,
    gain,
    ungradable_share,
    within_prompt_variance,
)
from iro_server.jobs.estimates.verdict import judge
from training.iro import lengths
from training.iro.data import HELDOUT_SHARE
from training.iro.serving import STRENGTHS, searches
from training.iro.tilt_trials import MOST_STRONGER
from training.iro.tilting import FURTHER_TRIALS, TRIAL_SAMPLES, num_trials
from training.iro.trials import PENALTIES, SHARPNESS
from training.iro.validation import BETA_GRID
from value_heads.tilt import TILT_PARTS

NAN = math.nan
NEVER = Repeats.of([(0.5, 0.5)] * 8)


def verdict(rewards, repeats=NEVER, rows=40):
    values = [value for group in rewards for value in group if math.isfinite(value)]
    return judge(rewards, repeats, gain(rewards, 16) if values else None, "the grader raised KeyError", rows)


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=7), st.data())
def test_the_best_of_n_is_the_mean_maximum_of_all_subsets(values, data):
    n = data.draw(st.integers(1, len(values)))
    assert best_of(values, n) == pytest.approx(np.mean([max(part) for part in combinations(values, n)]), abs=1e-9)


def test_the_curve_estimates_the_expected_maximum_without_bias():
    """Of n uniform rewards the expected maximum is n / (n + 1); of n successes with p it is 1 - (1 - p)^n."""
    rng = np.random.default_rng(1)
    curve = best_of_curve(rng.uniform(size=(20_000, 8)))
    assert curve == pytest.approx({n: n / (n + 1) for n in (1, 2, 4, 8)}, abs=0.01)
    successes = best_of_curve((rng.uniform(size=(20_000, 8)) < 0.1).astype(float))
    assert successes == pytest.approx({n: 1 - 0.9**n for n in (1, 2, 4, 8)}, abs=0.01)


def test_the_variance_within_prompts_leaves_out_that_between_them():
    rng = np.random.default_rng(2)
    rewards = rng.normal(scale=0.3, size=(4000, 6)) + rng.normal(scale=5, size=(4000, 1))
    assert within_prompt_variance(rewards) == pytest.approx(0.09, rel=0.05)
    assert within_prompt_variance([[1.0], [2.0, NAN]]) == 0


def test_the_interval_of_the_gain_covers_it_about_as_often_as_it_says():
    rng = np.random.default_rng(3)
    truth = 4 / 5 - 1 / 2  # of uniform rewards, best of 4
    covered = 0
    for _ in range(200):
        interval = gain(rng.uniform(size=(24, 4)), 4)
        covered += interval.low <= truth <= interval.high
    assert 0.88 <= covered / 200 <= 0.99
    assert gain([[0.0, 1.0], [NAN, NAN]], 16).mean == 0.5  # as many as there are


def test_shares_of_prompts_and_completions():
    rewards = [[1.0, 1.0, NAN], [0.0, 1.0, NAN], [NAN, NAN, NAN]]
    assert equal_share(rewards) == 0.5 and ungradable_share(rewards) == pytest.approx(5 / 9)


def test_the_noise_of_a_grader_is_half_the_squared_difference_of_two_grades():
    rng = np.random.default_rng(4)
    quality = rng.normal(scale=2, size=20_000)
    first, second = (quality + rng.normal(size=20_000) for _ in range(2))
    repeats = Repeats.of([*zip(first, second, strict=True)])
    assert repeats.noise == pytest.approx(1, rel=0.05) and repeats.disagreement == 1
    assert repeats.reliability(5.0) == pytest.approx(4 / 5, abs=0.02)
    assert repeats.reliability(0.5) == 0 and repeats.reliability(0.0) == 1  # noise above all variance; none to explain
    assert Repeats.of([(1.0, NAN), (0.0, 0.0)]).disagreement == 0.5


def test_each_trouble_has_its_verdict_and_says_what_to_change():
    rng = np.random.default_rng(5)
    useful = rng.uniform(size=(8, 8)).tolist()
    assert verdict(useful).word == "go" and "Expected gain +" in verdict(useful).sentence
    zero = verdict([[0.0] * 8] * 8)
    assert zero.word == "constant_reward" and "always 0, for each of 64 completions" in zero.sentence
    assert verdict([[NAN] * 8] * 8).word == "flaky_grader" and "KeyError" in verdict([[NAN] * 8] * 8).sentence
    assert verdict([[float(i)] * 8 for i in range(8)]).word == "nothing_to_choose_from"
    random = Repeats.of([*zip(rng.uniform(size=16), rng.uniform(size=16), strict=True)])
    assert verdict(useful, random).word == "flaky_grader"
    rare = [[0.0] * 8] * 11 + [[0.0] * 7 + [1.0]]
    assert verdict(rare).word == "more_rollouts" and "Only 1 of 12 prompts" in verdict(rare).sentence
    slow, short = verdict(useful[:2]), verdict(useful[:1], rows=1)
    assert slow.word == short.word == "more_rollouts"
    assert "2 prompts were graded in the time" in slow.sentence and "has 1 row, too few" in short.sentence


@pytest.mark.parametrize(("sampled", "unsampled", "word"), [(2, 6, "more_rollouts"), (3, 5, "go"), (3, 0, "go")])
def test_prompts_that_could_not_be_sampled_are_counted_and_the_first_reason_is_said(sampled, unsampled, word):
    rollouts = Rollouts(tokens=100, sampled=8 * sampled, sampling_seconds=1, graded=8 * sampled, grading_seconds=0.1)
    rewards = [[float(number % 2) for number in range(8)]] * sampled
    rollouts.by_prompt = [
        [Completion(prompt, "text", Grade(reward)) for reward in group] for prompt, group in enumerate(rewards)
    ]
    rollouts.errors = ["answered 400: the prompt has 9000 tokens", "no answer: ConnectError", *["answered 400"] * 4]
    rollouts.errors = rollouts.errors[:unsampled]
    result = report(rollouts, AlignmentOptions(), Rows(8), 64, lambda completions: completions)
    assert result["verdict"] == word and "slow" not in result["message"]
    reason = f"{unsampled} prompts could not be sampled, the first: answered 400: the prompt has 9000 tokens."
    assert result["message"].endswith(reason) == bool(unsampled)
    assert result["unsampled"]["prompts"] == unsampled
    assert result["unsampled"]["error"] == ("answered 400: the prompt has 9000 tokens" if unsampled else None)


def test_prompts_that_took_too_long_are_advised_shorter_answers():
    values = [[0.0, 1.0] * 4] * 2
    message = judge(values, NEVER, gain(values, 16), None, 40, ["no answer: ReadTimeout timed out"]).sentence
    assert "1 prompt could not be sampled, the first: no answer: ReadTimeout" in message
    assert message.endswith("raise the server's IRO_ESTIMATE_SECONDS.")


def test_few_prompts_of_which_enough_differ_are_advised_more_prompts_and_not_more_rollouts():
    few = verdict([[0.0] * 7 + [1.0], [0.0] * 7 + [1.0], [0.0] * 8, [1.0] * 8])
    assert few.word == "more_rollouts" and "4 prompts, 2 of them with different rewards, are too few" in few.sentence
    assert "interval reaches 0" in few.sentence and "rollouts_per_prompt" not in few.sentence


def test_no_advice_is_to_lower_the_rollouts_of_a_job():
    rare = verdict([[0.0] * 4 + [1.0] * 4] * 3 + [[0.0] * 8] * 21)
    assert rare.word == "more_rollouts" and "about 48: raise rollouts_per_prompt if it is lower" in rare.sentence


def test_a_little_noise_does_not_hide_a_useful_reward():
    rng = np.random.default_rng(6)
    useful = rng.uniform(size=(8, 8)).tolist()
    noisy = Repeats.of([(value, value + 0.01) for value in np.ravel(useful)[:16]])
    assert verdict(useful, noisy).word == "go" and "100%" in verdict(useful, noisy).sentence


def test_the_cost_counts_rollouts_and_validations():
    options = AlignmentOptions(
        iterations=2, rollouts_per_prompt=4, beam_width=1, num_successors=2, validation_prompts=4
    )
    rollouts, validations = job_work(options, Rows(48))  # 8 of them reserved, 20 an iteration, 4 of these held out
    assert num_completions(rollouts) == 2 * 20 * (4 + 2 + 2 + 2)  # half as many again of each round's tilt
    choosing, baseline, check = 2 * 4 * (14 + 14 + 29) * 8, 4 * 4, 4 * (4 + 2)
    assert num_completions(validations) == choosing + baseline + check + 2 * 4 * (1 + 3 * 2 + 3 * 2 + 3)
    with_validation = Rows(48, validation=6)  # 3 and 3
    assert num_completions(job_work(options, with_validation)[0]) == 2 * 24 * (4 + 2 + 2 + 2)
    one_round = job_work(options.model_copy(update={"tilt_rounds": 1}), Rows(48))
    assert [num_completions(each) for each in one_round] == [
        num_completions(rollouts) - 2 * 20 * (2 + 2),
        num_completions(validations) - 2 * 4 * (14 + 14) * 8,
    ]
    untilted = options.model_copy(update={"tilt": "off"})
    rollouts, validations = job_work(untilted, Rows(48))
    assert num_completions(rollouts) == 20 * 4 + 20 * 2
    assert num_completions(validations) == 4 * 3 * 2 + baseline + check + 2 * 4 * 2
    rates = Rates(tokens=10, tokens_per_second=100, grader_seconds=0.5)
    scored = job_cost(untilted, Rows(48), rates, 64, num_calls=lambda completions: completions)
    assert scored["grader_calls"] == 200 and scored["completions"] == 200 + 32
    length_tokens = 8 * 4 * 512  # that measure max_tokens
    assert scored["base_tokens"] == 2000 + length_tokens
    assert scored["seconds"] == 20 + 100 + round(length_tokens / 100) and scored["disk_bytes"] == 120 * 10 * 2 * 64 * 2
    fixed = untilted.model_copy(update={"max_tokens": 16})
    assert job_cost(fixed, Rows(48), rates, 64, num_calls=lambda completions: 1)["base_tokens"] == 2000
    ranked = job_cost(untilted, Rows(48), rates, 64, num_calls=lambda completions: 1)  # one call a prompt's batch
    assert ranked["grader_calls"] == 20 + 20 + 4 + 4 + 2 * 4 + 4 + 4 and ranked["base_tokens"] == 2000 + length_tokens


def test_the_cost_counts_no_more_rows_than_a_model_is_served_with():
    options = AlignmentOptions(rollouts_per_prompt=4, validation_prompts=4, max_rows=3)  # of W·K = 16; a quarter: 4
    untilted = options.model_copy(update={"tilt": "off"})
    baseline, check = 4 * 4, 4 * (4 + 3)
    assert num_completions(job_work(untilted, Rows(48))[1]) == baseline + check + 4 * 3
    _trials, *validations = job_work(options, Rows(48))[1]
    assert num_completions(validations) == baseline + check + 4 * 3 * 3  # as if no tilt were kept: three ways


def test_the_cost_counts_what_the_trainer_tries():
    """The server does not import the trainer."""
    assert cost.HELDOUT_SHARE == HELDOUT_SHARE
    least = num_trials(TILT_PARTS) + FURTHER_TRIALS + MOST_STRONGER
    assert least + len(PENALTIES) == cost.EARLY_TRIALS
    settings = len(SHARPNESS) + len(PENALTIES)  # of one that was refused; and of the best and the policy, sharper
    assert least + 3 * settings == cost.LAST_TRIALS
    assert cost.TRIAL_SAMPLES == TRIAL_SAMPLES
    assert len(BETA_GRID) == cost.BETA_TRIALS
    assert len(STRENGTHS) == cost.STRENGTHS
    assert (lengths.PROMPTS, lengths.SAMPLES) == (cost.LENGTH_PROMPTS, cost.LENGTH_SAMPLES)
    assert lengths.MOST_TOKENS == cost.LENGTH_TOKENS
    options = AlignmentOptions(beam_width=2, num_successors=8)
    config: Any = SimpleNamespace(**options.model_dump() | {"search": options.search, "horizon": 48})
    assert [params.rows for params in searches(config, tilted=True).values()] == cost.rows_of_ways(16)


def test_rows_are_drawn_from_the_whole_file_and_again_the_same():
    lines = [b'{"n": %d}\n' % n for n in range(500)]
    rows, total = drawn_rows(lines, 24, seed=1)
    assert total == 500 and len({row["n"] for row in rows}) == 24 and max(row["n"] for row in rows) > 250
    assert drawn_rows(lines, 24, seed=1)[0] == rows != drawn_rows(lines, 24, seed=2)[0]
    few, number = drawn_rows(lines[:3], 24, seed=1)
    assert sorted(row["n"] for row in few) == [0, 1, 2] and number == 3


def test_the_estimate_beside_a_job_takes_a_25th_of_its_completions_or_four_prompts():
    options = AlignmentOptions()
    most = affordable_prompts(options, Rows(4000), rollouts=8)
    completions = num_completions([*chain(*job_work(options, Rows(4000)))])
    assert most > 4 and 8 * most <= completions / 25 < 8 * (most + 1)
    few = AlignmentOptions(iterations=1, prompts_per_iteration=2, validation_prompts=1, tilt="off")
    assert affordable_prompts(few, Rows(10), rollouts=8) == 4
