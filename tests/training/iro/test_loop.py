"""The loop on a toy language model: what it learns, what it keeps, and what it does with graders that fail."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from iro_server.graders.parsing import parse_grader
from tests.toy import enumerate_completions
from tests.training.iro.toy_job import COUNT_ONES, MAX_TOKENS, MODEL, Killed, Toy, job, write_prompts
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Slice, check, split
from training.iro.fit import Scale, Shards, fit_head
from training.iro.rollouts import completions_of
from training.iro.validation import Validation
from training.run import Cancelled, Run
from value_heads import ValueStack, load_bundle


def test_the_aligned_model_beats_the_frozen_one_on_held_out_prompts(config: AlignConfig, tmp_path: Path) -> None:
    result = job().execute(config, tmp_path / "run")
    exact = []  # the frozen model's mean reward over the prompts, by enumeration
    for n in range(40):
        completions = enumerate_completions([int(c) for c in f"{n:06b}"], MAX_TOKENS)
        exact.append(sum(p * completion.count(1) for completion, p in completions.items()))
    assert result["baseline"]["full_valid_mean_reward"] == pytest.approx(sum(exact) / len(exact), abs=0.4)
    assert result["history"][0]["full_valid_mean_reward"] > result["baseline"]["full_valid_mean_reward"] + 0.5
    assert result["checks"][0]["holds"]
    assert result["history"][0]["correlation"] > 0.5  # tokens so far tell most of the count
    best = result["history"][result["best_iteration"] - 1]
    assert best["full_valid_mean_reward"] == max(row["full_valid_mean_reward"] for row in result["history"])
    stack = load_bundle(Path(result["best_checkpoint"]), model_hash="toy-hash", template_hash="toy-template")
    assert len(stack.betas) == result["best_iteration"]


def killer(at: int) -> Callable[[], bool]:
    """Dies when asked for the ``at``-th time whether to stop: before each step, and after each shard."""
    asked = iter(range(1, at + 1))

    def should_stop() -> bool:
        if next(asked) == at:
            raise Killed
        return False

    return should_stop


@pytest.mark.parametrize(
    "options",
    [{}, pytest.param({"value_model": "mlp", "eval_samples": 2, "selection": "smc"}, marks=pytest.mark.slow(20))],
)
def test_a_killed_job_goes_on_to_the_same_result(config: AlignConfig, tmp_path: Path, options: dict) -> None:
    config = config.model_copy(update=options)
    asked: list[int] = []
    whole = job().execute(config, tmp_path / "whole", should_stop=lambda: bool(asked.append(1)))
    for at in random.Random(0).sample(range(2, len(asked)), 4):
        killed = tmp_path / f"killed-{at}"
        with pytest.raises(Killed):
            job().execute(config, killed, should_stop=killer(at))
        done = {path: path.stat().st_mtime_ns for path in (killed / "checkpoints").glob("*.pt")}
        resumed = job().execute(config, killed)
        assert all(path.stat().st_mtime_ns == when for path, when in done.items())
        assert comparable(resumed) == comparable(whole)
        assert metrics_of(killed) == metrics_of(tmp_path / "whole")
        for bundle in (Path("iterations", str(t)) for t in (1, 2)):
            first, second = tmp_path / "whole" / bundle, killed / bundle
            assert (first / "manifest.json").read_text() == (second / "manifest.json").read_text()
            tensors, again = (load_file(folder / "value.safetensors") for folder in (first, second))
            assert tensors.keys() == again.keys() and all(torch.equal(tensors[key], again[key]) for key in tensors)


@pytest.mark.slow(7)
def test_a_killed_job_goes_on_from_object_storage(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value functions and all: what its folder keeps beside them is not needed."""
    whole = job().execute(config, tmp_path / "whole")
    monkeypatch.setenv("IRO_STORAGE", f"memory://{tmp_path.name}")
    with pytest.raises(Killed):
        job().execute(config, tmp_path / "killed", should_stop=killer(45))  # within the second iteration
    assert {path.name for path in (tmp_path / "killed").glob("c*")} == {"config.json"}
    assert comparable(job().execute(config, tmp_path / "killed")) == comparable(whole)
    assert metrics_of(tmp_path / "killed") == metrics_of(tmp_path / "whole")
    assert not (tmp_path / "killed/cache").exists()


