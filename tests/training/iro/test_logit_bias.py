"""A bias for a closed chat endpoint: its parts that need no server (the whole: tests/e2e/test_closed_endpoint.py)."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from training.iro.data import AlignError
from training.iro.logit_bias import LogitBiasConfig, Setting, Trial, best_setting, split_rows
from value_heads.bias_fit import fit_bias


def config_for(path, **changes) -> LogitBiasConfig:
    options = {"url": "http://127.0.0.1:9/v1", "model": "m", "tokenizer": path.parent, "training_file": path}
    return LogitBiasConfig(**options | {"grader": {}} | changes)


def write_rows(path, prompts):
    path.write_text("".join(json.dumps({"prompt": prompt, "n": n}) + "\n" for n, prompt in enumerate(prompts)))
    return path


def test_equal_prompts_serve_one_purpose(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [f"prompt {n % 16}" for n in range(48)])
    parts = split_rows(config_for(path), np.random.default_rng(0))
    assert [len(part) for part in parts] == [24, 12, 12]
    texts = [{row["prompt"] for row in part} for part in parts]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n' * 40, "1 prompts are too few"),
        ('{"prompt": "a"}\nnot json\n', "line 2"),
        ('{"text": "a"}\n', 'line 1: not an object with either "messages" or "prompt"'),
    ],
)
def test_files_that_cannot_be_used_are_refused_by_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(AlignError, match=message):
        split_rows(config_for(path), np.random.default_rng(0))


BASE = Trial([0.0, 1.0, 0.0, 1.0], [0.8, 0.9, 1.0, 1.0])


def trial(*rewards: float, distinct_2: float = 0.95) -> Trial:
    return Trial(list(rewards), [distinct_2] * 4)


WEAK, STRONG, COOL = Setting(2.0, 1.0), Setting(4.0, 1.0), Setting(2.0, 0.5)


def test_a_setting_is_chosen_only_where_it_is_surely_better():
    assert best_setting({WEAK: trial(0.5, 1.4, 0.6, 1.5), STRONG: trial(0.9, 1.9, 1.0, 2.0)}, BASE) == STRONG
    assert best_setting({WEAK: trial(1.0, 0.2, 0.0, 1.0), COOL: trial(0.0, 1.0, 0.0, 1.0)}, BASE) is None


def test_a_setting_whose_answers_repeat_themselves_is_not_taken():
    repetitive = trial(0.9, 1.9, 1.0, 2.0, distinct_2=0.5)
    assert best_setting({WEAK: trial(0.5, 1.4, 0.6, 1.5), COOL: repetitive}, BASE) == WEAK
    assert best_setting({COOL: repetitive}, BASE) is None


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
