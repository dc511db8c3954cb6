"""An alignment job whose grader is a judge that ranks the completions of a prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from iro_server.graders.base import Grade, Grader, Sample
from iro_server.graders.environment import GraderEnvironment
from iro_server.graders.parsing import parse_grader
from tests.iro_server.graders.judge import answers_in, judge, ranking_by
from tests.training.iro.test_loop import comparable, killer
from tests.training.iro.toy_job import Killed, job
from training.iro.config import AlignConfig
from training.iro.grading import REFERENCES
from training.iro.logit_bias import LogitBiasConfig
from training.iro.logit_bias import run as fit_bias
from training.iro.spread_grader import SpreadGrader

RANK = {
    "type": "score_model",
    "name": "rank",
    "model": "judge",
    "input": [{"role": "user", "content": "Which answer to {{ item.prompt }} has the most ones?"}],
    "ranking": {},
}
BY_ONES = ranking_by(lambda text: text.count("1"))


@pytest.mark.slow(8)
def test_a_policy_is_compared_with_the_frozen_models_answers(config: AlignConfig, tmp_path: Path) -> None:
    """The frozen model's reward is the middle of the range; the aligned one's is the share of its answers beaten."""
    with judge(BY_ONES) as (url, requests):
        config = config.model_copy(update={"grader": {**RANK, "base_url": url}})
        result = job().execute(config, tmp_path / "run")
        num_requests = len(requests)
        assert all(len(answers_in(request)) <= config.search.rows + REFERENCES for request in requests)
        with pytest.raises(Killed):
            job().execute(config, tmp_path / "killed", should_stop=killer(9))
        resumed = job().execute(config, tmp_path / "killed")
    assert result["baseline"]["full_valid_mean_reward"] == pytest.approx(0.5)
    assert result["history"][0]["full_valid_mean_reward"] > 0.6 and result["checks"][0]["holds"]
    assert result["history"][0]["train_mean_reward"] == pytest.approx(0.5)  # a place within its own group
    assert num_requests < 40 * 8  # the rollouts of a prompt take one request, not eight
    assert comparable(resumed) == comparable(result)


def test_a_job_that_compares_biases_by_rewards_refuses_a_ranking(tmp_path: Path) -> None:
    config = LogitBiasConfig(
        url="http://127.0.0.1:9/v1",
        model="m",
        tokenizer=tmp_path,
        training_file=tmp_path,
        grader={**RANK, "base_url": "http://127.0.0.1:9/v1"},
    )
    with pytest.raises(ValueError, match="a ranking compares") as refused:
        fit_bias(config, None)  # type: ignore[arg-type]
    assert getattr(refused.value, "param", None) == "grader"


class InlinePool:
    """A pool whose actors are this process. ``sizes``: of the pieces of work."""

    def __init__(self, grader: Grader) -> None:
        self.grader, self.sizes = grader, []

    def map(self, method: str, work: Sequence[tuple[Any, ...]], size: int) -> Iterator[list[Grade]]:
        for arguments in work:
            self.sizes.append(len(arguments[0]))
            yield getattr(self.grader, method)(*arguments)


def test_the_completions_of_a_prompt_stay_together_on_a_cluster() -> None:
    """In whatever order they come."""
    prompts = [{"prompt": str(number)} for number in range(5)]
    pairs = [(Sample("1" * ones + "0" * number), prompts[number]) for ones in range(8) for number in range(5)]
    with (
        judge(BY_ONES) as (url, requests),
        parse_grader({**RANK, "base_url": url}, GraderEnvironment(any_endpoint=True)) as grader,
    ):
        pool = InlinePool(grader)
        spread = SpreadGrader.over(pool, 3, grader)  # type: ignore[arg-type]
        grades = spread.grade_many(pairs)
    assert spread.compares and pool.sizes == [16, 16, 8] and len(requests) == 5
    assert [grade.reward for grade in grades] == pytest.approx([ones / 7 for ones in range(8) for _ in prompts])
