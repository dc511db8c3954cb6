"""What a job tells while it runs, and which checkpoints it keeps."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from iro_server.graders.base import Grade, Grader, Item, Sample
from tests.training.iro.toy_job import COUNT_ONES, Killed, job, write_prompts
from training.iro.config import AlignConfig
from training.iro.loop import Alignment
from training.iro.report import best, rises
from training.iro.serving import Served, serve
from training.iro.validation import Validation
from training.run import Run
from value_heads import load_bundle

MULTI = {
    "type": "multi",
    "name": "both",
    "calculate_output": "ones + 10 * empty",
    "graders": {
        "ones": {"type": "python", "name": "ones", "source": COUNT_ONES, "workers": 1},
        "empty": {
            "type": "string_check",
            "name": "empty",
            "input": "{{sample.output_text}}",
            "reference": "",
            "operation": "eq",
        },
    },
}


def test_metrics_have_the_names_of_reinforcement_fine_tuning(config: AlignConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"grader": MULTI, "iterations": 3, "eval_interval": 2})
    events: list[dict] = []
    result = job().execute(config, tmp_path / "run", on_event=events.append)
    metrics = [event for event in events if event["type"] == "metrics"][1:]
    assert [event["data"]["step"] for event in metrics] == [1, 2, 3]
    first, second, _ = (event["data"] for event in metrics)
    assert metrics[0]["message"] == f"Step 1/3, train mean reward={first['train_mean_reward']:.3f}"
    assert metrics[1]["message"] == (
        f"Step 2/3, train mean reward={second['train_mean_reward']:.3f}, "
        f"full validation mean reward={second['full_valid_mean_reward']:.3f}"
    )
    assert first["full_valid_mean_reward"] is None and first["scores"]["valid_reward_mean"] is None
    assert first["full_valid_half_width"] is None
    assert second["full_valid_half_width"] > 1.96 * second["full_valid_error"] > 0  # Student's, of a few prompts
    assert first["total_steps"] == 3 and first["train_mean_parse_error"] == first["mean_unresponsive_rewards"] == 0
    for row, kind in ((first, "train"), (second, "train"), (second, "valid")):
        ones, empty = row["scores"]["graders"]
        assert (ones["name"], ones["type"], empty["name"], empty["type"]) == ("ones", "python", "empty", "string_check")
        parts = ones[f"{kind}_reward_mean"] + 10 * empty[f"{kind}_reward_mean"]
        assert row["scores"][f"{kind}_reward_mean"] == pytest.approx(parts)
    (errors,) = second["errors"]["graders"]
    assert (errors["name"], errors["type"], errors["valid_other_error_count"]) == ("both", "multi", 0)
    # 10 prompts a slice; plain rollouts of 8 a prompt first, of which each token is kept
    assert first["usage"]["prompt_tokens"] == 10 * 6
    assert first["usage"]["base_tokens"] == first["usage"]["completion_tokens"]
    assert first["completion_tokens_mean"] == first["usage"]["completion_tokens"] / (10 * 8)
    assert first["usage"]["value_tokens"] == 0 < second["usage"]["value_tokens"] == second["usage"]["base_tokens"]
    timing = second["timing"]["step"]
    assert timing["full_iteration"] == pytest.approx(timing["sampling"] + timing["training"] + timing["eval"])
    assert timing.pop("choosing") == 0 < min(timing.values()) and first["timing"]["step"]["eval"] == 0
    assert result["trained_tokens"] > first["usage"]["completion_tokens"]


TOKENS = ("prompt_tokens", "completion_tokens", "base_tokens", "value_tokens")


class Priced(Grader):
    """Counts token 1. A text costs a token, of half a cent."""

    type: str = "priced"

    def grade_many(self, pairs: Sequence[tuple[Sample, Item]]) -> list[Grade]:
        scores = [float(sample.output_text.count("1")) for sample, _ in pairs]
        return [Grade(score, tokens={"judge": 1}, costs={"judge": 0.005}) for score in scores]


def test_tokens_and_seconds_of_all_searches_are_counted(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ways that a model is not served in, and the measurement of ``max_tokens``; of the job, the check too."""

    def best_of_three_ways(self: Alignment, step: int) -> Served:
        assert self.stack is not None
        return serve(self.run, self.validation, step, self.prompts.validation, self.stack, self.base_rows)

    monkeypatch.setattr(Alignment, "serve", best_of_three_ways)
    monkeypatch.setattr("training.iro.loop.parse_grader", lambda spec: Priced())
    config = config.model_copy(update={"iterations": 1, "max_tokens": "auto", "feature_spec": None})
    result = job().execute(config, tmp_path / "run")
    base, row = (json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    with closing(Run(tmp_path / "run", seed=0)) as run:
        named = {name: run.load(name) for name in run.checkpoints.names()}
        full_job = run.seconds(named)
    baseline, ways, check = (
        [value["finals"] for name, value in named.items() if name.startswith(part) and not name.endswith("report")]
        for part in ("0-valid", "serve-", "check-")
    )
    sampled = sum(tally["usage"]["base_tokens"] for tally in baseline)
    assert base["usage"]["base_tokens"] == sampled + sum(named["lengths"]["lengths"])
    used, grader = row["usage"], row["usage"]["graders"][0]
    assert 0 < used["choosing"]["base_tokens"] < sum(tally["usage"]["base_tokens"] for tally in ways)
    assert grader["choosing_tokens_count"] + grader["valid_tokens_count"] == sum(map(judged, ways)) > 0
    for name in TOKENS:
        checked = sum(tally["usage"][name] for tally in check)
        assert result["usage"][name] == base["usage"][name] + used[name] + checked
    total, parts = result["usage"]["graders"][0], [base["usage"]["graders"][0], grader]
    counted = sum(part[f"{kind}_tokens_count"] for part in parts for kind in ("train", "choosing", "valid"))
    assert total["tokens_count"] == counted + sum(map(judged, check))
    assert total["cost"] == pytest.approx(0.005 * total["tokens_count"])
    timing = row["timing"]["step"]
    assert min(timing.values()) > 0 and base["timing"]["step"]["sampling"] > 0
    assert timing["full_iteration"] == pytest.approx(sum(timing.values()) - timing["full_iteration"])
    assert result["timing"]["full_job"] == pytest.approx(full_job) and full_job > timing["full_iteration"]


def judged(tally: dict) -> float:
    return sum(tally["grader_tokens"].values())


def test_a_grader_that_answers_not_at_all_shows_in_the_metrics(config: AlignConfig, tmp_path: Path) -> None:
    source = (
        "def grade(sample, item):\n"
        "    if sample['output_text'].startswith('2'): raise ValueError('two')\n"
        "    return sample['output_text'].count('1')\n"
    )
    config = config.model_copy(update={"grader": {"type": "python", "source": source}, "iterations": 1})
    events: list[dict] = []
    job().execute(config, tmp_path / "run", on_event=events.append)
    (row,) = [event["data"] for event in events if event["type"] == "metrics" and event["data"]["step"] == 1]
    assert 0 < row["mean_unresponsive_rewards"] < 0.5
    (errors,) = row["errors"]["graders"]
    assert errors["train_python_grader_runtime_error_mean"] == row["mean_unresponsive_rewards"]
    assert errors["train_python_grader_runtime_error_count"] == pytest.approx(row["mean_unresponsive_rewards"] * 30 * 8)


def test_progress_counts_every_step_of_the_run(config: AlignConfig, tmp_path: Path) -> None:
    """A batch is sampled while the one before it is graded: which ends first is up to the time they take, so that the
    run that goes on may tell a count once more."""
    config = config.model_copy(update={"concurrency": 4, "eval_samples": 2, "eval_interval": 2, "iterations": 3})
    killed: list[dict] = []
    resumed: list[dict] = []

    def follow(event: dict) -> None:
        killed.append(event)
        if len(killed) == 40:
            raise Killed

    with pytest.raises(Killed):
        job().execute(config, tmp_path / "run", on_event=follow)
    job().execute(config, tmp_path / "run", on_event=resumed.append)
    before, after = ([event["data"] for event in part if event["type"] == "progress"] for part in (killed, resumed))
    for progress in (before, after):
        done = [data["done"] for data in progress]
        assert done == sorted(set(done))
    assert abs(after[0]["done"] - before[-1]["done"]) <= 2
    assert {data["total"] for data in before + after} == {after[-1]["done"]}


@pytest.mark.slow(12)
def test_a_phase_tells_at_most_ten_messages(config: AlignConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"concurrency": 1, "iterations": 1})
    events: list[dict] = []
    job().execute(config, tmp_path / "run", on_event=events.append)
    messages = [event["message"] for event in events if event["message"].startswith("Iteration 1: rollouts")]
    assert len(messages) == 10 and messages[-1].endswith("30 of 30")


