"""Sampling goes on while completions are graded, to the same results; the grader is asked once about a text."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from iro_server.graders.base import Grade, Grader, Item, Sample
from iro_server.graders.environment import VARIABLE, GraderEnvironment
from tests.training.iro.toy_job import MODEL, Toy, job
from training.iro.ahead import AHEAD, working_ahead
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Prompt
from training.iro.executor import LocalExecutor
from training.iro.grading import Grading
from training.iro.loop import align
from training.run import Job, Run


def test_results_come_in_order_whichever_side_is_slower() -> None:
    def pieces(pause: float) -> Iterator[int]:
        for number in range(10):
            time.sleep(pause)
            yield number

    def work(pause: float, number: int) -> int:
        time.sleep(pause)
        return number * number

    for making, working in ((0.0, 0.005), (0.005, 0.0)):
        done = working_ahead(pieces(making), lambda number, pause=working: work(pause, number))
        assert [(number, result()) for number, result in done] == [(n, n * n) for n in range(10)]


def test_making_runs_ahead_of_working_so_far_and_no_further() -> None:
    made, gate = [], threading.Event()

    def pieces() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    with closing(working_ahead(pieces(), lambda number: gate.wait(10))) as done:
        next(done)
        assert len(made) == AHEAD + 1
        gate.set()
        assert len(list(done)) == 9


def test_what_the_work_raises_is_raised_where_it_is_asked_for() -> None:
    with closing(working_ahead([1, 0, 2], lambda number: 1 / number)) as done:
        assert next(done)[1]() == 1
        with pytest.raises(ZeroDivisionError):
            next(done)[1]()


def test_closed_early_it_drops_what_waits() -> None:
    worked: list[int] = []
    release = threading.Event()

    def work(number: int) -> None:
        release.wait(10)
        worked.append(number)

    done = working_ahead(range(10), work)
    next(done)
    threading.Timer(0.05, release.set).start()
    done.close()
    assert len(worked) <= 2


class Watched(Grader):
    """Counts token 1, slowly, and notes what it was asked and whether the engine sampled meanwhile."""

    type: str = "watched"

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        before = ENGINE.sampled
        time.sleep(0.05)
        OVERLAPPED.append(ENGINE.sampled > before)
        ASKED.extend((sample.output_text, item["prompt"]) for sample, item in pairs)
        return [Grade.of(sample.output_text.count("1"), tokens={"judge": 1}) for sample, _ in pairs]


ENGINE = Toy()
ASKED: list[tuple[str, str]] = []
OVERLAPPED: list[bool] = []


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    ASKED.clear()
    OVERLAPPED.clear()
    monkeypatch.setattr("training.iro.loop.parse_grader", lambda spec: Watched())

    def run(config: AlignConfig, run: Run) -> dict[str, Any]:
        return align(config, run, MODEL, LocalExecutor(ENGINE, config.model_dir))

    yield Job("align", "", AlignConfig, run)


@pytest.mark.slow(15)
def test_the_engine_samples_while_completions_are_graded(config: AlignConfig, tmp_path: Path, watched: Job) -> None:
    config = config.model_copy(update={"concurrency": 2})
    slow = watched.execute(config, tmp_path / "slow")
    assert any(OVERLAPPED)  # one after the other, none is
    quick = job().execute(config, tmp_path / "quick")
    for row, other in zip(slow["history"], quick["history"], strict=True):
        for name in ("train_mean_reward", "full_valid_mean_reward", "correlation", "betas"):
            assert row[name] == other[name]


def test_a_text_of_an_item_is_graded_once_in_a_job(config: AlignConfig, tmp_path: Path, watched: Job) -> None:
    result = watched.execute(config, tmp_path / "run")
    assert len(ASKED) == len(set(ASKED))
    used = [row["usage"]["graders"][0] for row in result["history"]]
    assert sum(row["train_tokens_count"] + row["valid_tokens_count"] for row in used) < len(ASKED)
    assert result["usage"]["graders"] == [{"model": "judge", "tokens_count": len(ASKED)}]  # baseline and check too


@pytest.mark.slow(13)
def test_a_job_whose_judges_exceed_their_tokens_fails_and_keeps_its_finished_iterations(
    config: AlignConfig, tmp_path: Path, watched: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlimited = watched.execute(config, tmp_path / "unlimited")
    first = Run(tmp_path / "unlimited", seed=0)
    needed = sum(judge_tokens(first.load(name)) for name in first.checkpoints.names())
    assert len(unlimited["history"]) == 2

    limit = GraderEnvironment(any_endpoint=True, python="own", max_judge_tokens=needed - 1)
    monkeypatch.setenv(VARIABLE, limit.model_dump_json())
    for _ in range(2):  # it counts from the start where it is continued
        with pytest.raises(AlignError, match=f"{needed - 1} tokens") as error:
            watched.execute(config, tmp_path / "limited")
        assert error.value.code == "judge_token_limit"
    assert Run(tmp_path / "limited", seed=0).has("1-report")

    monkeypatch.setenv(VARIABLE, limit.model_copy(update={"max_judge_tokens": needed}).model_dump_json())
    assert len(watched.execute(config, tmp_path / "enough")["history"]) == 2


def test_the_judges_of_a_job_may_take_all_tokens_of_their_limit_and_no_more(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = GraderEnvironment(any_endpoint=True, python="own", max_judge_tokens=10)
    monkeypatch.setenv(VARIABLE, limit.model_dump_json())
    grading = Grading(config, Run(tmp_path, seed=0), MODEL, Watched())
    four_tokens, two_judges = ({"grader_tokens": tokens} for tokens in ({"a": 4.0}, {"a": 1.0, "b": 5.0}))
    grading.charge(four_tokens)
    grading.charge(two_judges)
    with pytest.raises(AlignError, match="took 14 tokens; a job's limit is 10 tokens") as error:
        grading.charge(four_tokens)
    assert error.value.code == "judge_token_limit"


def judge_tokens(step: Any) -> float:
    """Of a stored step of rewards, or of a validation."""
    tally = step.get("tally") or step.get("finals") if isinstance(step, dict) else None
    return sum(tally["grader_tokens"].values()) if tally else 0


def test_the_final_check_grades_what_the_values_pick_alone(config: AlignConfig, tmp_path: Path) -> None:
    job().execute(config, tmp_path / "run")
    run = Run(tmp_path / "run", seed=0)
    check = [run.load(name) for name in run.checkpoints.names() if name.startswith("check-best-")]
    assert sum(part["finals"]["samples"]["all"] for part in check) == sum(len(part["rows"]) for part in check) > 0


def test_a_grade_that_failed_is_asked_for_again_and_one_that_was_given_is_not(
    config: AlignConfig, tmp_path: Path
) -> None:
    calls: list[list[str]] = []

    class Flaky(Watched):
        def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
            calls.append([sample.output_text for sample, _ in pairs])
            tokens = {"judge": 2}
            failed = Grade.failed("no answer", tokens=tokens)
            return [Grade.of(1.0, tokens=tokens) if sample.output_text == "0" else failed for sample, _ in pairs]

    grading = Grading(config, Run(tmp_path, seed=0), MODEL, Flaky())
    prompts = [Prompt(0, (0,), {"prompt": "0"}), Prompt(1, (1,), {"prompt": "1"})]
    first = grading.grade(prompts, [[[0], [0], [1]], [[0]]])
    assert calls == [["0", "1", "0"]]  # once a text of an item
    assert [[grade.tokens for grade in group] for group in first] == [[{"judge": 2}, {}, {"judge": 2}], [{"judge": 2}]]
    again = grading.grade(prompts, [[[0], [1]], [[0]]])
    assert calls[1:] == [["1"]]
    assert again[0][0].reward == 1.0 and not again[0][0].tokens
