"""Which tilt a job keeps."""

from __future__ import annotations

import json
import math
import re
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest
import torch

from iro_server import JsonObject
from iro_server.engines.base import ModelInfo
from iro_server.engines.describe import Description
from iro_server.engines.frozen_model import FrozenModel
from iro_server.engines.prepare import prepare_model
from tests.training.iro.test_loop import comparable
from tests.training.iro.test_prefixes import Folder
from tests.value_heads.test_tilt import head, random_tilt
from training.iro.config import AlignConfig
from training.iro.data import AlignError, Prompt
from training.iro.diagnostics import mean_and_error
from training.iro.export import ROLLOUTS
from training.iro.fit import Shards
from training.iro.job import JOB
from training.iro.over_optimization import measures
from training.iro.rollouts import completions_of, stored
from training.iro.tilt_rows import TiltData
from training.iro.tilt_trials import NONE, Limits, Trial
from training.iro.tilting import TRIALS, Start, Tilting, rows_of_rollouts, tries_tilts
from training.iro.trials import SHARPNESS
from training.iro.validation import Validation
from training.iro.values import Bundles
from training.run import Run, RunEvent
from value_heads import ValueStack, load_bundle
from value_heads.tilt import TILT_PARTS, Tilt, fold_tilts, sharpened
from value_heads.tilt_rank import recompressed


def test_tilts_are_compared_with_all_rollouts_of_a_held_out_prompt(tmp_path: Path) -> None:
    """Ungraded ones count in the likelihood alone."""
    source, about = Folder(tmp_path), {"metrics_bytes": 0, "seconds": 0.0}
    drift = [{"tokens": 3.0, "logprobs": [-1.0, -2.0], "kl": 0.5}, {"tokens": 2.0, "logprobs": [-4.0, -5.0], "kl": 0.0}]
    shard: JsonObject = {"prompts": [7, 3], "usage": {}, "drift": drift, "prefixes": None}
    shard["tokens"] = [[[1, 2], [3]], [[4], [5]]]
    source.checkpoints.save("rollouts", stored(shard), about)
    source.checkpoints.save("rewards", {"rewards": [[1.0, math.nan], [0.0, 0.5]]}, about)
    prompts, names = [Prompt(3, (1,), {}), Prompt(7, (1,), {})], [("rollouts", "rewards")]
    second, first = rows_of_rollouts(source, prompts, names)
    assert first.pop("completions")[0] == measures([1, 2], -1.0)
    assert first == {"mean": 1.0, "logprob": -3.0, "tokens": 3.0, "kl": 0.5}
    assert second.pop("completions")[0]["perplexity"] == pytest.approx(math.exp(4.0))
    assert second == {"mean": 0.25, "logprob": -9.0, "tokens": 2.0, "kl": 0.0}
    rescored = rows_of_rollouts(source, prompts, names, lambda prompt, tokens: [-float(prompt.index)] * len(tokens))
    assert [row["logprob"] for row in rescored] == [-6.0, -14.0]
    source.checkpoints.save("rollouts", {"prompts": [7, 3], "usage": {}}, about)
    with pytest.raises(AlignError, match="start the job anew"):
        rows_of_rollouts(source, prompts, names)


def tilting_of(run: Run, tilt_round: int = 1, kind: type[Tilting] = Tilting, step: int = 1) -> Tilting:
    model = SimpleNamespace(info=SimpleNamespace(drift=True))
    data: Any = SimpleNamespace(model=model, steers=TILT_PARTS)
    validation: Any = SimpleNamespace(config=SimpleNamespace(tilt_rounds=3, max_kl=None, response_format=None))
    return kind(run, validation, data, step, tilt_round)


