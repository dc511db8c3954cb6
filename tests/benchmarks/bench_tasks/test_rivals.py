"""Decoding methods against their papers' equations, on the toy model, whose distributions are enumerated."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.bench_tasks.answers import Answer
from benchmarks.bench_tasks.args import Args
from benchmarks.bench_tasks.dvts import SUBTREE_ROWS, Dvts
from benchmarks.bench_tasks.methods import METHODS, Blockwise
from benchmarks.bench_tasks.piece import Piece
from benchmarks.bench_tasks.smc import Smc
from benchmarks.bench_tasks.strengths import STRENGTHS, ScaledValues, at_best_strength
from benchmarks.bench_tasks.token_values import TokenValues
from benchmarks.bench_tasks.vas import Vas
from tests.toy import END, VOCABULARY, ToyEngine, ToyScorer, enumerate_completions, next_probs
from training.iro.data import Prompt
from value_heads.tilt import zero_tilt

START, LENGTH, ANSWERS, FEWER_ANSWERS = (0, 1), 3, 2000, 1000
Distribution = dict[tuple[int, ...], float]
CANDIDATES = 3


def value(tokens: tuple[int, ...]) -> float:
    """Different for all completions, so that their order is one."""
    return 0.9 * tokens.count(1) - 0.4 * tokens.count(0) + sum(t * 0.013 * 5.0**-i for i, t in enumerate(tokens))


def piece(chunk_length: int = 1, max_tokens: int = LENGTH, **fields: Any) -> Piece:
    config: Any = SimpleNamespace(chunk_length=chunk_length, concurrency=64, max_tokens=max_tokens)
    task: Any = SimpleNamespace(name="toy", max_tokens=max_tokens)
    defaults: dict[str, Any] = {"grader": None, "step": lambda name, compute: compute()}
    engine: Any = fields.pop("engine", None) or ToyEngine()
    return Piece(config, task, 0, Path(), engine, **defaults | fields)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(index, START, {}) for index in range(count)]


def frequencies(answers: list[Answer]) -> Distribution:
    return {tokens: count / len(answers) for tokens, count in Counter(tuple(a.tokens) for a in answers).items()}


def total_variation(first: Distribution, second: Distribution) -> float:
    return 0.5 * sum(abs(first.get(y, 0.0) - second.get(y, 0.0)) for y in first.keys() | second.keys())


def by_tokens(next_of: Callable[[tuple[int, ...]], torch.Tensor]) -> Distribution:
    """The distribution over completions of a policy, given its next-token distribution after some tokens."""
    return {
        body: math.prod(float(next_of(body[:i])[token]) for i, token in enumerate(body))
        for body in enumerate_completions(START, LENGTH)
    }


def scores(body: tuple[int, ...], strength: float) -> torch.Tensor:
    """log pi_0(a|s) + w V(s.a) of the likeliest tokens, -inf elsewhere."""
    logprobs = next_probs([*START, *body]).double().log()
    all_scores = logprobs + strength * torch.tensor([value((*body, token)) for token in range(len(logprobs))])
    return all_scores.masked_fill(logprobs < logprobs.sort().values[-CANDIDATES], -math.inf)


@pytest.fixture
def three_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TokenValues.__init__, "__defaults__", (CANDIDATES,))


@pytest.mark.usefixtures("three_candidates")
def test_vas_samples_the_softmax_over_the_likeliest_tokens() -> None:
    exact = by_tokens(lambda body: scores(body, 1.5).softmax(0))
    assert sum(exact.values()) == pytest.approx(1)
    answers = Vas(piece(), ToyScorer(value), 1.5).answers(prompts(ANSWERS), 1, 0)
    assert total_variation(frequencies(answers), exact) < 0.03
    without_values = by_tokens(lambda body: scores(body, 0.0).softmax(0))
    assert total_variation(frequencies(answers), without_values) > 0.2


@pytest.mark.usefixtures("three_candidates")
@pytest.mark.parametrize("strength", [0.0, 0.7, 4.0])
def test_args_takes_the_token_of_the_highest_score(strength: float) -> None:
    (answer,) = Args(piece(), ToyScorer(value), strength).answers(prompts(1), 1, 0)
    body: tuple[int, ...] = ()
    while len(body) < LENGTH and END not in body:
        body = (*body, int(scores(body, strength).argmax()))
    assert tuple(answer.tokens) == body


@pytest.mark.usefixtures("three_candidates")
def test_every_candidate_is_a_base_token_and_kl_is_exact() -> None:
    for answer in Vas(piece(), ToyScorer(value), 1.5).answers(prompts(20), 1, 0):
        kl = 0.0
        for i, token in enumerate(answer.tokens):
            body = tuple(answer.tokens[:i])
            q, p = scores(body, 1.5).softmax(0), next_probs([*START, *body]).double()
            kl += float((torch.special.xlogy(q, q) - torch.special.xlogy(q, p)).sum())
            assert answer.logprobs[i] == pytest.approx(float(p[token].log()), abs=1e-5)
        assert answer.kl == pytest.approx(kl, abs=1e-5)
        assert answer.base_tokens == CANDIDATES * len(answer.tokens)
        assert answer.finished == (answer.tokens[-1] == END)
    (greedy,) = Args(piece(), ToyScorer(value), 1.0).answers(prompts(1), 1, 0)
    assert greedy.kl == pytest.approx(-sum(greedy.logprobs), abs=1e-5)


@pytest.mark.slow(9)
def test_smc_picks_draws_from_the_target_as_particles_grow() -> None:
    weights = {y: p * math.exp(1.5 * value(y)) for y, p in enumerate_completions(START, LENGTH).items()}
    exact = {y: weight / sum(weights.values()) for y, weight in weights.items()}
    few, many = (Smc(piece(), ToyScorer(value), 1.5).answers(prompts(600), particles, 0) for particles in (4, 32))
    frozen = total_variation(enumerate_completions(START, LENGTH), exact)
    distances = [frozen, *(total_variation(frequencies(answers), exact) for answers in (few, many))]
    assert distances[0] > 0.4 and distances[0] - 0.1 > distances[1] > distances[2] + 0.1
    assert distances[2] < 0.15  # of which 0.07 are expected of 600 draws alone
    assert all(answer.base_tokens > 32 for answer in many)


def best_of(distribution: Distribution, draws: int) -> Distribution:
    """Of the draw of the highest value: P(y) = F(y)^n - F(<y)^n."""
    below, best = 0.0, {}
    for y in sorted(distribution, key=value):
        upto = below + distribution[y]
        best[y] = upto**draws - below**draws
        below = upto
    return best


def blockwise_next(rows: int) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """The next token of blocks of one: that of the highest value among so many draws."""

    def next_of(body: tuple[int, ...]) -> torch.Tensor:
        continuations = {(*body, token): float(p) for token, p in enumerate(next_probs([*START, *body]))}
        best = best_of(continuations, rows)
        return torch.tensor([best[continuation] for continuation in continuations])

    return next_of


@pytest.mark.parametrize("chunk_length", [1, LENGTH])
def test_blockwise_keeps_the_best_of_its_continuations_by_a_chunk(chunk_length: int) -> None:
    """One chunk to the end is best-of-n by value, P(y) = F(y)^n - F(<y)^n; chunks of a token are that at each."""
    laws = {1: by_tokens(blockwise_next(3)), LENGTH: best_of(enumerate_completions(START, LENGTH), 3)}
    exact = laws.pop(chunk_length)
    scorer: Any = ToyScorer(value)
    answers = Blockwise(piece(chunk_length), scorer).answers(prompts(FEWER_ANSWERS), 3, 0)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-5)
    assert total_variation(frequencies(answers), exact) < 0.08  # 0.05 to 0.06 are expected of so many draws
    assert all(total_variation(frequencies(answers), law) > 0.3 for law in laws.values())
    assert all(3 <= answer.base_tokens <= 3 * LENGTH and answer.reward_calls == 0 for answer in answers)


class BiasedToyEngine(ToyEngine):
    """Steered by the bias and the sharpness of a tilt: A(s,a) = b[a] + sharpness log pi_0(a|s)."""

    async def open(self, prompt_ids: Any, sampling: Any, layers: Any = (), steering: Any = None, head_rows: Any = None):
        def addition(tokens: tuple[int, ...]) -> torch.Tensor:
            return steering.tilt.bias + steering.tilt.sharpness * next_probs(tokens).log()

        toy: Any = SimpleNamespace(tilt=addition, strength=steering.strength) if steering else None
        return await super().open(prompt_ids, sampling, layers, toy, head_rows)


class ValueGrader:
    """The value of a text of token ids."""

    def grade_many(self, pairs: list[Any]) -> list[Any]:
        completions = [tuple(map(int, sample.output_text.split())) for sample, _ in pairs]
        return [SimpleNamespace(error=None, reward=value(tokens)) for tokens in completions]


@pytest.mark.parametrize(("rows", "strength", "temperature"), [(1, 2.0, 0.5), (2, 1.0, 1.0)])
def test_a_static_bias_is_drawn_as_validation_prefers_for_so_many_rows(
    rows: int, strength: float, temperature: float
) -> None:
    """q(a|s) = (pi_0(a|s) exp(w b[a]))^(1/temperature), normalised; of several rows the one of the highest reward.

    A strong and cold bias has the higher mean reward on validation prompts, a weaker one the better of two samples."""
    bias, no_tilt = torch.tensor([0.9, -0.7, 0.4, -0.2]), zero_tilt(VOCABULARY, 2, (), (END,))
    tried = [
        {"tilt": 1, "sharpness": 1.0, "penalty": 0.0, "usual": True, "rewards": [[2.0, 2.0]]},
        {"tilt": 0, "sharpness": 0.0, "penalty": 0.0, "usual": True, "rewards": [[0.0, 3.0]]},
        {"tilt": 0, "sharpness": 1.0, "penalty": 0.0, "usual": False, "rewards": [[9.0, 9.0]]},
    ]
    engine: Any = BiasedToyEngine()
    engine.tokenizer = SimpleNamespace(decode=lambda tokens, skip_special_tokens: " ".join(map(str, tokens)))
    toy = piece(engine=engine, grader=ValueGrader(), step=lambda name, compute: {"tried": tried})
    biases = [replace(no_tilt, bias=each * bias) for each in (1.0, 2.0)]
    vars(toy).update(no_tilt=no_tilt, trained=SimpleNamespace(stack=ToyScorer(value), static_biases=biases))
    answers = METHODS["static_bias"].build(toy).answers(prompts(FEWER_ANSWERS), rows, 0)

    def next_of(body: tuple[int, ...]) -> torch.Tensor:
        logits = next_probs([*START, *body]).double().log() + strength * bias
        return (logits / temperature).softmax(0)

    assert total_variation(frequencies(answers), best_of(by_tokens(next_of), rows)) < 0.08
    assert total_variation(enumerate_completions(START, LENGTH), best_of(by_tokens(next_of), rows)) > 0.2


@pytest.mark.slow(10)
def test_dvts_is_the_best_of_independent_subtrees() -> None:
    subtree = by_tokens(blockwise_next(SUBTREE_ROWS))
    answers = Dvts(piece(), ToyScorer(value)).answers(prompts(ANSWERS), 2 * SUBTREE_ROWS, 0)
    assert sum(subtree.values()) == pytest.approx(1, abs=1e-5)
    assert total_variation(frequencies(answers), best_of(subtree, 2)) < 0.05  # 0.03 are expected of so many draws
    assert total_variation(subtree, best_of(subtree, 2)) > 0.1


def test_a_strength_scales_the_values() -> None:
    single, doubled = (
        Smc(piece(), values, strength).answers(prompts(40), 8, 0)
        for values, strength in ((ToyScorer(value), 2.0), (ScaledValues(ToyScorer(value), 2.0), 1.0))
    )
    assert [answer.tokens for answer in single] == [answer.tokens for answer in doubled]


def test_the_strength_of_the_highest_validation_reward_is_taken() -> None:
    """A reward that no strength gains from by chance: it is the number of tokens of a text, and a method's text."""
    steps: dict[str, Any] = {}

    def step(name: str, compute: Callable[[], Any]) -> Any:
        return steps.setdefault(name, compute())

    class Grader:
        def grade_many(self, pairs: list[Any]) -> list[Any]:
            return [SimpleNamespace(error=None, reward=-abs(float(sample.output_text) - 4.0)) for sample, _ in pairs]

    class Method:
        def __init__(self, piece: Piece, values: Any, strength: float) -> None:
            self.strength = strength

        def answers(self, prompts: list[Prompt], rows: int, seed: int) -> list[Answer]:
            return [Answer([int(self.strength)], [0.0], True, base_tokens=rows) for _ in prompts]

    toy = piece(grader=Grader(), step=step)
    toy.engine.tokenizer = SimpleNamespace(decode=lambda tokens, skip_special_tokens: str(tokens[0]))
    vars(toy).update(validation=prompts(5), trained=SimpleNamespace(stack=ToyScorer(value)))
    method: Any = at_best_strength(toy, "method", Method, rows=2)
    assert method.strength == 4.0
    tuning = steps["method-strength"]
    assert [trial["strength"] for trial in tuning["tried"]] == list(STRENGTHS)
    assert tuning["reward_calls"] == 5 * len(STRENGTHS) and tuning["base_tokens"] == 2 * 5 * len(STRENGTHS)
    vars(toy).update(trained=SimpleNamespace(stack=None))
    assert at_best_strength(toy, "method", Method).strength == 0  # type: ignore[attr-defined]
