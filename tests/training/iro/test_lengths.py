"""``max_tokens`` "auto": as long as the frozen model's own completions usually are."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from iro_server.engines.describe import Description
from iro_server.graders.parsing import parse_grader
from tests.training.iro.toy_job import MODEL, Toy, job, write_prompts
from training.iro.config import AlignConfig
from training.iro.data import Prompt
from training.iro.executor import LocalExecutor
from training.iro.lengths import PROMPTS, SAMPLES, choose, with_max_tokens
from training.iro.loop import Alignment
from training.iro.rollouts import Batch, completions_of
from training.json_values import JsonObject
from training.run import Cancelled, Run

STOPS = [True] * 20


@pytest.mark.parametrize(
    ("lengths", "stopped", "answers", "max_tokens"),
    [
        (list(range(101, 121)), STOPS, True, 120),  # 90 % of 101 … 120 is 119, in chunks of 4
        ([3] * 20, STOPS, True, 16),
        ([200] * 17 + [512] * 3, [True] * 17 + [False] * 3, True, 200),  # what goes on for ever says nothing of stops
        ([1000] * 20, STOPS, True, 512),
        ([512] * 20, [True] * 9 + [False] * 11, True, 512),
        ([512] * 20, [True] * 9 + [False] * 11, False, 48),
    ],
)
def test_nine_in_ten_of_the_samples_that_stop_do_so_within_it(
    lengths: list[int], stopped: list[bool], answers: bool, max_tokens: int
) -> None:
    assert choose(lengths, stopped, chunk_length=4, most=512, answers=answers) == max_tokens


def messages_of(events: list[dict], start: str) -> list[str]:
    return [event["message"] for event in events if event["message"].startswith(start)]


def test_a_job_measures_it_once_and_tells(config: AlignConfig, tmp_path: Path) -> None:
    auto = config.model_copy(update={"max_tokens": "auto", "iterations": 1, "feature_spec": None})
    events: list[dict] = []
    result = job().execute(auto, tmp_path / "run", on_event=events.append)
    measured = Run(tmp_path / "run", seed=0).load("lengths")
    assert len(measured["lengths"]) == PROMPTS * SAMPLES
    assert result["max_tokens"] == measured["max_tokens"] > 6
    within = [n <= result["max_tokens"] for n, end in zip(measured["lengths"], measured["stopped"], strict=True) if end]
    assert sum(within) >= 0.9 * len(within)
    assert [event["data"] for event in events if event["type"] == "defaults"] == [{"max_tokens": result["max_tokens"]}]
    (message,) = messages_of(events, "max_tokens is ")
    assert f"{sum(measured['lengths'])} base tokens" in message
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["max_tokens"] == "auto"
    rollouts = completions_of(Run(tmp_path / "run", seed=0), "1-train-0-rollouts")
    longest = max(len(tokens) for group in rollouts for tokens in group)
    assert 6 < longest <= result["max_tokens"]
    progress = [event["data"] for event in events if event["type"] == "progress"]
    assert progress[-1]["done"] == progress[-1]["total"]


def test_prompts_of_the_final_check_do_not_choose_the_length(config: AlignConfig, tmp_path: Path) -> None:
    """Not where there are fewer validation prompts than are measured, either."""
    write_prompts(config.training_file, 12)
    auto = config.model_copy(update={"max_tokens": "auto", "iterations": 1})
    measured: list[Prompt] = []

    class Noting(LocalExecutor):
        def roll_out(self, batches: Sequence[Batch]) -> Generator[JsonObject, None, None]:
            measured.extend(prompt for batch in batches for prompt in batch.prompts)
            return super().roll_out(batches)

    with parse_grader(auto.grader) as grader:
        executor = Noting(Toy(), auto.model_dir)
        prompts = Alignment(auto, Run(tmp_path / "run", seed=0), MODEL, grader, executor).prompts
    assert measured == prompts.choosing[:PROMPTS] and not [prompt for prompt in measured if prompt in prompts.check]
    assert len(prompts.validation) < PROMPTS


def test_a_killed_job_does_not_measure_again(config: AlignConfig, tmp_path: Path) -> None:
    auto = config.model_copy(update={"max_tokens": "auto", "iterations": 1})
    asked: list[int] = []
    with pytest.raises(Cancelled):
        job().execute(auto, tmp_path / "run", should_stop=lambda: bool(asked.append(1)) or len(asked) > 2)
    events: list[dict] = []
    result = job().execute(auto, tmp_path / "run", on_event=events.append)
    assert not messages_of(events, "max_tokens is ")
    assert [event["data"] for event in events if event["type"] == "defaults"] == [{"max_tokens": result["max_tokens"]}]


class Endless(Toy):
    """No token of its vocabulary ends a completion."""

    info = replace(Toy.info, eos_ids=(99,))


class Short(Endless):
    info = replace(Endless.info, max_length=46)


@pytest.mark.parametrize(
    ("engine", "row", "max_tokens"),
    [(Endless(), "prompt", 48), (Endless(), "messages", 512), (Short(), "messages", 40)],
)
def test_what_never_stops_is_cut(config: AlignConfig, tmp_path: Path, engine: Toy, row: str, max_tokens: int) -> None:
    """A text at 48 tokens; an answer at 512, or where the longest prompt fills the model's context."""
    auto = config.model_copy(update={"max_tokens": "auto"})
    prompts = [Prompt(index, (0, 1, 0, 1, 0, 1), {row: "010101"}) for index in range(2)]
    executor = LocalExecutor(engine, auto.model_dir)
    run = Run(tmp_path / "run", seed=0)
    measured = with_max_tokens(auto, run, Description.of_engine(engine), executor, prompts, longest=6)
    assert measured.max_tokens == max_tokens


def test_a_number_stays_as_it_is(config: AlignConfig, tmp_path: Path) -> None:
    executor = LocalExecutor(Toy(), config.model_dir)
    run = Run(tmp_path / "run", seed=0)
    assert with_max_tokens(config, run, MODEL, executor, [], 0) is config
    assert not run.has("lengths")