def test_tilts_are_fitted_under_the_schema_of_the_response_format(tmp_path: Path, small_model: Path) -> None:
    definition = {"enum": ["red", "blue"]}
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": definition}}
    model = Description.of_directory(small_model)
    data = TiltData({}, cast(Shards, None), model, lambda: cast(FrozenModel, None), TILT_PARTS)
    with closing(Run(tmp_path, seed=0)) as run:
        for config in (config_in(tmp_path), config_in(tmp_path, response_format=form)):
            tilting = Tilting(run, cast(Validation, SimpleNamespace(config=config)), data)
            assert tilting.data.schema == (config.response_format and json.dumps(definition))


def test_nats_cannot_be_limited_where_the_engine_does_not_know_them(tmp_path: Path) -> None:
    known, unknown = (cast(ModelInfo, SimpleNamespace(drift=drift)) for drift in (True, False))
    config, limited = config_in(tmp_path), config_in(tmp_path, max_kl=20.0)
    assert tries_tilts(limited, TILT_PARTS, known) and tries_tilts(config, TILT_PARTS, unknown)
    assert not tries_tilts(limited, frozenset(), unknown)
    with pytest.raises(AlignError, match="max_kl needs the frozen model in the job's own process"):
        tries_tilts(limited, TILT_PARTS, unknown)


def test_smc_searches_without_a_tilt_where_the_engine_does_not_report_what_to_correct_for(tmp_path: Path) -> None:
    known, unknown = (cast(ModelInfo, SimpleNamespace(drift=drift)) for drift in (True, False))
    config = config_in(tmp_path, selection="smc")
    assert tries_tilts(config, TILT_PARTS, known) and not tries_tilts(config, TILT_PARTS, unknown)


@pytest.mark.parametrize(
    ("gain", "logprob", "tilt_round", "sharpened"),
    [
        (1.0, -30.0, 1, []),
        (1.0, -30.0, 3, [("bias", 8.0, 0.5, 0.0)]),
        (0.0, -30.0, 1, [("none", 0.0, 0.5, 0.0)]),
        (0.0, -30.0, 3, [("none", 0.0, 0.5, 0.0)]),
        (1.0, -36.0, 1, []),
        (1.0, -36.0, 3, [("bias", 8.0, s, 0.0) for s in SHARPNESS] + [("none", 0.0, 0.5, 0.0)]),
        (1.0, -40.0, 1, [("bias", 8.0, s, 0.0) for s in SHARPNESS] + [("none", 0.0, 0.5, 0.0)]),
    ],
)
def test_lower_temperatures_are_tried_in_the_last_round_and_where_no_tilt_is_better(
    tmp_path: Path,
    gain: float,
    logprob: float,
    tilt_round: int,
    sharpened: list[tuple[str, float, float, float]],
) -> None:
    """``gain``: of a static bias of strength 8, whose text has the log-probability; all else is like the policy. Where
    others follow, that may be less: 1.8 times the policy's perplexity, not 2.7 times."""
    settings: list[tuple[str, float, float, float]] = []

    def tried(kind: str, strength: float, sharpness: float = 0.0, penalty: float = 0.0) -> Trial:
        settings.append((kind, strength, sharpness, penalty))
        biased = kind == "bias" and strength == 8
        row = {"mean": gain * biased, "logprob": logprob if biased else -30.0, "tokens": 10.0}
        return Trial(kind, strength, [row | {"completions": [{"distinct_2": 1.0}]}] * 2, sharpness, penalty)

    base = tried("none", 0.0)
    with closing(Run(tmp_path, seed=0)) as run:
        trials, is_last = tilting_of(run, tilt_round).new_trials(TRIALS, base, tried, Limits.of(base.rows))
    assert [setting for setting in settings if setting[2]] == sharpened
    assert is_last == (tilt_round == 3 or bool(sharpened)) and len(trials) == len(settings) - 1


