"""Nats a token of a tilt's answers, and the warning of a job whose answers are far from the frozen model's."""

from __future__ import annotations

import math
from typing import Any

import pytest
from scipy.stats import ttest_1samp

from iro_server.decoding.base import SearchParams
from training.iro.distance import FAR, far, kl_per_token, warning
from training.iro.serving import price as measured_price
from training.iro.serving import price_report, strength_report
from training.iro.validation import Validated


def test_nats_a_token_are_of_all_tokens_together() -> None:
    assert kl_per_token([{"kl": 30.0, "tokens": 10}, {"kl": 6.0, "tokens": 2}]) == 3.0
    assert kl_per_token([{"kl": 0.0, "tokens": 0}]) == 0.0
    assert math.isnan(kl_per_token([{"kl": math.nan, "tokens": 10}]))


def price(kl_per_token: float, **more: Any) -> dict[str, Any]:
    of_text = {"reward": 0.5, "half_width": 0.02, "over_optimization": [], "kl": 12 * kl_per_token}
    return {"name": "tilt", "rows": 1, "kl_per_token": kl_per_token} | of_text | more


def at_strength(strength: float, reward: float, kl_per_token: float) -> dict[str, Any]:
    return price(kl_per_token, reward=reward, search={"strength": strength})


STRENGTHS = [at_strength(0.25, 0.4, 0.7), at_strength(0.5, 0.45, 1.5), at_strength(1.0, 0.5, 2.75)]


def test_only_answers_beyond_the_limit_are_far() -> None:
    searched = price(math.nan, name="tilt and search", rows=16)
    assert far([price(FAR), searched]) is None
    assert far([price(2.75), searched]) == price(2.75)
    assert "33 nats from the frozen model, 2.8 a token" in warning(price(2.75), [])


def test_the_warning_names_the_highest_strength_within_the_limit_where_one_is() -> None:
    assert "search.strength 0.5 of a request gives 0.45 at 1.5 nats a token; max_kl" in warning(price(2.75), STRENGTHS)
    assert "search.strength" not in warning(price(2.75), STRENGTHS[-1:])


def test_the_reports_of_prices_have_nats_where_they_are_known() -> None:
    report = price_report([price(1.0), price(math.nan, name="tilt and search", rows=16)], "tilt")
    assert "tilt (1 rows) 0.500 ± 0.020, 12 nats from the frozen model;" in report
    assert "tilt and search (16 rows) 0.500 ± 0.020." in report
    assert strength_report(STRENGTHS[:2]).endswith(
        "0.25: 0.400 ± 0.020, 8.4 nats from the frozen model; 0.5: 0.450 ± 0.020, 18 nats from the frozen model"
    )


def test_the_interval_of_a_price_is_students_and_one_prompt_has_none() -> None:
    rewards = [0.2, 0.4, 0.9]
    rows = [{"value_pick": reward, "logprob": -1.0, "tokens": 1, "kl": 0.5} for reward in rewards]
    of_three, of_one = (
        measured_price("tilt", SearchParams(), Validated(some, {}, {}, []), None) for some in (rows, rows[:1])
    )
    high = ttest_1samp(rewards, 0).confidence_interval(0.95).high
    assert of_three["reward"] + of_three["half_width"] == pytest.approx(high)
    assert f"tilt (1 rows) 0.500 ± {high - 0.5:.3f}, " in price_report([of_three], "tilt")
    assert "tilt (1 rows) 0.200, " in price_report([of_one], "tilt")