def comparable(result: dict) -> dict:
    """What has to be equal: all but where the run lies, how long it took, and the revision of the code."""
    places_and_times = ("best_checkpoint", "versions", "timing")
    history = [{k: v for k, v in row.items() if k not in ("path", "timing")} for row in result["history"]]
    return {k: v for k, v in result.items() if k not in places_and_times} | {"history": history}


def metrics_of(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "timing"} for row in rows]


@pytest.mark.parametrize("after", [1, 15, 30, 52, 65])
def test_stops_within_one_shard(config: AlignConfig, tmp_path: Path, after: int) -> None:
    """In rollouts, validation and the choice of beta alike."""
    engine = Counting()
    config = config.model_copy(update={"concurrency": 4})
    with pytest.raises(Cancelled):
        job(engine).execute(config, tmp_path / "run", should_stop=lambda: engine.opened >= after)
    assert after <= engine.opened < after + config.concurrency * config.guided_searches


class Counting(Toy):
    opened = 0

    async def open(self, *args, **kwargs):
        self.opened += 1
        return await super().open(*args, **kwargs)


def test_events_tell_each_iteration_and_its_checkpoint(config: AlignConfig, tmp_path: Path) -> None:
    events: list[dict] = []
    result = job().execute(config, tmp_path / "run", on_event=events.append)
    messages = [event["message"] for event in events if event["type"] == "metrics"]
    for row, message in zip(result["history"], messages[1:], strict=True):
        assert message == (
            f"Step {row['step']}/2, train mean reward={row['train_mean_reward']:.3f}, "
            f"full validation mean reward={row['full_valid_mean_reward']:.3f}"
        )
    checkpoints = [event["data"] for event in events if event["type"] == "checkpoint"]
    assert [checkpoint["step"] for checkpoint in checkpoints] == [1, 2]
    assert checkpoints[result["best_iteration"] - 1]["metrics"]["search"] == result["search"]
    assert all((Path(checkpoint["path"]) / "manifest.json").exists() for checkpoint in checkpoints)
    by_token = {event["data"]["step"]: event["data"]["by_token"] for event in events if "by_token" in event["data"]}
    for row in result["history"]:
        recorded = row["by_position"]["stack_correlation"]
        points = zip(by_token[row["step"]]["tokens"], by_token[row["step"]]["correlation"], strict=True)
        assert dict(points) == {token: value for token, value in enumerate(recorded, start=1) if value is not None}


@pytest.mark.slow(5)
def test_rewards_are_reported_in_the_users_units(config: AlignConfig, tmp_path: Path) -> None:
    """A reward of other units changes nothing but the report: the fit sees standardised rewards."""
    scaled = COUNT_ONES.replace("count('1')", "count('1') * 1000 - 7")
    plain = job().execute(config, tmp_path / "plain")
    other = job().execute(
        config.model_copy(update={"grader": {"type": "python", "source": scaled}}), tmp_path / "scaled"
    )
    for row, scaled_row in zip(plain["history"], other["history"], strict=True):
        assert scaled_row["full_valid_mean_reward"] == pytest.approx(row["full_valid_mean_reward"] * 1000 - 7)
        assert scaled_row["correlation"] == pytest.approx(row["correlation"], abs=1e-4)


def test_a_grader_that_sometimes_fails_costs_only_those_samples(config: AlignConfig, tmp_path: Path) -> None:
    source = (
        "def grade(sample, item):\n"
        "    text = sample['output_text']\n"
        "    return float('nan') if len(text) == 6 and text[0] == '2' else text.count('1')\n"
    )
    events: list[dict] = []
    flaky = config.model_copy(update={"grader": {"type": "python", "source": source}})
    result = job().execute(flaky, tmp_path / "run", on_event=events.append)
    assert result["checks"][0]["holds"]
    assert any("could not be graded" in event["message"] for event in events if event["level"] == "warn")