class Scripted(Tilting):
    """Trials with the outcomes that it is given: reward and log-probability of ten tokens, by kind, strength and
    sharpness; others are like the policy."""

    outcomes: ClassVar[dict[tuple[str, float, float], tuple[float, float]]] = {}

    def fitted(self) -> dict[str, Tilt]:
        return {kind: TILT for kind in (*TRIALS, NONE)}

    def policy_rows(self, prompts: Any, names: Any) -> list[JsonObject]:
        return self.rows(NONE, 0.0, 0.0)

    def trial(self, kind: str, strength: float, sharpness: float, penalty: float, prompts: Any, tilt: Any) -> Trial:
        self.run.step(f"{self.prefix}tilt-{kind}-{strength}-sharpness-{sharpness}-1-of-1", dict)
        return Trial(kind, strength, self.rows(kind, strength, sharpness), sharpness, penalty)

    def rows(self, *setting: Any) -> list[JsonObject]:
        mean, logprob = self.outcomes.get(setting, self.outcomes[NONE, 0.0, 0.0])
        row = {"mean": mean, "logprob": logprob, "tokens": 10.0, "kl": 1.0}
        return [row | {"completions": [{"distinct_2": 1.0}]}] * 2


TILT = random_tilt(0)
LIKELY, UNLIKELY = -30.0, -36.0


@pytest.mark.parametrize(
    ("outcomes", "is_better", "strengths"),
    [
        ({("bias", 8.0, 0.0): (2.5, UNLIKELY), ("bias", 8.0, 0.5): (3.0, LIKELY)}, True, (8.0 + 1.0, 0.5)),
        ({("none", 0.0, 0.5): (2.5, LIKELY), ("none", 0.0, 1.0): (2.0, LIKELY)}, True, (1.0, 0.5)),
        ({("words", 1.0, 0.0): (1.5, LIKELY)}, True, (1.0 + 1.0, 0.0)),
        ({("words", 1.0, 0.0): (0.0, LIKELY)}, False, None),
    ],
)
def test_a_policy_that_is_too_unlikely_to_serve_ends_as_the_best_likely_one(
    tmp_path: Path, outcomes: dict[tuple[str, float, float], tuple[float, float]], is_better: bool, strengths: Any
) -> None:
    """A tilt that an early round kept, of reward 2: in the last one it is sharpened, or another one is better than the
    frozen model, of reward 0; else the frozen model is what there is. ``strengths``: of the bias, and its sharpness."""
    row = {"mean": 0.0, "logprob": LIKELY, "tokens": 10.0, "completions": [{"distinct_2": 1.0}]}
    frozen = Trial(NONE, 0.0, [row] * 2)
    with closing(Run(tmp_path, seed=0)) as run:
        tilting = tilting_of(run, 3, Scripted)
        tilting.data.policy, tilting.start, tilting.limits = TILT, Start(frozen, None), Limits.of(frozen.rows)
        tilting.outcomes = {("none", 0.0, 0.0): (2.0, UNLIKELY)} | outcomes
        tilt = tilting.choose([], [])
        assert tilting.outcome.is_better == is_better
        assert tilting.outcome.steps == ("further-2-tilts", "further-2-tilt-none")
        if strengths is None:
            assert tilt is None and tilting.outcome.tried.kept is frozen
        else:
            bias, sharpness = strengths
            expected = sharpened(fold_tilts([TILT], [bias]), sharpness)
            assert torch.equal(tilt.bias, expected.bias) and tilt.sharpness == expected.sharpness


