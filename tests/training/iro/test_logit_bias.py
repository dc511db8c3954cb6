"""A bias for a closed chat endpoint: its parts that need no server (the whole: tests/e2e/test_closed_endpoint.py)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

from iro_server import JsonObject
from iro_server.engines.prepare import prepare_model
from iro_server.graders.asking import Answer
from training.iro.data import AlignError
from training.iro.logit_bias import (
    JOB,
    PLAIN,
    BiasFit,
    Decoding,
    LogitBiasConfig,
    Setting,
    Trial,
    Varied,
    endpoint_key,
)
from training.iro.logit_bias_rows import Parts, split_rows
from training.iro.trials import best_trial
from value_heads.bias_fit import fit_bias


def config_for(path, **changes) -> LogitBiasConfig:
    options = {"url": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": path.parent, "training_file": path}
    return LogitBiasConfig(**options | {"grader": {}} | changes)


def write_rows(path, prompts):
    path.write_text("".join(json.dumps({"prompt": prompt, "n": n}) + "\n" for n, prompt in enumerate(prompts)))
    return path


def test_equal_prompts_serve_one_purpose(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [f"prompt {n % 16}" for n in range(48)])
    parts = split_rows(path, np.random.default_rng(0))
    assert [len(part) for part in parts] == [24, 12, 12]
    texts = [{row["prompt"] for row in part} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n' * 40, "1 prompts are too few"),
        ('{"prompt": "a"}\nnot json\n', "line 2"),
        ('{"text": "a"}\n', 'line 1: not an object with either "messages" or "prompt"'),
        ('{"messages": []}\n', "line 1: the prompt is empty"),
        (
            '{"prompt": "a", "tools": [{}]}\n{"messages": [{}], "tools": []}\n{"messages": [{}], "tools": [{}]}\n',
            "line 3: a bias is fitted to text, and a call of tools is none: leave out rows with tools",
        ),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(AlignError, match=message):
        split_rows(path, np.random.default_rng(0))


class Scripted(BiasFit):
    """A job whose answers are known: reward and distinct-2 of each setting, in the order in which they are tried."""

    def __init__(self, config: LogitBiasConfig, known: dict[Setting, tuple[float, float]]) -> None:
        self.config, self.known, self.tried = config, known, list[Setting]()

    def trial(self, setting: Setting) -> Trial:
        self.tried.append(setting)
        reward, distinct_2 = self.known[setting]
        return Trial(setting, [reward, reward + 1], [distinct_2] * 4)


BASE = Trial(PLAIN, [0.0, 1.0], [0.8, 0.9, 1.0, 1.0])
LIMITS = Varied.of(BASE)


@pytest.mark.parametrize(
    ("known", "chosen"),
    [
        ({Setting(2): (0.5, 0.95), Setting(4): (0.4, 0.95)}, Setting(2)),
        ({Setting(2): (0.5, 0.95), Setting(4): (0.6, 0.95), Setting(8): (0.7, 0.5)}, Setting(4)),
        (
            {Setting(2): (0.1, 0.95), Setting(4): (0.5, 0.95), Setting(8): (0.7, 0.95), Setting(16): (0.8, 0.9)},
            Setting(16),
        ),
    ],
)
def test_the_largest_strength_is_doubled_while_it_is_the_best_of_varied_answers(tmp_path, known, chosen):
    job = Scripted(config_for(tmp_path / "rows.jsonl", strengths=(2.0, 4.0)), known)
    assert best_trial(job.try_strengths(BASE, LIMITS), BASE, LIMITS).setting == chosen
    assert job.tried == list(known)


def test_a_temperature_falls_while_the_reward_rises(tmp_path):
    known = {Setting(2, 0.5): (0.6, 0.95), Setting(2, 1.0): (0.5, 0.95)}
    job = Scripted(config_for(tmp_path / "rows.jsonl", temperature=0.9), known)
    job.try_temperatures([Trial(Setting(2), [0.5, 1.5], [0.95] * 4)], BASE, LIMITS)
    assert [job.temperature(setting) for setting in job.tried] == pytest.approx([0.6, 0.45])


REPEATING, MORE_REPEATING = (Trial(Setting(s), [s / 10, s / 10 + 1], [0.5] * 4) for s in (4, 8))


def test_answers_that_repeat_themselves_are_penalised_from_the_highest_reward_down(tmp_path):
    known = {
        Setting(8, 0.0, 1.0): (0.9, 0.5),
        Setting(8, 0.0, 2.0): (0.9, 0.6),
        Setting(4, 0.0, 1.0): (0.4, 0.6),
        Setting(4, 0.0, 2.0): (0.4, 0.9),
    }
    job = Scripted(config_for(tmp_path / "rows.jsonl"), known)
    varied = Trial(Setting(2), [0.2, 1.2], [0.95] * 4)
    trials = job.try_penalties([varied, REPEATING, MORE_REPEATING], BASE, LIMITS)
    assert job.tried == list(known)
    assert best_trial([varied, *trials], BASE, LIMITS).setting == Setting(4, 0.0, 2.0)


def test_no_penalty_is_tried_where_varied_answers_have_the_highest_reward_or_the_endpoint_takes_none(tmp_path):
    varied = Trial(Setting(2), [0.9, 1.9], [0.95] * 4)
    assert not Scripted(config_for(tmp_path / "rows.jsonl"), {}).try_penalties([varied, REPEATING], BASE, LIMITS)
    without = config_for(tmp_path / "rows.jsonl", presence_penalties=())
    assert not Scripted(without, {}).try_penalties([REPEATING], BASE, LIMITS)


class EndpointOfSingleChoices:
    """Ignores ``n``. Each answer names its request's seed."""

    def __init__(self) -> None:
        self.requests: list[JsonObject] = []

    def ask(self, requests: Sequence[JsonObject]) -> list[Answer]:
        self.requests.extend(requests)
        choices = [[{"message": {"content": f"seed {request['seed']}"}}] for request in requests]
        return [Answer(tokens=5, body={"choices": choice}) for choice in choices]