@pytest.mark.slow(15)
def test_the_three_best_checkpoints_stay(config: AlignConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"iterations": 5})
    whole: list[dict] = []
    result = job().execute(config, tmp_path / "whole", on_event=whole.append)
    ranked = sorted(result["history"], key=lambda row: -row["full_valid_mean_reward"])
    kept = sorted(row["step"] for row in ranked[:3])
    assert kept == sorted(int(path.name) for path in (tmp_path / "whole/iterations").iterdir())
    assert kept == [row["step"] for row in result["history"] if row["path"]]
    dropped = [event["data"]["step"] for event in whole if event["type"] == "checkpoint_dropped"]
    assert sorted([*kept, *dropped]) == [1, 2, 3, 4, 5]
    assert result["best_iteration"] == ranked[0]["step"]
    load_bundle(Path(result["best_checkpoint"]), model_hash="toy-hash", template_hash="toy-template")

    def dies(event: dict) -> None:
        if event["type"] == "checkpoint_dropped":
            raise Killed

    with pytest.raises(Killed):
        job().execute(config, tmp_path / "killed", on_event=dies)
    again: list[dict] = []
    resumed = job().execute(config, tmp_path / "killed", on_event=again.append)
    assert [event["data"]["step"] for event in again if event["type"] == "checkpoint_dropped"] == dropped
    assert [row["path"] is None for row in resumed["history"]] == [row["path"] is None for row in result["history"]]