def test_a_broken_grader_fails_the_job_with_its_own_error(config: AlignConfig, tmp_path: Path) -> None:
    broken = config.model_copy(update={"grader": {"type": "python", "source": "def grade(sample, item):\n    1 / 0\n"}})
    with pytest.raises(AlignError, match="division by zero") as failure:
        job().execute(broken, tmp_path / "run")
    assert failure.value.code == "grader_error"


# The mean of many 0.1 is not 0.1. The squares of the last are 0.
@pytest.mark.parametrize("reward", ["1", "0.1", "1e-200 * len(sample['output_text'])"])
def test_a_constant_reward_is_nothing_to_learn_from(config: AlignConfig, tmp_path: Path, reward: str) -> None:
    source = f"def grade(sample, item): return {reward}"
    constant = config.model_copy(update={"grader": {"type": "python", "source": source}})
    with pytest.raises(AlignError, match="nothing to learn"):
        job().execute(constant, tmp_path / "run")


def test_a_model_without_a_tilt_is_served_with_no_more_rows_than_the_maximum(
    config: AlignConfig, tmp_path: Path
) -> None:
    limited = config.model_copy(update={"max_rows": 4, "tilt": "off", "iterations": 1, "validation_prompts": 4})
    search = job().execute(limited, tmp_path / "run")["search"]
    assert (search["beam_width"], search["num_successors"]) == (2, 2)  # of 2 and 4


def test_every_final_is_kept_and_each_prompt_weighs_one(config: AlignConfig, tmp_path: Path) -> None:
    job().execute(config, tmp_path / "run")
    run = Run(tmp_path / "run", seed=0)
    rollouts = run.load("2-train-0-rollouts")
    finals: Counter[int] = Counter()
    for prompt, group in zip(rollouts["prompts"], completions_of(run, "2-train-0-rollouts"), strict=True):
        finals[prompt] += len(group)
    assert all(count >= config.guided_searches for count in finals.values())
    names = [("2-train-0-rollouts", "2-train-0-rewards")]
    graded = Shards(run, names, Scale()).graded(0)
    totals = graded.weights_R.new_zeros(64).index_add(0, graded.prompt_R, graded.weights_R)
    assert totals[list(finals)].tolist() == pytest.approx([1.0] * len(finals))


def test_prompts_of_an_iteration_are_its_own(config: AlignConfig, tmp_path: Path) -> None:
    job().execute(config, tmp_path / "run")
    run = Run(tmp_path / "run", seed=0)
    used = {
        step: {
            index
            for path in (tmp_path / "run/checkpoints").glob(f"{step}-*-rollouts.pt")
            for index in run.load(path.stem)["prompts"]
        }
        for step in (1, 2)
    }
    validation = {
        row["prompt"]
        for path in (tmp_path / "run/checkpoints").glob("0-valid-*.pt")
        for row in run.load(path.stem)["rows"]
    }
    assert len(used[1]) == len(used[2]) == 15
    assert not used[1] & used[2] and not (used[1] | used[2]) & validation


@pytest.mark.parametrize(("asked", "given"), [(None, 15), (4, 4), (20, 20), (1000, 30)])
def test_iterations_share_the_prompts_or_take_as_many_as_asked_for(
    config: AlignConfig, asked: int | None, given: int
) -> None:
    """Where iterations take prompts again, those that one holds out are not trained on by another."""
    limited = config.model_copy(update={"prompts_per_iteration": asked})
    slices = split(limited, MODEL, np.random.default_rng(0)).slices
    assert [len({prompt.index for prompt in [*part.train, *part.heldout]}) for part in slices] == [given, given]
    trained, held_out = (
        {prompt.index for part in slices for prompt in getattr(part, kind)} for kind in ("train", "heldout")
    )
    assert not trained & held_out and len(trained | held_out) == min(2 * given, 30)


def test_as_many_prompts_choose_and_as_many_check_as_are_asked_for(config: AlignConfig) -> None:
    prompts = split(config.model_copy(update={"validation_prompts": 4}), MODEL, np.random.default_rng(0))
    assert len(prompts.validation) == len(prompts.check) == 4


