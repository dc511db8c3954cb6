"""The harness: a small run of the real model, rows as results have them, and resumption."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from benchmarks.bench_tasks.checks import check_rows
from benchmarks.bench_tasks.config import METHOD_NAMES, PRESETS, BenchTasksConfig
from benchmarks.bench_tasks.dpo import graded_rollouts, preference_pairs
from benchmarks.bench_tasks.engine import open_engine
from benchmarks.bench_tasks.job import JOB
from benchmarks.bench_tasks.methods import METHODS, SCALED, iro_search
from benchmarks.bench_tasks.strengths import STRENGTHS
from benchmarks.bench_tasks.tables import budgets, by_iteration, by_strength, strengths
from benchmarks.bench_tasks.temperatures import SAMPLES, chosen
from benchmarks.bench_tasks.token_values import CANDIDATES
from benchmarks.tasks import NULL_TASK, TASKS
from iro_server.alignment.definition import DEFAULT_OPTIONS
from training.iro.data import Prompt
from training.iro.tilting import TRIALS
from training.run import Cancelled
from value_heads.tilt import TILT_PARTS

FIELDS = {
    *("task", "method", "rows", "seed", "reward", "judge", "perplexity", "distinct_2", "kl", "base_tokens", "seconds"),
    *("reward_calls", "finished", "length", "answers", "rewards", "judges", "texts"),
}
PROMPTS = PRESETS["smoke"]["heldout_prompts"]
whole_run = pytest.mark.slow(60)  # the first of them takes that long: all methods on the real model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench") / "run"


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    return JOB.execute(PRESETS["smoke"] | {"tilt_strengths": (0.0, 1.0, 4.0), "each_iteration": True}, folder)


def comparable(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in ("seconds", "perplexity")}


@pytest.mark.slow(16)
def test_jobs_fit_the_tilts_that_vllm_applies_where_asked() -> None:
    for vllm_tilts, parts in ((False, TILT_PARTS), (True, {"bias", "words", "states", "sharpness"})):
        with open_engine(BenchTasksConfig(tasks=("keywords",), vllm_tilts=vllm_tilts)) as engine:
            assert engine.info.steers == parts


def test_the_configuration_knows_every_method() -> None:
    assert tuple(METHODS) == METHOD_NAMES


@whole_run
def test_every_method_has_a_row_for_each_number_of_rows_that_it_takes(result: dict[str, Any]) -> None:
    assert [(row["method"], row["rows"]) for row in result["rows"]] == [
        ("base", 1),
        ("best_of_n", 2),
        *(("tempered", rows) for rows in (1, 2)),
        ("blockwise", 2),
        *((name, rows) for name in ("static_bias", "static_bias_refitted", "iro") for rows in (1, 2)),
        *((name, 2) for name in ("iro_by_chunk", "iro_samples", "iro_search", "iro_by_reward", "iro_best_of_n")),
        ("args", 1),
        ("vas", 1),
        ("smc", 2),
    ]
    for row in result["rows"]:
        assert row.keys() == FIELDS
        assert len(row["rewards"]) == len(row["judges"]) == len(row["texts"]) == PROMPTS
        assert row["reward"] == pytest.approx(np.mean(row["rewards"]))
        assert row["perplexity"] > 1 and 0 <= row["distinct_2"] <= 1 and 0 <= row["finished"] <= 1
        candidates = CANDIDATES if row["method"] in ("args", "vas") else 1
        assert 1 <= row["length"] <= 8 and row["base_tokens"] <= 8 * row["rows"] * candidates


@whole_run
def test_methods_of_a_seed_share_their_samples(result: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in result["rows"]}  # of two rows, where a method takes both
    assert rows["best_of_n"]["reward"] >= rows["base"]["reward"]  # the first of its samples is the base's
    assert rows["iro_by_reward"]["reward"] >= rows["iro_by_chunk"]["reward"]  # the same search
    assert rows["iro_best_of_n"]["reward"] >= rows["iro_samples"]["reward"]  # the same samples
    assert rows["base"]["kl"] == 0 and rows["base"]["reward_calls"] == rows["iro"]["reward_calls"] == 0
    assert 1 <= rows["best_of_n"]["reward_calls"] <= 2


@whole_run
def test_training_is_counted_apart(result: dict[str, Any]) -> None:
    (training,) = result["training"]
    assert (training["task"], training["seed"]) == ("keywords", 0)
    assert training["reward_calls"] >= 6 * 4  # the rollouts, and validation beside them
    assert training["base_tokens"] >= training["reward_calls"]


@whole_run
def test_seconds_of_an_answer_are_without_those_of_tuning(result: dict[str, Any]) -> None:
    tuning = {row["method"]: row["seconds"] for row in result["tuning"] if "strength" not in row}
    decoding = {row["method"]: row["seconds"] for row in result["rows"] if row["rows"] == 1}
    for method, seconds in tuning.items():  # of 16 samples at each setting that was tried, for one of two prompts
        assert decoding[method] < seconds


@whole_run
def test_each_job_says_whether_it_improved_and_how_it_is_served(result: dict[str, Any], folder: Path) -> None:
    for job in result["jobs"]:
        align = json.loads((folder / "pieces" / f"{job['task']}-{job['seed']}" / "align" / "result.json").read_text())
        check = align["checks"][0]
        numbers = [None if math.isnan(value) else value for value in map(float, check["got"].split(" ± "))]
        assert [job["improved"], job["gain"], job["gain_error"]] == [check["holds"], *numbers]
        assert (job["served"], job["served_rows"]) in [(price["name"], price["rows"]) for price in align["prices"]]
    assert len(result["jobs"]) == sum(row.get("trained", False) for row in result["training"])


@whole_run
def test_preferences_are_the_best_and_worst_rollouts_of_the_job(result: dict[str, Any], folder: Path) -> None:
    graded = list(graded_rollouts(folder / "pieces/keywords-0/align", [Prompt(i, (i,), {}) for i in range(6)]))
    assert sorted(prompt_ids for prompt_ids, _ in graded) == [[i] for i in range(6)]
    assert all(len(rollouts) == 4 and 1 <= len(tokens) <= 8 for _, rollouts in graded for tokens, _ in rollouts)
    unequal = [group for group in graded if len({reward for _, reward in group.rollouts}) > 1]
    pairs = preference_pairs(graded)
    assert [pair["prompt_ids"] for pair in pairs] == [group.prompt_ids for group in unequal]
    for pair, group in zip(pairs, unequal, strict=True):
        rewards = [reward for _, reward in group.rollouts]
        assert (pair["chosen_ids"], max(rewards)) in group.rollouts
        assert (pair["rejected_ids"], min(rewards)) in group.rollouts


@whole_run
def test_what_strengths_were_tried_is_told_and_counted(result: dict[str, Any]) -> None:
    of_temperature = [row for row in result["tuning"] if "strength" not in row]
    of_strength = [row for row in result["tuning"] if "strength" in row]
    assert [row["method"] for row in of_temperature] == ["tempered", "static_bias", "static_bias_refitted"]
    for row in of_temperature:
        assert row["reward_calls"] == sum(len(rewards) for trial in row["tried"] for rewards in trial["rewards"])
    methods = [row["method"] for row in of_strength]
    assert methods[:1] == ["static_bias_refitted"] and methods[-3:] == ["args", "vas", "smc"]
    for row in of_strength:
        assert row["base_tokens"] >= row["reward_calls"] >= len(row["tried"])
        assert row["strength"] in [trial["strength"] for trial in row["tried"]]
    assert [row["reward_calls"] for row in of_strength[-3:]] == [len(STRENGTHS)] * 3  # one prompt
    assert strengths(result).count("\n") == 1 + len(methods)
    lines = {tuple(line.split(" | ")[:2]): line for line in budgets(result).splitlines()}
    job = result["training"][0]
    first_bias = job["first_bias"]  # of six prompts four plain samples each, and of some trials
    assert 6 * 4 < first_bias["reward_calls"] < job["reward_calls"]
    assert first_bias["base_tokens"] < job["base_tokens"]
    assert lines["| base", "1"].endswith("| 0.0 |  |  |")
    assert lines["| iro", "1"].endswith(f"| {job['base_tokens']} | {job['reward_calls']} |")
    assert lines["| vas", "1"].endswith(f"| {job['reward_calls'] + 4} |")
    for method in ("static_bias", "static_bias_refitted"):
        tuned = sum(row["reward_calls"] for row in result["tuning"] if row["method"] == method)
        assert lines[f"| {method}", "1"].endswith(f"| {first_bias['reward_calls'] + tuned} |")


@whole_run
def test_further_biases_are_fitted_to_samples_of_those_before_until_none_is_better(result: dict[str, Any]) -> None:
    of_bias = [row for row in result["tuning"] if row["method"] == "static_bias_refitted"]
    fits = [row for row in of_bias if "strength" in row]
    for tuning in fits:
        assert tuning["tried"][0]["strength"] == 0 and len(tuning["tried"]) > len(TRIALS["bias"])
        samples = 6 * 2 if tuning["iteration"] > 1 else 0  # of six prompts half as many as the job's plain rollouts
        assert tuning["reward_calls"] == samples + len(tuning["tried"]) * SAMPLES
    assert [row["iteration"] for row in fits] == list(range(1, 1 + len(fits)))
    assert all(row["strength"] for row in fits[:-1]) and (
        len(fits) == DEFAULT_OPTIONS.tilt_rounds or not fits[-1]["strength"]
    )
    by_method = {row["method"]: row for row in result["rows"] if row["rows"] == 1}
    (tuning,) = (row for row in of_bias if "strength" not in row)
    if not fits[0]["strength"] and {chosen(tuning, 1)[name] for name in ("sharpness", "penalty")} == {0.0}:
        assert by_method["static_bias_refitted"]["texts"] == by_method["base"]["texts"]


@whole_run
def test_the_iteration_that_the_job_took_is_the_aligned_model(result: dict[str, Any]) -> None:
    by_chunk = (("iro", 1), ("iro_by_chunk", 2))
    rows = {row["rows"]: row for row in result["rows"] if (row["method"], row["rows"]) in by_chunk}
    assert [row["rows"] for row in result["iterations"]] == list(PRESETS["smoke"]["rows"])
    for row in result["iterations"]:
        assert row["chosen"] and row["iteration"] == 1 and row["rewards"] == rows[row["rows"]]["rewards"]
    assert "| keywords, 1 rows, iteration 1* |" in by_iteration(result)


@whole_run
def test_a_tilt_at_other_strengths_is_measured_beside_the_rows(result: dict[str, Any]) -> None:
    rows = {row["method"]: row for row in result["rows"] if row["rows"] == 1}
    for method in SCALED:
        none, job, strong = (row for row in result["tilts"] if row["method"] == method)
        assert [row["strength"] for row in (none, job, strong)] == [0, 1, 4]
        for row, other in ((none, rows["base"]), (job, rows[method])):
            assert (row["rewards"], row["texts"]) == (other["rewards"], other["texts"])
        assert strong["tilted"] == (method != "iro")  # so few rollouts give no tilt that is surely better


def test_rewards_and_nats_by_strength_are_means_over_the_seeds_that_have_them() -> None:
    shared = {"task": "keywords", "rows": 1, "tilted": True, "method": "iro"}
    rows = [
        shared | {"seed": 0, "kl": 30.0, "reward": 9.0},
        shared | {"seed": 1, "kl": 50.0, "reward": 7.0},
        shared | {"seed": 2, "kl": 90.0, "reward": 0.0},
        shared | {"seed": 0, "rows": 4, "kl": None, "reward": 9.5},
    ]
    tilts = [shared | {"seed": seed, "kl": 10.0, "reward": 5.0, "strength": 0.5} for seed in (0, 1)]
    assert "| keywords (2 seeds) | iro | 5.00 at 10.0 | 8.00 at 40.0 |" in by_strength({"rows": rows, "tilts": tilts})
    other = tilts[0] | {"method": "static_bias", "tilted": False}
    assert "static_bias" not in by_strength({"rows": rows, "tilts": [*tilts, other]})


@pytest.mark.slow(30)
def test_an_interrupted_run_goes_on_to_the_same_rows(result: dict[str, Any], tmp_path: Path) -> None:
    decoded: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and "method" in event["data"]:
            decoded.append(event["data"]["method"])

    config = PRESETS["smoke"] | {"methods": ("base", "best_of_n", "iro", "vas")}
    with pytest.raises(Cancelled):
        JOB.execute(config, tmp_path / "run", on_event=on_event, should_stop=lambda: len(decoded) == 2)
    resumed = JOB.execute(config, tmp_path / "run", on_event=on_event)
    expected = [row for row in result["rows"] if row["method"] in config["methods"]]
    for row, uninterrupted in zip(resumed["rows"], expected, strict=True):
        assert row["perplexity"] == pytest.approx(uninterrupted["perplexity"], rel=1e-4)  # of another engine
        assert comparable(row) == comparable(uninterrupted)
    assert decoded == [row["method"] for row in expected]


@pytest.mark.slow(20)
def test_a_finished_run_goes_on_with_more_methods(tmp_path: Path) -> None:
    decoded: list[str] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["type"] == "metrics" and "method" in event["data"]:
            decoded.append(event["data"]["method"])

    few = PRESETS["smoke"] | {"methods": ("base",), "rows": (1,)}
    JOB.execute(few, tmp_path / "run", on_event=on_event)
    more = few | {"methods": ("base", "static_bias"), "rows": (1, 2)}
    extended = JOB.execute(more, tmp_path / "run", on_event=on_event)
    assert decoded == ["base", "static_bias", "static_bias"]
    assert [row["method"] for row in extended["rows"]] == decoded


@pytest.mark.slow(30)
def test_a_prompt_of_few_rows_is_answered_several_times(result: dict[str, Any], tmp_path: Path) -> None:
    """The first answers are those of a run that asks once; a line has the means of all."""
    several = PRESETS["smoke"] | {"methods": ("base", "best_of_n"), "measured_rows": 3}
    base, best = JOB.execute(several, tmp_path / "run")["rows"]
    base_once, best_once = result["rows"][:2]
    assert (base["answers"], best["answers"], base_once["answers"]) == (3, 1, 1)
    assert base["texts"] == base_once["texts"] and best["rewards"] == best_once["rewards"]
    assert all(reward * 9 == pytest.approx(round(reward * 9)) for reward in base["rewards"])  # thirds, of three answers
    assert base["base_tokens"] <= 8 and base["reward"] == pytest.approx(np.mean(base["rewards"]))


def test_fewer_tasks_and_seeds_of_some_methods() -> None:
    config = BenchTasksConfig(
        tasks=("keywords", "brevity"),
        methods=("base", "smc", "dpo"),
        seeds=2,
        seeds_of={"smc": 1},
        tasks_of={"dpo": ("keywords",)},
    )
    assert config.methods_for("keywords", 0) == ["base", "smc", "dpo"]
    assert config.methods_for("brevity", 1) == ["base"]
    assert not METHODS["dvts"].takes(4) and not METHODS["dvts"].takes(10) and METHODS["dvts"].takes(64)


def test_yardsticks_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ValueError, match=r"pip install 'iro-align\[yardsticks\]'"):
        JOB.execute(PRESETS["smoke"] | {"methods": ("base", "dpo")}, tmp_path)
    assert not (tmp_path / "config.json").exists()


def test_searches_draw_the_rows_that_they_are_compared_at() -> None:
    for rows in (2, 4, 16, 64):
        assert iro_search(rows, 4).rows == rows
    assert (iro_search(16, 4).beam_width, iro_search(64, 4).beam_width) == (2, 4)
    with pytest.raises(ValueError, match="no multiple"):
        iro_search(9, 4)


def test_the_paper_preset_has_eight_tasks_and_five_seeds_of_the_main_methods() -> None:
    config = BenchTasksConfig(**PRESETS["paper"])
    assert set(config.tasks) == TASKS.keys() - {NULL_TASK} and len(config.tasks) == 8
    assert {method for method in METHODS if config.seeds_for(method) == 5} == {
        *("base", "best_of_n", "tempered", "static_bias", "iro")
    }
    assert {config.seeds_for(method) for method in METHODS} == {3, 5} and config.methods == METHOD_NAMES
    assert {name: len(config.tasks_of[name]) for name in ("dpo", "grpo")} == {"dpo": 3, "grpo": 3}


@pytest.mark.parametrize(
    "options",
    [{"tasks": ("poems",)}, {"methods": ("magic",)}, {"seeds_of": {"magic": 1}}, {"tasks_of": {"dpo": ("poems",)}}],
)
def test_unknown_names_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="there are"):
        BenchTasksConfig(**{"tasks": ("keywords",)} | options)
    assert {"base", "iro"} <= METHODS.keys()


@pytest.mark.parametrize(
    "options",
    [
        *({"rows": rows} for rows in ((), (0,), (-3,), (512,), (4, 4))),
        *({"methods": methods} for methods in ((), ("base", "base"))),
        {"tasks": ("keywords", "keywords")},
        *({"tilt_strengths": (strength,)} for strength in (-1.0, math.nan, math.inf, 101.0)),
        {"tilt_strengths": (0.5, 0.5)},
        {"seeds_of": {"iro": 0}},
    ],
)
def test_what_cannot_be_decoded_and_what_is_named_twice_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(options))):
        BenchTasksConfig(**{"tasks": ("keywords",)} | options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"rows": (1,), "methods": ("best_of_n", "dvts")}, "no method takes the given number of rows: add 2 to rows"),
        ({"rows": (9,), "methods": ("iro",)}, "9 rows are no multiple of 2 beams; take a multiple of 2"),
        ({"tasks": ("reading_level",), "heldout_prompts": 190}, "reading_level, seed 0: 190 .* lower heldout_prompts"),
        ({"tasks": ("code",), "train_prompts": 96}, "there are 91; lower train_prompts"),
        ({"tasks": ("code",), "validation_prompts": 90}, "180 prompts were .* lower validation_prompts, twice as many"),
    ],
)
def test_what_fails_after_the_jobs_is_refused_before_them(
    options: dict[str, Any], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.bench_tasks.engine.open_engine", None)
    with pytest.raises(ValueError, match=reason):
        JOB.execute(PRESETS["smoke"] | options, tmp_path)


def test_every_preset_can_be_decoded() -> None:
    for options in PRESETS.values():
        check_rows(BenchTasksConfig(**options))