@pytest.mark.parametrize(("step", "is_cut"), [(1, False), (2, True)])
def test_a_later_iteration_keeps_to_a_rank_and_tells_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, is_cut: bool
) -> None:
    """What is tried is what is kept. A first iteration's tilts stay the sum of their factors, round by round."""
    monkeypatch.setattr("training.iro.tilting.MAX_RANK", 4)
    events: list[RunEvent] = []
    with closing(Run(tmp_path, seed=0, on_event=events.append)) as run:
        tilting = tilting_of(run, 3, Scripted, step)
        tilting.data.policy, policy = random_tilt(1), random_tilt(1)
        tilting.data.frozen = SimpleNamespace(head_weight=head(), state_length=5.0)
        tilting.outcomes = {
            (NONE, 0.0, 0.0): (1.0, LIKELY),
            ("bias", 8.0, 0.0): (2.0, LIKELY),
            ("bias", 8.0, 0.5): (3.0, LIKELY),
        }
        tilt = tilting.choose([], [])
    folded = fold_tilts([policy, TILT], [1.0, 8.0])
    smaller, error = recompressed(folded, head(), 4, 5.0)
    assert tilt is not None and error > 0.1
    assert torch.equal(tilt.state_factor, sharpened(smaller if is_cut else folded, 0.5).state_factor)
    (event,) = (event for event in events if "tilts" in event["data"])
    assert event["data"].get("recompression") == ({"rank": 4, "error": pytest.approx(1.5 * error)} if is_cut else None)
    assert ("Its ranks were cut to 4: off by " in event["message"]) == is_cut


def test_a_tilt_is_no_further_than_a_job_allows(tmp_path: Path) -> None:
    """All trials of the script are a nat from the frozen model."""
    for max_kl, is_better in ((2.0, True), (0.5, False)):
        with closing(Run(tmp_path / str(max_kl), seed=0)) as run:
            tilting = tilting_of(run, 3, Scripted)
            tilting.validation.config.max_kl, tilting.data.policy = max_kl, None
            tilting.outcomes = {(NONE, 0.0, 0.0): (1.0, LIKELY), ("bias", 8.0, 0.0): (3.0, LIKELY)}
            tilting.choose([], [])
            assert tilting.limits.most_kl == max_kl and tilting.outcome.is_better == is_better


def test_trials_of_each_iteration_round_and_prompt_have_a_seed_of_their_own(tmp_path: Path) -> None:
    with closing(Run(tmp_path, seed=0)) as run:
        tiltings = [tilting_of(run, tilt_round, step=step) for step in (1, 2) for tilt_round in (1, 2)]
        seeds = {tilting.trial_seed(Prompt(index, (1,), {})) for tilting in tiltings for index in (0, 1)}
    assert len(seeds) == 8


def test_a_round_that_has_ended_keeps_to_the_trials_that_it_made(tmp_path: Path) -> None:
    """Its further rollouts were drawn from what it chose, by the rules of an earlier version perhaps."""
    trials = {
        "further-tilt-states-0.75-2-of-2": None,
        "further-tilt-states-0.75-1-of-2": ("states", 0.75, 0.0, 0.0),
        "further-tilt-none-0.0-sharpness-0.5-1-of-2": ("none", 0.0, 0.5, 0.0),
        "further-tilt-bias-8.0-penalty-1.0-sharpness-0.5-1-of-2": ("bias", 8.0, 0.5, 1.0),
        "tilt-words-3.0-1-of-2": None,
        "2-further-tilt-words-3.0-1-of-2": None,
        "further-2-tilt-words-3.0-1-of-2": None,
        "further-tilt-none": None,
        "further-tilts": None,
    }
    with closing(Run(tmp_path, seed=0)) as run:
        for name in trials:
            run.step(name, dict)
        assert tilting_of(run, 2).ended_settings() == []
        run.step("further-tilt-report", dict)
        assert set(tilting_of(run, 2).ended_settings()) == {setting for setting in trials.values() if setting}


def test_a_round_of_equal_tilts_keeps_the_same_one_when_the_job_goes_on(tmp_path: Path) -> None:
    """A grader that is satisfied gives every tilt its highest reward."""
    with closing(Run(tmp_path, seed=0)) as run:
        tiltings = [tilting_of(run, 1, Scripted) for _ in range(2)]
        for tilting in tiltings:
            tilting.data.policy = None
            tilting.outcomes = {(NONE, 0.0, 0.0): (0.0, LIKELY)}
            tilting.outcomes |= {(kind, strength, 0.0): (1.0, LIKELY) for kind in TRIALS for strength in TRIALS[kind]}
            tilting.choose([], [])
    first, resumed = ([trial.name for trial in tilting.outcome.tried.trials] for tilting in tiltings)
    assert resumed == first
    assert tiltings[1].outcome.tried.kept == tiltings[0].outcome.tried.kept


