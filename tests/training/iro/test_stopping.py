"""A value function tells finished responses from unfinished ones, where the reward depends on when a response stops."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from tests.toy import END, VOCABULARY, ToyEngine, enumerate_completions
from tests.training.iro.toy_job import MAX_TOKENS as TOY_TOKENS
from tests.training.iro.toy_job import job, toy_config
from training.iro.config import BLOCK_PRIORS, block_scales, default_feature_spec
from training.run import Run
from value_heads import (
    FeatureSpec,
    ValueStack,
    features,
    fit_logistic,
    fit_mlp,
    fit_ridge,
    load_bundle,
    response_rows,
)
from value_heads.features import TOKENS
from value_heads.fit import Rows
from value_heads.heads import Head

PROMPT = (1, 0)
MAX_TOKENS, LIMIT = 7, 4  # the reward is 1 for a response that stops within LIMIT tokens, else 0


class Stopping:
    """All responses of the toy model, weighted by their exact probabilities. Hidden states are zero."""

    def __init__(self) -> None:
        weight_of = enumerate_completions(PROMPT, MAX_TOKENS)
        self.spec = default_feature_spec(ToyEngine.info, MAX_TOKENS)
        self.lengths_R = torch.tensor([len(tokens) for tokens in weight_of])
        self.tokens_RL = torch.tensor([[*tokens, *[-1] * (MAX_TOKENS - len(tokens))] for tokens in weight_of])
        self.weights_R = torch.tensor([*weight_of.values()], dtype=torch.float64)
        self.rewards_R = torch.tensor([float(tokens[-1] == END and len(tokens) <= LIMIT) for tokens in weight_of])

    def features(self, spec: FeatureSpec) -> torch.Tensor:
        zeros = torch.zeros(*self.tokens_RL.shape, VOCABULARY)
        return features(spec, {layer: zeros for layer in spec.layers} | {TOKENS: self.tokens_RL})

    def rows(self, stride: int) -> Rows:
        prompts_R = torch.zeros(len(self.lengths_R), dtype=torch.int64)
        return response_rows(
            self.features(self.spec), self.rewards_R, self.lengths_R, prompts_R, self.weights_R, stride
        )

    def mean_reward(self, t: int, finished: bool) -> float:
        """E[reward | the response has ended with token t] or E[reward | it goes on after token t]."""
        if finished:
            return float(t <= LIMIT)
        alive_R = (self.lengths_R > t) | ((self.lengths_R == t) & (self.tokens_RL[:, t - 1] != END))
        return float(self.weights_R[alive_R] @ self.rewards_R[alive_R].double() / self.weights_R[alive_R].sum())

    @torch.no_grad()
    def value(self, head: Head, t: int, finished: bool) -> float:
        at_R = (self.lengths_R == t) & (self.tokens_RL[:, t - 1] == END) if finished else self.lengths_R > t
        return float(head(self.features(head.spec))[at_R][0, t - 1])


@pytest.fixture(scope="module")
def stopping() -> Stopping:
    return Stopping()


@pytest.mark.slow(7)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_finished_less_living_value_is_the_difference_of_their_mean_rewards(stopping: Stopping, stride: int) -> None:
    head = fit_ridge(stopping.spec, [stopping.rows(stride)], alphas=[1e-12], within=True).head
    for living in range(stride, MAX_TOKENS, stride):
        for finished in range(1, MAX_TOKENS):
            difference = stopping.value(head, finished, True) - stopping.value(head, living, False)
            expected = stopping.mean_reward(finished, True) - stopping.mean_reward(living, False)
            assert difference == pytest.approx(expected, abs=1e-3), (finished, living)


def test_the_penalties_of_a_job_leave_the_difference(stopping: Stopping) -> None:
    """At the strengths of a fit to 50 prompts."""
    rows = stopping.rows(2)
    rows = rows._replace(weights=50 * rows.weights)
    ridge = partial(fit_ridge, stopping.spec, [rows], within=True, block_scales=block_scales(stopping.spec))
    for alpha in (0.01, 1.0):
        head = ridge(alphas=[alpha], block_priors=BLOCK_PRIORS).head
        in_time, late = (stopping.value(head, t, True) for t in (2, 6))
        living = stopping.value(head, 2, False)
        assert in_time - living == pytest.approx(1 - stopping.mean_reward(2, False), abs=0.1)
        assert late - living == pytest.approx(-stopping.mean_reward(2, False), abs=0.1)


@pytest.mark.slow(6)
def test_logistic_and_mlp_fits_see_it(stopping: Stopping) -> None:
    rows = [stopping.rows(1)]
    logistic = fit_logistic(stopping.spec, rows, alphas=[1e-4]).head
    mlp = fit_mlp(stopping.spec, rows, rows, learning_rate=1e-2, dropout=0.0, seed=1).head
    for t, finished in ((2, True), (6, True), (2, False)):
        expected = stopping.mean_reward(t, finished)
        assert torch.tensor(stopping.value(logistic, t, finished)).sigmoid() == pytest.approx(expected, abs=0.1)
        assert stopping.value(mlp, t, finished) == pytest.approx(expected, abs=0.1)


async def test_a_search_stops_in_time_as_often_as_the_best_of_as_many_samples(stopping: Stopping) -> None:
    """W=1: each round keeps the best of K. Where stopping in time is all that counts, it loses nothing to best-of-K."""
    head = fit_ridge(stopping.spec, [stopping.rows(2)], alphas=[1e-9], within=True).head
    stack, params = ValueStack([head], [1.0]), SearchParams(beam_width=1, num_successors=4, chunk_length=2)
    searches = 300
    in_time = 0
    for seed in range(searches):
        sampling = Sampling(seed=seed, stop_ids=(END,))
        result = await guided_search(ToyEngine(), PROMPT, params, sampling, MAX_TOKENS, stack)
        pick = result.finals[0].tokens
        in_time += pick[-1] == END and len(pick) <= LIMIT
    chance = 1 - (1 - float(stopping.weights_R @ stopping.rewards_R.double())) ** params.num_successors
    assert 0.3 < chance < 0.95
    assert in_time / searches > chance - 3 * math.sqrt(chance * (1 - chance) / searches)


def test_finished_completions_have_values_of_their_own(tmp_path: Path) -> None:
    """Where ones count for a finished completion and against one that is cut off, their values rank both."""
    grader = "def grade(sample, item):\n    text = sample['output_text']\n"
    grader += f"    return text.count('1') * (1 if len(text) < {TOY_TOKENS} else -1)\n"
    spec = FeatureSpec(summed=(0,), stop_ids=(END,), position=False, horizon=TOY_TOKENS)
    changes = {
        "grader": {"type": "python", "source": grader, "workers": 1},
        "feature_spec": spec,
        "iterations": 1,
        "rollouts_per_prompt": 16,
    }
    job().execute(toy_config(tmp_path).model_copy(update=changes), tmp_path / "run")
    stack = load_bundle(tmp_path / "run/iterations/1", model_hash="toy-hash", template_hash="toy-template")
    assert isinstance(stack, ValueStack)

    def value(*tokens: int) -> float:
        tokens_RL = torch.tensor([tokens])
        one_hot = torch.nn.functional.one_hot(tokens_RL, VOCABULARY).float()
        return float(stack.values({0: one_hot, TOKENS: tokens_RL})[0, -1])

    assert value(1, 1, 0, END) > value(1, 0, 0, END) + 0.2 > value(0, 2, 0, END) + 0.4
    assert value(1, 1, 1, 0, 1) < value(1, 0, 2, 0, 0) - 0.2


def test_a_spec_with_features_of_finished_completions_needs_no_second_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose held-out correlation would be the higher one."""
    correlations = iter((0.5, 0.4))
    monkeypatch.setattr("training.iro.fit.score", lambda *_: next(correlations))
    spec = FeatureSpec(summed=(0,), stop_ids=(END,), ended=True, position=False, horizon=TOY_TOKENS)
    config = toy_config(tmp_path).model_copy(update={"feature_spec": spec, "iterations": 1})
    result = job().execute(config, tmp_path / "run")
    assert result["checks"][0]["holds"] and Run(tmp_path / "run", seed=0).load("1-fit")["ended_setting"] is None


@pytest.mark.parametrize(("ended", "prefixes"), [(0.5, 0.4), (0.4, 0.4)])
def test_finished_completions_have_values_of_their_own_where_held_out_prompts_prefer_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended: float, prefixes: float
) -> None:
    """``ended``, ``prefixes``: held-out correlation of the two fits."""
    correlations = iter((ended, prefixes))
    monkeypatch.setattr("training.iro.fit.score", lambda *_: next(correlations))
    spec = FeatureSpec(summed=(0,), stop_ids=(END,), position=False, horizon=TOY_TOKENS)
    changes = {"feature_spec": spec, "iterations": 1}
    job().execute(toy_config(tmp_path).model_copy(update=changes), tmp_path / "run")
    assert (Run(tmp_path / "run", seed=0).load("1-fit")["ended_setting"] is not None) == (ended > prefixes)