def test_rows_of_one_prompt_serve_one_purpose(config: AlignConfig) -> None:
    """Whatever else the rows hold: the answer to a prompt seen in training is no surprise when held out."""
    lines = [json.loads(line) for line in config.training_file.read_text().splitlines()]
    config.training_file.write_text("".join(json.dumps(row | {"n": n}) + "\n" for n in range(3) for row in lines))
    for seed in range(5):
        prompts = split(config, MODEL, np.random.default_rng(seed))
        parts = [part for each in prompts.slices for part in (each.train, each.heldout)]
        texts = [{prompt.token_ids for prompt in part} for part in [*parts, prompts.validation, prompts.check]]
        assert len(set.union(*texts)) == sum(map(len, texts)) == 40


def test_the_best_iteration_is_checked_on_prompts_that_did_not_choose_it(config: AlignConfig, tmp_path: Path) -> None:
    result = job().execute(config, tmp_path / "run")
    run = Run(tmp_path / "run", seed=0)
    rows = {name: run.load(f"{name}-0")["rows"] for name in ("0-valid", "check-0", "check-best")}
    chose, checked = ({row["prompt"] for row in rows[name]} for name in ("0-valid", "check-0"))
    assert chose and checked and not chose & checked
    gains = [after["value_pick"] - before["mean"] for before, after in zip(*list(rows.values())[1:], strict=True)]
    assert result["checks"][0]["got"].startswith(f"{np.mean(gains):.3f} ±")
    assert f"on {len(checked)} prompts that chose nothing" in result["checks"][0]["name"]


def test_few_prompts_are_said_to_show_no_gain(config: AlignConfig) -> None:
    for count, expected in ((40, []), (16, []), (12, ["1 prompt is left"]), (7, ["no prompt is left"])):
        write_prompts(config.training_file, count)
        with parse_grader(config.grader) as grader:
            warnings = check(config.model_copy(update={"iterations": 1}), MODEL, grader)
        assert [warning[: len(text)] for text, warning in zip(expected, warnings, strict=True)] == expected


def test_rows_of_one_prompt_show_no_gain(config: AlignConfig, tmp_path: Path) -> None:
    """However many they are, and where the only prompt of validation has to serve, that is said."""
    for name, count, claim in (("three", 3, "1 prompts that chose it"), ("twelve", 12, "1 prompts that chose nothing")):
        lines = write_prompts(config.training_file, count).read_text().splitlines()
        rows = (json.dumps(json.loads(line) | {"n": n}) for n in range(3) for line in lines)
        config.training_file.write_text("".join(f"{row}\n" for row in rows))
        result = job().execute(config.model_copy(update={"iterations": 1}), tmp_path / name)
        assert claim in result["checks"][0]["name"] and not result["checks"][0]["holds"]


@pytest.mark.slow(7)
def test_guided_rollouts_of_a_prompt_differ_from_their_first_token_on(config: AlignConfig, tmp_path: Path) -> None:
    """One search's finals are copies of one beam: at most tokens there would be nothing to learn from."""
    job().execute(config, tmp_path / "run")
    run = Run(tmp_path / "run", seed=0)
    shard = run.load("2-train-0-rollouts")
    prefixes: dict[int, set[tuple[int, ...]]] = {}
    for prompt, group in zip(shard["prompts"], completions_of(run, "2-train-0-rollouts"), strict=True):
        prefixes.setdefault(prompt, set()).update(tuple(tokens[:2]) for tokens in group)
    assert np.mean([len(distinct) for distinct in prefixes.values()]) > 2
    rows = config.beam_width * config.num_successors
    assert shard["usage"]["base_tokens"] <= len(prefixes) * rows * MAX_TOKENS
    share = run.load("2-fit")["variance_share"]  # after every fourth token, and at the end
    assert np.nansum(share) == pytest.approx(1) and share[3] > 0.1