WORDS = "river lamp garden mirror kitchen train winter coffee soldier window island bridge candle forest"


def config_in(folder: Path, pairings: int = 1, **options: object) -> AlignConfig:
    """``pairings``: rows for each of 14 words."""
    train, valid = folder / "train.jsonl", folder / "valid.jsonl"
    words = WORDS.split()
    rows = [
        {
            "messages": [{"role": "user", "content": f"Write one sentence that uses the words {a} and {b}."}],
            "words": [a, b],
        }
        for shift in range(1, pairings + 1)
        for a, b in zip(words, words[shift:] + words[:shift], strict=True)
    ]
    train.write_text("".join(json.dumps(row) + "\n" for row in rows[:-4]))
    valid.write_text("".join(json.dumps(row) + "\n" for row in rows[-4:]))
    source = "def grade(sample, item): return sum(w in sample['output_text'].lower() for w in item['words']) / 2"
    return AlignConfig.model_validate(
        {
            "model_dir": prepare_model(),
            "training_file": train,
            "validation_file": valid,
            "grader": {"type": "python", "source": source},
            "iterations": 1,
            "rollouts_per_prompt": 8,
            "beam_width": 1,
            "num_successors": 4,
            "max_tokens": 20,
            "validation_prompts": 2,
        }
        | options
    )


@pytest.mark.slow
def test_a_job_keeps_a_tilt_and_says_what_each_row_buys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real model; a killed run's second half gives what one run does."""
    monkeypatch.setattr("training.iro.distance.FAR", 0.01)  # of a token: any tilt is
    config = config_in(tmp_path)
    events: list[RunEvent] = []
    result = JOB.execute(config, tmp_path / "run", on_event=events.append)
    rows = [price["rows"] for price in result["prices"]]
    assert rows in ([1, 2, 2, 2, 4, 4, 4], [4, 4, 4])  # with a tilt, and without
    warned = [event["data"]["kl_per_token"] for event in events if event["data"].get("code") == "distance"]
    assert warned == [price["kl_per_token"] for price in result["prices"] if price["rows"] == 1]
    strengths = [(each["rows"], each["search"]["strength"]) for each in result["strengths"]]
    assert strengths == ([(1, 0.25), (1, 0.5), (1, 0.75), (1, 1.0)] if len(rows) == 7 else [])
    nats = [each["kl"] for each in result["strengths"]]
    assert nats == sorted(nats)  # a weaker tilt is nearer to the frozen model
    assert [event["data"]["strengths"] for event in events if "strengths" in event["data"]] == [result["strengths"]]
    searches = [event["data"]["metrics"]["search"] for event in events if event["type"] == "checkpoint"]
    assert searches == [result["search"]]
    trials, *further = reported = [event["data"]["tilts"] for event in events if "tilts" in event["data"]]
    assert len(trials_told(events)) == sum(len(tilts) - 1 for tilts in reported)
    assert (trials[0]["kind"], trials[0]["kl"]) == ("none", 0.0) and all(trial["kl"] > 0 for trial in trials[1:])
    assert sum(trial["chosen"] for trial in trials) == bool(further) == (len(rows) == 7)
    with closing(Run(tmp_path / "run", seed=0)) as run:
        assert trials[0]["reward"] == pytest.approx(reward_mean(run, "1-heldout"))
        for (tilted, *_), draws in zip(further, ("1-tilted-heldout", "1-tilted-2-heldout"), strict=False):
            assert tilted["kind"] == "none" and tilted["kl"] > 0  # what a further round starts from: the tilt before it
            assert tilted["reward"] == pytest.approx(reward_mean(run, draws))
        assert run.has("1-tilted-train-0-rollouts") == (len(rows) == 7)
        (timing,) = (row["timing"]["step"] for row in result["history"])
        names = run.checkpoints.names()
        fits = [name for name in names if re.fullmatch(r"(further-(\d+-)?)?tilts", name)]
        tilt_trials = [name for name in names if re.match(r"(further-(\d+-)?)?tilt-[a-z]+-\d", name)]
        assert timing["choosing"] > run.seconds([*fits, *tilt_trials])
        base_tokens = sum(run.load(name)["finals"]["usage"]["base_tokens"] for name in tilt_trials)
        assert result["history"][0]["usage"]["choosing"]["base_tokens"] > base_tokens > 0
    info = json.loads((Path(result["best_checkpoint"]) / "manifest.json").read_text())
    hashes = {"model_hash": info["model_hash"], "template_hash": info["template_hash"]}
    stack = load_bundle(Path(result["best_checkpoint"]), **hashes)
    assert isinstance(stack, ValueStack) and (stack.tilt is not None) == (len(rows) == 7)
    for name in ("tilts.pt", "serve-report.pt"):
        (tmp_path / "run" / "checkpoints" / name).unlink(missing_ok=True)
    events.clear()
    assert comparable(JOB.execute(config, tmp_path / "run", on_event=events.append)) == comparable(result)
    assert not trials_told(events)  # they are not sampled a second time