def test_an_endpoint_that_ignores_n_is_asked_for_the_missing_answers_with_other_seeds(tmp_path):
    job, endpoint = Scripted(config_for(tmp_path / "rows.jsonl", samples_per_prompt=3), {}), EndpointOfSingleChoices()
    job.asker = endpoint
    texts, tokens = job.answer_texts([{"prompt": "a"}, {"prompt": "b"}], [10, 2**31 - 1], Decoding({}, 1.0))
    assert texts == [["seed 10", "seed 11", "seed 12"], [f"seed {2**31 - 1}", "seed 0", "seed 1"]]
    assert tokens == 30 and [request["n"] for request in endpoint.requests] == [3, 3, 2, 2, 1, 1]


def test_a_key_that_no_header_takes_is_named_by_its_variable(monkeypatch):
    monkeypatch.setenv("IRO_ENGINE_KEY", "sk-secret\n")
    assert endpoint_key() == "sk-secret"
    monkeypatch.setenv("IRO_ENGINE_KEY", "sk-sec\rret")
    with pytest.raises(AlignError, match=r"^IRO_ENGINE_KEY holds a control") as refused:
        endpoint_key()
    assert "sk-" not in str(refused.value)


class EndpointWithoutPenalties:
    """Says "the" where a bias asks for it, and refuses a presence penalty."""

    asked: ClassVar[list[JsonObject]] = []

    def __init__(self, endpoint: object) -> None: ...

    def close(self) -> None: ...

    def ask(self, requests: Sequence[JsonObject]) -> list[Answer]:
        self.asked.extend(requests)
        if any("presence_penalty" in request for request in requests):
            return [Answer(error="unknown field presence_penalty")] * len(requests)
        return [Answer(tokens=8, body={"choices": self.choices(request)}) for request in requests]

    def choices(self, request: JsonObject) -> list[JsonObject]:
        texts = ["a dog ran to the sea and swam", "a dog ran to a lake and swam"] * (request["n"] // 2)
        if "logit_bias" in request:
            texts = ["the the the the the the the the"] * request["n"]
        return [{"message": {"content": text}} for text in texts]


def test_a_run_whose_endpoint_refuses_penalties_goes_on_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr("training.iro.logit_bias.Asker", EndpointWithoutPenalties)
    path = write_rows(tmp_path / "rows.jsonl", [f"prompt {n}" for n in range(16)])
    source = "def grade(sample, item): return sample['output_text'].split().count('the')"
    config = {"url": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": prepare_model(), "training_file": path}
    config |= {"grader": {"type": "python", "source": source}, "strengths": [4.0]}
    with pytest.raises(AlignError, match=r"unknown field presence_penalty; presence_penalties=\[\] tries none"):
        JOB.execute(config, tmp_path / "run")
    before = len(EndpointWithoutPenalties.asked)
    result = JOB.execute(config | {"presence_penalties": []}, tmp_path / "run")
    assert result["setting"]["strength"] == 0.0 and not result["improved"]
    asked = [(request["temperature"], "logit_bias" in request) for request in EndpointWithoutPenalties.asked[before:]]
    assert Counter(asked) == {(1.0, False): 4, (1.0 / 1.5, False): 4}  # its check and a trial; nothing is sampled twice


def test_a_request_names_only_what_it_changes():
    assert Decoding({}, 1.0).request() == {"temperature": 1.0}
    expected = {"temperature": 0.5, "logit_bias": {"7": 2.0}, "presence_penalty": 1.0}
    assert Decoding({7: 2.0}, 0.5, 1.0).request() == expected


@pytest.mark.parametrize("penalty", [0.0, -1.0, 2.5, float("nan")])
def test_penalties_are_those_that_the_api_takes(tmp_path, penalty):
    with pytest.raises(ValueError, match="presence_penalties"):
        config_for(tmp_path / "rows.jsonl", presence_penalties=(penalty,))


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan"), float("inf")])
def test_strengths_are_positive(tmp_path, strength):
    with pytest.raises(ValueError, match="strengths"):
        config_for(tmp_path / "rows.jsonl", strengths=(strength,))


def test_without_an_output_head_the_rewarded_token_has_the_largest_weight():
    generator = torch.Generator().manual_seed(0)
    completions = [torch.randint(20, (12,), generator=generator).tolist() for _ in range(256)]
    prompts_R = torch.arange(256) // 8
    rewards_R = torch.tensor([float(tokens.count(7) - tokens.count(3)) for tokens in completions])
    bias_V = fit_bias(completions, prompts_R, rewards_R, torch.zeros(30, 0))
    assert bias_V.argmax() == 7 and bias_V.argmin() == 3
    assert bias_V[20:].unique().numel() == 1  # tokens that no completion holds


@pytest.mark.parametrize(
    ("gains", "improved"),
    [
        ((0.5, -0.2, 0.4, 0.1), False),
        ((0.4, 0.3, 0.1, 0.05), False),  # 0.21 ± 0.16 by the normal approximation, ± 0.26 by Student's t
        ((0.4, 0.3, 0.2, 0.1), True),
    ],
)
def test_a_request_is_an_improvement_where_the_interval_of_its_gain_is_above_0(tmp_path, gains, improved):
    chosen, events = Setting(4), list[tuple[str, str]]()
    rewards = {PLAIN: [0.0, 1.0, 2.0, 3.0], chosen: [n + gain for n, gain in enumerate(gains)]}
    job = Scripted(config_for(tmp_path / "rows.jsonl"), {})
    job.run = SimpleNamespace(emit=lambda kind, message, level: events.append((level, message)))
    job.checked = lambda setting: [{"rewards": [[reward] for reward in rewards[setting] * 10]}]
    rows = [{"prompt": f"prompt {n % 4}", "answer": n} for n in range(40)]  # each prompt's tell of one prompt
    job.parts = Parts([], [], rows)
    result = job.check(chosen)
    assert result["gain"] == pytest.approx(sum(gains) / 4) and result["improved"] == improved
    ((level, message),) = events
    assert level == ("info" if improved else "warn")
    assert ("request.json is not shown to be better" in message) != improved
    assert not job.check(PLAIN)["improved"] and "request.json is the plain request" in events[-1][1]


def test_entries_are_within_what_the_api_takes(tmp_path):
    job = Scripted(config_for(tmp_path / "rows.jsonl", entries=3), {})
    assert job.entries(torch.tensor([-250.0, 0.0, 130.0, 5.0, 1.0])) == {0: -100.0, 2: 100.0, 3: 5.0}