def test_beta_is_chosen_by_a_value_function_that_has_not_seen_the_prompts(
    config: AlignConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stack in the trial is the fit on the training part alone; the one that is kept has read all prompts."""
    trials = []

    def choose(self: Validation, step: int, part: Slice, judged: ValueStack, *_: object) -> tuple:
        scale = Scale(**self.run.load("scale"))
        names = [
            [(f"1-{kind}-{i}-rollouts", f"1-{kind}-{i}-rewards") for i in range(n)] for kind, n in shard_counts(part)
        ]
        train, heldout = (Shards(self.run, shard_names, scale) for shard_names in names)
        trials.append((judged.heads[0].weight, fit_head(config, judged.heads[0].spec, train, heldout, 0)))
        return 1.0, []

    monkeypatch.setattr(Validation, "choose_beta", choose)
    job().execute(config.model_copy(update={"iterations": 1}), tmp_path / "run")
    ((judged, fitted),) = trials
    assert torch.equal(judged, fitted.judged.weight)
    saved = load_bundle(tmp_path / "run/iterations/1", model_hash="toy-hash", template_hash="toy-template")
    assert torch.equal(saved.heads[0].weight, fitted.head.weight)
    assert not torch.equal(saved.heads[0].weight, judged)


def shard_counts(part: Slice) -> list[tuple[str, int]]:
    return [("train", -(-len(part.train) // 8)), ("heldout", -(-len(part.heldout) // 8))]


def test_stops_once_held_out_reward_no_longer_rises(config: AlignConfig, tmp_path: Path) -> None:
    longer = config.model_copy(update={"iterations": 4, "early_stop": True})
    history = [row["full_valid_mean_reward"] for row in job().execute(longer, tmp_path / "run")["history"]]
    assert all(later > max(history[:i]) for i, later in enumerate(history[1:-1], 1))
    assert len(history) == 4 or history[-1] <= max(history[:-1])


def test_cancelling_keeps_what_was_done(config: AlignConfig, tmp_path: Path) -> None:
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 6

    with pytest.raises(Cancelled):
        job().execute(config, tmp_path / "run", should_stop=should_stop)
    assert (tmp_path / "run/checkpoints/1-train-0-rollouts.pt").exists()
    assert job().execute(config, tmp_path / "run")["history"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (['{"prompt": "0101"}', "{oops"], "line 2"),
        (['{"text": "0101"}'], "line 1.*messages"),
        (['{"prompt": 5}'], 'line 1: "prompt" is not a text'),
        ([json.dumps({"prompt": "0" * 5000})], "line 1: the prompt has 5000 tokens"),
        ([], "no rows"),
        (None, r"train\.jsonl: No such file or directory"),
        (['{"prompt": "0101"}'], "add 4 different prompts or more"),
    ],
)
def test_bad_training_rows_are_named(
    config: AlignConfig, tmp_path: Path, lines: list[str] | None, message: str
) -> None:
    if lines is None:
        config.training_file.unlink()
    else:
        config.training_file.write_text("\n".join(lines))
    with pytest.raises(AlignError, match=message) as error:
        job().execute(config, tmp_path / "run")
    assert error.value.param == "training_file" and not (tmp_path / "run/config.json").exists()


@pytest.mark.parametrize(
    "options", [pytest.param({"value_model": "mlp"}, marks=pytest.mark.slow(9)), {"return_lambda": 0.9}]
)
def test_other_fits_steer_as_well(config: AlignConfig, tmp_path: Path, options: dict) -> None:
    assert job().execute(config.model_copy(update=options), tmp_path / "run")["checks"][0]["holds"]


def test_zero_one_rewards_by_log_odds(config: AlignConfig, tmp_path: Path) -> None:
    source = "def grade(sample, item): return float(sample['output_text'].count('1') > 2)"
    binary = config.model_copy(update={"loss": "bce", "grader": {"type": "python", "source": source}})
    result = job().execute(binary, tmp_path / "run")
    assert result["reward_scale"] == {"mean": 0.0, "sd": 1.0}
    assert result["checks"][0]["holds"]


def test_bce_takes_no_reward_outside_0_to_1(config: AlignConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"loss": "bce"})
    with pytest.raises(AlignError, match=r"bce takes rewards in \[0, 1\]"):
        job().execute(config, tmp_path / "run")


@pytest.mark.slow(10)
def test_an_mlp_learns_from_the_returns_of_the_one_before(config: AlignConfig, tmp_path: Path) -> None:
    config = config.model_copy(update={"value_model": "mlp", "return_lambda": 0.5, "iterations": 1})
    assert job().execute(config, tmp_path / "run")["history"][0]["correlation"] > 0