def test_of_equal_checkpoints_the_earlier_stays() -> None:
    rewards = [0.5, 0.7, float("nan"), 0.7, 0.5]
    history = [{"step": i, "full_valid_mean_reward": reward, "path": "p"} for i, reward in enumerate(rewards, 1)]
    history.append({"step": 6, "full_valid_mean_reward": float("nan"), "path": None})
    assert [row["step"] for row in best(history, 3)] == [2, 4, 1]
    assert [row["step"] for row in best(history, 9)] == [2, 4, 1, 5, 3]


def test_a_reward_rises_above_all_earlier_ones_and_not_the_last_alone() -> None:
    rewards = {0.7: False, 0.9: False, 1.0: True}
    for reward, is_higher in rewards.items():
        history = [{"path": "p", "full_valid_mean_reward": each} for each in (0.5, 0.9, 0.6, reward)]
        assert rises(history) == is_higher
    assert rises([{"path": "p", "full_valid_mean_reward": each} for each in (float("nan"), 0.5)])


def test_the_checked_gain_is_of_the_iteration_that_is_served(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second iteration hardly guides: its rewards are those of the first, which stays the best."""
    betas: dict[str, tuple[float, ...] | None] = {}
    validate = Validation.validate

    def record(self, name, prompts, params, stack, *rest, **named):
        betas[name] = None if stack is None else stack.betas
        return validate(self, name, prompts, params, stack, *rest, **named)

    monkeypatch.setattr(Validation, "validate", record)
    write_prompts(config.training_file, 16)
    config = config.model_copy(update={"betas": [0.1, 1e6], "rollouts_per_prompt": 4})
    result = job().execute(config, tmp_path / "run")
    served = load_bundle(Path(result["best_checkpoint"]), model_hash="toy-hash", template_hash="toy-template")
    assert len(result["history"]) == 2 and result["best_iteration"] == 1
    assert betas["check-0"] is None and betas["check-best"] == served.betas == (0.1,)


def test_validations_alone_stop_a_job_and_make_checkpoints(config: AlignConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"iterations": 5, "eval_interval": 2, "early_stop": True})
    events: list[dict] = []
    result = job().execute(config, tmp_path / "run", on_event=events.append)
    steps = [event["data"]["step"] for event in events if event["type"] == "checkpoint"]
    assert steps == [2, 4, 5][: len(steps)]
    assert len(result["history"]) == steps[-1]
    assert (tmp_path / "run/metrics.csv").read_text().count("\n") == len(result["history"]) + 2


@pytest.mark.slow(6)
def test_validation_searches_are_averaged_and_the_first_is_as_ever(config: AlignConfig, tmp_path: Path) -> None:
    one = job().execute(config, tmp_path / "one")["history"][0]
    two = job().execute(config.model_copy(update={"eval_samples": 2}), tmp_path / "two")["history"][0]
    assert two["train_mean_reward"] == one["train_mean_reward"]
    assert two["full_valid_mean_reward"] != one["full_valid_mean_reward"]
    assert 0 < two["full_valid_error"] < one["full_valid_error"] * 1.1
    first, second = (Run(tmp_path / folder, seed=0).load("1-valid-0") for folder in ("one", "two"))
    assert first["rows"] == second["rows"]


FORMAT = {"type": "json_schema", "json_schema": {"name": "number", "strict": True, "schema": {"type": "integer"}}}


@pytest.mark.slow(8)
def test_completions_without_the_response_format_get_nothing(config: AlignConfig, tmp_path: Path) -> None:
    """Toy completions are digits: "120" is a JSON number, "012" and "" are not."""
    source = "def grade(sample, item): return 1 + sample['output_json'] % 10"
    config = config.model_copy(update={"grader": {"type": "python", "source": source}, "response_format": FORMAT})
    events: list[dict] = []
    result = job().execute(config, tmp_path / "run", on_event=events.append)
    assert any("response_format" in event["message"] for event in events if event["level"] == "warn")
    row, later = result["history"]
    assert row["mean_unresponsive_rewards"] == 0
    assert 0.1 < row["train_mean_parse_error"] < 0.9
    assert row["errors"]["graders"][0]["train_sample_parse_error_mean"] == row["train_mean_parse_error"]
    run = Run(tmp_path / "run", seed=0)
    shards = [path.stem.removesuffix("-rollouts") for path in (tmp_path / "run/checkpoints").glob("1-*-rollouts.pt")]
    rewards = [r for shard in shards for group in run.load(f"{shard}-rewards")["rewards"] for r in group]
    assert rewards.count(0.0) / len(rewards) == row["train_mean_parse_error"]
    assert later["full_valid_mean_parse_error"] < row["train_mean_parse_error"]  # the search has learnt to write JSON
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["response_format"] == FORMAT


@pytest.mark.slow(12)
def test_epochs_and_learning_rate_reach_the_fit(config: AlignConfig, tmp_path: Path) -> None:
    mlp = config.model_copy(update={"value_model": "mlp", "iterations": 1})
    found = {}
    for name, options in {"none": {}, "one": {"epochs": 1}, "slow": {"learning_rate_multiplier": 1e-6}}.items():
        job().execute(mlp.model_copy(update=options), tmp_path / name)
        found[name] = Run(tmp_path / name, seed=0).load("1-fit")
    assert found["none"]["setting"] > found["one"]["setting"] == 1
    assert found["slow"]["correlation"] != found["none"]["correlation"]


def test_samples_of_each_iteration_answer_the_same_held_out_prompts(config: AlignConfig, tmp_path: Path) -> None:
    """The toy's reward is how many of token 1 a text of digits has."""
    events: list[dict] = []
    job().execute(config, tmp_path / "run", on_event=events.append)
    by_step = {event["data"]["step"]: event["data"]["samples"] for event in events if "samples" in event["data"]}
    assert list(by_step) == [0, 1, 2]
    prompts = [sample["prompt"] for sample in by_step[0]]
    assert len(prompts) == 4 and set(prompts) <= {f"{n:06b}" for n in range(40)}
    for samples in by_step.values():
        assert [sample["prompt"] for sample in samples] == prompts
        assert all(sample["reward"] == sample["completion"].count("1") for sample in samples)