def trials_told(events: list[RunEvent]) -> list[str]:
    return [event["message"] for event in events if event["message"].startswith("One row, ")]


@pytest.mark.slow(400)
def test_later_iterations_draw_from_the_tilted_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the real model: values of the first are fitted on draws of its tilt too, rollouts of the second drift from the
    frozen model, its values start again, and the steps that its events plan are those that it takes."""
    fewer = {"words": (2.0,), "states": (1.0,)}
    monkeypatch.setattr("training.iro.tilting.TRIALS", fewer)
    config = config_in(tmp_path, pairings=3, iterations=2, rollouts_per_prompt=16, max_tokens=24, tilt_rounds=1, seed=1)
    progress: list[JsonObject] = []

    def note(event: RunEvent) -> None:
        if event["type"] == "progress":
            progress.append(event["data"])

    result = JOB.execute(config, tmp_path / "run", on_event=note)
    with closing(Run(tmp_path / "run", seed=0)) as run:
        assert run.has("2-tilts"), "no tilt was kept: choose another seed"
        assert not run.has("further-tilts")  # the first round is the only one
        frozen, tilted, later = (reward_mean(run, part) for part in ("1-train", "1-tilted-train", "2-train"))
        assert frozen < min(tilted, later)
        untilted, drift = (run.load(f"1-{part}-0-rollouts")["drift"][0]["kl"] for part in ("train", "tilted-train"))
        assert untilted == 0 < drift
        trained = sum(len(row) for shard in shards_of(run, 1) for group in completions_of(run, shard) for row in group)
        assert run.load("1-fit")["trained_tokens"] == trained
        stack = Bundles(Description.of_directory(prepare_model()).info, prepare_model()).unpack(
            run.load("2-fit")["bundle"]
        )
    assert isinstance(stack, ValueStack) and len(stack.heads) == 1
    assert result["prices"][0]["name"] == "tilt"
    assert progress[-1]["done"] == progress[-1]["total"]


def reward_mean(run: Run, part: str) -> float:
    """Of a shard's prompts."""
    return mean_and_error([mean_and_error(group)[0] for group in run.load(f"{part}-0-rewards")["rewards"]])[0]


def shards_of(run: Run, step: int) -> list[str]:
    return [name for name in run.checkpoints.names() if (m := ROLLOUTS.fullmatch(name)) and m[1] == str(step)]
