"""A recorded run, taken apart and put together again."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import pytest

from benchmarks.bench_tasks.measure import comparisons, intervals
from benchmarks.bench_tasks.merging import LISTS, merged, without_tasks
from benchmarks.bench_tasks.tables import budgets
from benchmarks.record import read
from benchmarks.record_run import without_seconds
from iro_server import JsonObject

RECORDED = Path(__file__).parents[3] / "results/bench.tasks/eight-tasks.json"


@pytest.fixture(scope="module")
def whole() -> JsonObject:
    """What is recorded of the first seed, which every task has."""
    content = read(RECORDED)
    lists = {name: [row for row in content.get(name, []) if row["seed"] == 0] for name in LISTS}
    parts = [part for part in content["run"]["parts"] if part["seeds"] == [0]]
    run = content["run"] | {"seeds": [0], "parts": parts}
    run["config"] = run["config"] | {"seed": 0, "seeds": 1}
    return content | lists | {"run": run, "intervals": intervals(lists["rows"])}


def part(content: JsonObject, task: str) -> JsonObject:
    lists = {name: [row for row in content.get(name, []) if row["task"] == task] for name in LISTS}
    run = {name: value for name, value in content["run"].items() if name != "parts"}
    run["config"] = run["config"] | {"tasks": [task]}
    measured = {"intervals": intervals(lists["rows"]), "comparisons": comparisons(lists["rows"])}
    return content | lists | {"run": run} | measured


@pytest.mark.slow(20)
def test_the_parts_of_a_run_are_the_run(whole: JsonObject) -> None:
    tasks = whole["run"]["config"]["tasks"]
    together = reduce(merged, (part(whole, task) for task in tasks))
    assert {name: together[name] for name in (*LISTS, "intervals")} == {
        name: whole[name] for name in (*LISTS, "intervals")
    }
    assert together["comparisons"] == comparisons(whole["rows"])
    assert together["run"]["config"]["tasks"] == tasks
    assert [each["config"]["tasks"] for each in together["run"]["parts"]] == [[task] for task in tasks]
    assert together["run"]["seeds"] == [0]


def test_a_measurement_is_recorded_at_most_once(whole: JsonObject) -> None:
    with pytest.raises(ValueError, match="both runs have rows of keywords, 0, base, 1"):
        merged(whole, part(whole, "keywords"))


def test_further_methods_of_a_recorded_job_are_added(whole: JsonObject) -> None:
    """A run that goes on from it says the same of the job."""
    further = part(whole, "keywords")
    further["rows"] = [row | {"method": "dpo"} for row in further["rows"] if row["method"] == "base"]
    further["tilts"] = []
    further["run"]["config"] |= {"vllm_tilts": False}  # which the recorded version did not have
    together = merged(whole, further)
    assert all(together[name] == whole[name] for name in ("jobs", "training", "tuning"))
    assert len(together["rows"]) == len(whole["rows"]) + 1
    further["jobs"] = [job | {"gain": job["gain"] + 1.0} for job in further["jobs"]]
    with pytest.raises(ValueError, match="both runs have jobs of keywords, 0"):
        merged(whole, further)


def test_tasks_that_are_measured_anew_replace_what_was_recorded(whole: JsonObject) -> None:
    tasks = whole["run"]["config"]["tasks"]
    remeasured = part(whole, tasks[0])
    remeasured["rows"] = [row | {"reward": 0.25, "rewards": [0.25] * len(row["rewards"])} for row in remeasured["rows"]]
    replaced = merged(without_tasks(whole, tasks[:1]), remeasured)
    of_first = [row for row in replaced["rows"] if row["task"] == tasks[0]]
    assert len(of_first) == len(remeasured["rows"]) and {row["reward"] for row in of_first} == {0.25}
    assert [row for row in replaced["rows"] if row["task"] != tasks[0]] == [
        row for row in whole["rows"] if row["task"] != tasks[0]
    ]
    covered = [task for each in replaced["run"]["parts"] for task in each["config"]["tasks"]]
    assert sorted(covered) == sorted(replaced["run"]["config"]["tasks"]) == sorted(tasks)


def test_runs_of_other_sizes_are_not_mixed(whole: JsonObject) -> None:
    tasks = whole["run"]["config"]["tasks"]
    first, second = (part(whole, task) for task in tasks[:2])
    second["run"]["config"] = second["run"]["config"] | {"train_prompts": 8}
    with pytest.raises(ValueError, match="differ in train_prompts"):
        merged(first, second)


def test_pieces_may_differ_in_precision_which_their_parts_say(whole: JsonObject) -> None:
    tasks = whole["run"]["config"]["tasks"]
    first, second = (part(whole, task) for task in tasks[:2])
    second["run"]["config"] = second["run"]["config"] | {"engine_precision": "bfloat16"}
    run = merged(first, second)["run"]
    assert [each["config"].get("engine_precision", "float32") for each in run["parts"]] == ["float32", "bfloat16"]
    assert "engine_precision" not in run["config"]


def test_seconds_of_a_busy_machine_are_left_out_of_means(whole: JsonObject) -> None:
    timed = part(whole, whole["run"]["config"]["tasks"][0])
    timed["rows"] = [row | {"seconds": 2.0 * len(row["rewards"])} for row in timed["rows"]]
    busy = timed | {name: [row | {"task": "another"} for row in timed[name]] for name in LISTS}
    busy["rows"] = without_seconds(busy["rows"])
    joined = merged(timed, busy)
    seconds = [line.split("|")[4] for line in budgets(joined).splitlines()[2:]]
    assert seconds == [line.split("|")[4] for line in budgets(timed).splitlines()[2:]]
    assert {line.split("|")[4].strip() for line in budgets(busy).splitlines()[2:]} == {""}


def run_of(task: str, methods: list[str], tilt_strengths: list[float]) -> JsonObject:
    """A run of a task of whose methods ``base`` alone was measured."""
    config = {"tasks": [task], "methods": methods, "rows": [1], "tilt_strengths": tilt_strengths}
    row = {"task": task, "method": "base", "rows": 1, "seed": 0, "rewards": [0.0, 1.0], "judges": [0.0, 1.0]}
    return {"run": {"config": config}, "rows": [row]}


def test_the_configuration_has_all_strengths_and_the_methods_that_were_measured() -> None:
    first = run_of("keywords", ["base", "args"], [0.5])
    together = reduce(merged, (first, run_of("brevity", ["base"], []), run_of("civility", ["base", "dpo"], [0.25])))
    together["run"]["config"]["tilt_strengths"] = []  # as earlier versions wrote it: its parts know better
    config = merged(together, run_of("sentiment", ["base"], []))["run"]["config"]
    assert config["tilt_strengths"] == [0.5, 0.25] and config["methods"] == ["base"]
    replaced = merged(without_tasks(together, ["civility"]), run_of("civility", ["base"], []))
    assert replaced["run"]["config"]["tilt_strengths"] == [0.5]
