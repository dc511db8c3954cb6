"""Tilts: folding, what they read of a prompt, and a fit whose minimum is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from value_heads.length_features import NUM_LENGTH_FEATURES, length_features
from value_heads.prompt_features import FEATURES, TokenGroups, candidate_features, common_tokens
from value_heads.tilt import (
    BoundTilt,
    Tilt,
    fold_tilts,
    sharpened,
    with_repetition_penalty,
    with_sharpness,
    zero_tilt,
)
from value_heads.tilt_export import head_adapter
from value_heads.tilt_fit import TiltFit, TiltRows, fit_tilt, tilt_loss

WORDS = ["Ġriver", "river", "River", "Ġlamp", "Ġa", "a", ".", "<end>", "Ġ", "ĠLAMP", "Ġsea", "sea"]
GROUPS = TokenGroups(WORDS)
VOCABULARY, WIDTH, STOP = len(WORDS), 6, 7
PROMPT = [4, 0, 6, 3, 8]  # " a river. lamp "


def random_tilt(seed: int, rank: int = 3) -> Tilt:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Tilt(
        bias=normal(VOCABULARY),
        state_factor=normal(rank, WIDTH + 1),
        token_factor=normal(rank, WIDTH),
        gates=normal(len(FEATURES), WIDTH + 1),
        ignored=(4,),
        stop_ids=(STOP,),
        length_factor=normal(rank, NUM_LENGTH_FEATURES) if seed % 3 else None,
        length_stop=normal(NUM_LENGTH_FEATURES) if seed % 3 else None,
    )


def head() -> torch.Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(99))


def additions(tilt: Tilt, states: torch.Tensor, response: list[int]) -> torch.Tensor:
    """A before each token of one response, [T, V]."""
    bound = BoundTilt(tilt, head(), GROUPS)
    features = bound.start(PROMPT)
    rows = []
    for state, token in zip(states, response, strict=True):
        rows.append(bound.additions(state[None], [features])[0])
        features.take([[token]])
    return torch.stack(rows)


def test_tokens_of_one_word_form_a_group() -> None:
    river, lamp = GROUPS.of([0])[0], GROUPS.of([3])[0]
    assert GROUPS.members([river]).tolist() == [0, 1, 2]
    assert GROUPS.members([lamp, river]).tolist() == [3, 9, 0, 1, 2]
    assert len(set(GROUPS.of([6, 7, 8]))) == 3  # a space is no word's spelling


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12), st.integers(0, 9))
def test_a_search_adds_what_the_fit_reads(response: list[int], seed: int) -> None:
    """The running features of a row are those of ``candidate_features``, token for token."""
    tilt = random_tilt(seed)
    states = torch.randn(len(response), WIDTH, generator=torch.Generator().manual_seed(seed))
    candidates = torch.arange(VOCABULARY).expand(len(response), -1)
    stop_ids = torch.tensor(tilt.stop_ids)
    features = candidate_features(GROUPS, PROMPT, tilt.ignored, stop_ids, response, candidates).float()
    with_one = torch.cat([states, torch.ones(len(states), 1)], 1)
    expected = tilt.bias + (with_one @ tilt.state_factor.T) @ (tilt.token_factor @ head().T)
    expected = expected + torch.einsum("tf,tvf->tv", with_one @ tilt.gates.T, features)
    if tilt.length_factor is not None and tilt.length_stop is not None:
        lengths = length_features(GROUPS.lengths(response)[:-1])
        expected = expected + lengths @ tilt.length_factor.T @ (tilt.token_factor @ head().T)
        expected[:, STOP] += lengths @ tilt.length_stop
    assert torch.allclose(additions(tilt, states, response), expected, atol=1e-4)


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=12), st.integers(0, 9))
def test_all_places_of_a_response_are_read_at_once(response: list[int], seed: int) -> None:
    """As a fit does of rollouts that a tilt steered; also of tilts that ignore different tokens."""
    states = torch.randn(len(response), WIDTH, generator=torch.Generator().manual_seed(seed))
    tilt = random_tilt(seed)
    for steering in (tilt, fold_tilts([tilt, replace(random_tilt(seed + 1), ignored=(0,))], [1.0, 0.5])):
        at_once = BoundTilt(steering, head(), GROUPS).along(PROMPT, response, states, states @ head().T)
        assert torch.allclose(at_once, additions(steering, states, response), atol=1e-4)


def test_rows_follow_their_parents() -> None:
    bound = BoundTilt(random_tilt(1), head(), GROUPS)
    features = bound.start(PROMPT)
    features.take([[0, 6]])  # two rows, of one word and of none: "river" and "."
    features.select([1, 0, 1])
    features.take([[3], [3], [0]])
    states = torch.zeros(3, WIDTH)
    together = bound.additions(states, [features])
    alone = [additions(random_tilt(1), torch.zeros(3, WIDTH), [*row, 0])[2] for row in ([6, 3], [0, 3], [6, 0])]
    assert torch.allclose(together, torch.stack(alone), atol=1e-5)


@settings(max_examples=25)
@given(st.lists(st.floats(0.1, 3), min_size=1, max_size=4), st.integers(0, 5))
def test_a_fold_is_the_weighted_sum(strengths: list[float], seed: int) -> None:
    tilts = [random_tilt(seed + number, rank=1 + number) for number in range(len(strengths))]
    states, response = torch.randn(3, WIDTH), [0, 6, 3]
    expected = sum(s * additions(t, states, response) for s, t in zip(strengths, tilts, strict=True))
    assert torch.allclose(additions(fold_tilts(tilts, strengths), states, response), expected, atol=1e-3)


@settings(max_examples=25)
@given(st.floats(0, 4), st.floats(0, 3), st.integers(0, 5))
def test_sharpening_is_a_temperature(sharpness: float, before: float, seed: int) -> None:
    """q^(1 + s), normalised, also of a tilt that is sharp already."""
    tilt, states, response = replace(random_tilt(seed), sharpness=before), torch.randn(3, WIDTH), [0, 6, 3]
    logits = states @ head().T
    expected = (logits * (1 + before) + additions(tilt, states, response)) * (1 + sharpness)
    bound = BoundTilt(sharpened(tilt, sharpness), head(), GROUPS)
    tilted = logits + bound.along(PROMPT, response, states, logits)
    assert torch.allclose(tilted.log_softmax(-1), expected.log_softmax(-1), atol=1e-3)


@given(st.lists(st.floats(0, 3), min_size=1, max_size=4))
def test_sharpness_of_a_fold_is_the_weighted_sum(sharpness: list[float]) -> None:
    tilts = [replace(random_tilt(0), sharpness=each) for each in sharpness]
    assert fold_tilts(tilts, [0.5] * len(tilts)).sharpness == pytest.approx(sum(sharpness) / 2)
    assert all(("sharpness" in tilt.parts) == bool(tilt.sharpness) for tilt in tilts)


def test_tokens_that_cannot_be_drawn_stay_so_when_sharpened() -> None:
    """Their share of KL, probability 0 times what is added, is 0 and no NaN."""
    logits, addition = torch.tensor([[1.0, -torch.inf, 3.0]]), torch.tensor([[0.5, 0.5, -0.5]])
    added = with_sharpness(addition, logits, 0.5)
    assert added.isfinite().all() and added[0, [0, 2]].tolist() == [1.0, 1.0]
    assert (logits + added).softmax(-1)[0, 1] == 0


def test_a_repetition_penalty_is_subtracted_from_words_that_the_response_has() -> None:
    """However it is spelled, and whether the prompt has the word (river) or not (sea)."""
    states, response = torch.randn(3, WIDTH), [0, 10, 6]
    change = additions(with_repetition_penalty(random_tilt(1), 2.0), states, response) - additions(
        random_tilt(1), states, response
    )
    river, sea = [0, 1, 2], [10, 11]
    expected = torch.zeros(3, VOCABULARY)
    expected[1:, river] = -2.0
    expected[2:, sea] = -2.0
    assert torch.allclose(change, expected, atol=1e-4)


def test_common_tokens_are_those_of_more_than_half_of_the_prompts() -> None:
    assert common_tokens([[1, 2, 2], [2, 3], [4, 1]]) == (1, 2)
    assert common_tokens([[1, 2], [2, 3], [4, 2], [5, 1]]) == (2,)


def rows_of(additions_of_reward: torch.Tensor, count: int) -> TiltRows:
    """Draws from a uniform frozen model at one state, where token a earns ``additions_of_reward[a]``."""
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(VOCABULARY, (count,), generator=generator)
    rewards = additions_of_reward[drawn]
    return TiltRows(
        states_ND=torch.randn(count, WIDTH, generator=generator) * 1e-3,
        candidates_NK=torch.arange(VOCABULARY).expand(count, -1),
        logprobs_NK=torch.full((count, VOCABULARY), -float(torch.tensor(VOCABULARY).log()) - 1e-7),
        features_NKF=torch.zeros(count, VOCABULARY, len(FEATURES), dtype=torch.bool),
        drawn_N=drawn,
        advantages_N=rewards - rewards.mean(),
        lengths_NL=torch.zeros(count, NUM_LENGTH_FEATURES),
    )


@pytest.mark.slow(13)
def test_the_least_loss_is_the_soft_advantage() -> None:
    """A(a) = (r(a) - E r) / beta, up to a constant, where nothing bounds A."""
    reward = torch.linspace(-0.5, 0.5, VOCABULARY)
    fit = TiltFit(rank=0, beta=1.0, epochs=300, batch=2048, bias_rate=0.05, decay=0.0)
    zero = zero_tilt(VOCABULARY, WIDTH, (), (STOP,))
    bias = fit_tilt(rows_of(reward, 8_000), head(), zero, fit).bias
    error = (bias - bias.mean()) - (reward - reward.mean())
    assert error.abs().max() < 0.1


def test_a_fitted_tilt_is_the_function_that_was_fitted() -> None:
    """Standardisation is folded into the factors: the fit's loss is that of the tilt which it returns."""
    reward = torch.linspace(-0.5, 0.5, VOCABULARY)
    rows = rows_of(reward, 500)
    features = torch.rand(500, VOCABULARY, len(FEATURES), generator=torch.Generator().manual_seed(1)) < 0.3
    lengths = torch.rand(500, NUM_LENGTH_FEATURES, generator=torch.Generator().manual_seed(4))
    states = torch.randn(500, WIDTH, generator=torch.Generator().manual_seed(2)) * 3 + 1
    rows = replace(rows, states_ND=states, features_NKF=features, lengths_NL=lengths)
    zero = zero_tilt(VOCABULARY, WIDTH, (), (STOP,))
    tilt = fit_tilt(rows, head(), zero, TiltFit(rank=2, beta=0.2, epochs=40, factor_rate=0.02, gate_rate=0.02))
    with_one = torch.cat([rows.states_ND, torch.ones(500, 1)], 1)
    fitted = tilt.bias + (with_one @ tilt.state_factor.T) @ (tilt.token_factor @ head().T)
    fitted = fitted + torch.einsum("nf,nvf->nv", with_one @ tilt.gates.T, features.float())
    assert tilt.length_factor is not None and tilt.length_stop is not None
    fitted = fitted + lengths @ tilt.length_factor.T @ (tilt.token_factor @ head().T)
    fitted = fitted + (lengths @ tilt.length_stop)[:, None] * features[..., FEATURES.index("stop")]
    assert tilt_loss(fitted, rows, 0.2) < tilt_loss(torch.zeros_like(fitted), rows, 0.2) - 0.05


class CopiesOfHeads(torch.overrides.TorchFunctionMode):
    """Counts copies of an output head in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_head = isinstance(result, torch.Tensor) and result.shape == (VOCABULARY, WIDTH)
        self.count += is_head and function is torch.Tensor.float
        return result


@pytest.mark.parametrize("rank", [0, 2])
def test_a_tilt_of_rank_0_copies_no_output_head(rank: int) -> None:
    tilt, head_VD = random_tilt(0, rank), head().bfloat16()
    with CopiesOfHeads() as copies:
        bound, adapter = BoundTilt(tilt, head_VD, GROUPS), head_adapter(tilt, head_VD)
    assert copies.count == (2 if rank else 0)
    assert bound.token_rV.shape == (rank, VOCABULARY) and len(adapter.lora_A) == rank + 1
