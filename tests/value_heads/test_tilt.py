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
from value_heads.tilt_fit import MAX_RATIO, TiltFit, TiltParameters, TiltRows, fit_tilt, tilt_loss

WORDS = ["Ġriver", "river", "River", "Ġlamp", "Ġa", "a", ".", "<end>", "Ġ", "ĠLAMP", "Ġsea", "sea"]
GROUPS = TokenGroups(WORDS)
VOCABULARY, WIDTH, STOP = len(WORDS), 6, 7
PROMPT = [4, 0, 6, 3, 4]  # " a river. lamp a": its last word is followed by "river"


def random_tilt(seed: int, rank: int = 3, vocabulary: int = VOCABULARY, width: int = WIDTH) -> Tilt:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Tilt(
        bias=normal(vocabulary),
        state_factor=normal(rank, width + 1),
        token_factor=normal(rank, width),
        gates=normal(len(FEATURES), width + 1),
        ignored=(min(4, vocabulary - 1),),
        stop_ids=(min(STOP, vocabulary - 1),),
        length_factor=normal(rank, NUM_LENGTH_FEATURES) if seed % 3 else None,
        length_stop=normal(NUM_LENGTH_FEATURES) if seed % 3 else None,
    )


def head(vocabulary: int = VOCABULARY, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(vocabulary, width, generator=torch.Generator().manual_seed(99))


def additions(tilt: Tilt, states: torch.Tensor, response: list[int]) -> torch.Tensor:
    """A before each token of one response, [T, V]."""
    bound = BoundTilt(tilt, head(), GROUPS)
    features = bound.start(PROMPT)
    rows = []
    for state, token in zip(states, response, strict=True):
        rows.append(bound.additions(state[None], [features])[0])
        features.take([[token]])
    return torch.stack(rows)


def defined_additions(
    tilt: Tilt, states_ND: torch.Tensor, lengths_NL: torch.Tensor, features_NVF: torch.Tensor
) -> torch.Tensor:
    """A(s, .) [N, V] without the sharpness, written out."""
    head_shape = len(tilt.bias), states_ND.shape[1]
    with_one = torch.cat([states_ND, torch.ones(len(states_ND), 1)], 1)
    states_Nr, gates_NF = with_one @ tilt.state_factor.T, with_one @ tilt.gates.T
    if tilt.length_factor is not None and tilt.length_stop is not None:
        states_Nr = states_Nr + lengths_NL @ tilt.length_factor.T
        gates_NF[:, FEATURES.index("stop")] += lengths_NL @ tilt.length_stop
    gated = torch.einsum("nf,nvf->nv", gates_NF, features_NVF.float())
    return tilt.bias + states_Nr @ (tilt.token_factor @ head(*head_shape).T) + gated


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
    features = candidate_features(GROUPS, PROMPT, tilt.ignored, stop_ids, response, candidates)
    expected = defined_additions(tilt, states, length_features(GROUPS.lengths(response)[:-1]), features)
    assert torch.allclose(additions(tilt, states, response), expected, atol=1e-4)


@given(st.data(), st.integers(1, 40), st.integers(1, 12), st.integers(0, 5), st.integers(0, 99))
def test_rows_of_several_sessions_get_their_own_additions_in_all_shapes(
    data: st.DataObject, vocabulary: int, width: int, rank: int, seed: int
) -> None:
    """Sessions of different prompts and lengths, with rows of different tokens, in one product."""
    tokens = st.integers(0, vocabulary - 1)
    groups = TokenGroups(data.draw(st.lists(st.sampled_from(WORDS), min_size=vocabulary, max_size=vocabulary)))
    tilt = random_tilt(seed, rank, vocabulary, width)
    bound = BoundTilt(tilt, head(vocabulary, width), groups)
    sessions, features, lengths = [], [], []
    for _ in range(data.draw(st.integers(1, 3))):
        prompt = data.draw(st.lists(tokens, min_size=1, max_size=6))
        shared, newest = data.draw(st.lists(tokens, max_size=4)), data.draw(st.lists(tokens, min_size=1, max_size=4))
        sessions.append(bound.start(prompt))
        for token in shared:
            sessions[-1].take([[token]])
        sessions[-1].take([newest])
        for token in newest:
            response = [*shared, token, 0]
            every = torch.arange(vocabulary).expand(len(response), -1)
            stop_ids = torch.tensor(tilt.stop_ids)
            features.append(candidate_features(groups, prompt, tilt.ignored, stop_ids, response, every)[-1])
            lengths.append(length_features(groups.lengths(response)[:-1])[-1])
    states_MD = torch.randn(len(features), width, generator=torch.Generator().manual_seed(seed))
    expected = defined_additions(tilt, states_MD, torch.stack(lengths), torch.stack(features))
    torch.testing.assert_close(bound.additions(states_MD, sessions), expected, atol=1e-4, rtol=1e-4)


def test_ignored_tokens_are_no_words_of_the_prompt_however_they_are_spelled() -> None:
    candidates = torch.tensor([[4, 0, 5]])  # " a", " river", "a"
    features = candidate_features(GROUPS, [4, 0], (4,), torch.tensor([STOP]), [6], candidates)
    assert features[0, :, FEATURES.index("prompt")].tolist() == [False, True, False]


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


def test_a_tilt_at_a_strength_has_the_temperature_of_so_much_of_its_sharpness() -> None:
    tilt = replace(random_tilt(0), sharpness=1.0)
    assert [tilt.temperature(strength) for strength in (0.0, 0.5, 1.0)] == [1.0, 1 / 1.5, 0.5]


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


def random_rows(count: int) -> TiltRows:
    """Of states that are not standardised, with features and lengths at random."""
    generator = torch.Generator().manual_seed(1)
    return replace(
        rows_of(torch.linspace(-0.5, 0.5, VOCABULARY), count),
        states_ND=torch.randn(count, WIDTH, generator=generator) * 3 + 1,
        features_NKF=torch.rand(count, VOCABULARY, len(FEATURES), generator=generator) < 0.3,
        lengths_NL=torch.rand(count, NUM_LENGTH_FEATURES, generator=generator),
    )


def test_a_fitted_tilt_is_the_function_that_was_fitted() -> None:
    """Standardisation is folded into the factors. Centring the head's rows changes a constant of each state."""
    rows, generator = random_rows(50), torch.Generator().manual_seed(2)
    parameters = TiltParameters(rows, head(), 2, 0)
    with torch.no_grad():
        for tensor in (tensor for group in parameters.groups(TiltFit()) for tensor in group["params"]):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        fitted = parameters.additions(rows, parameters.place_NK)
    tilt = parameters.tilt(zero_tilt(VOCABULARY, WIDTH, (), (STOP,)))
    difference = defined_additions(tilt, rows.states_ND, rows.lengths_NL, rows.features_NKF) - fitted
    torch.testing.assert_close(difference, difference[:, :1].expand_as(difference), atol=1e-3, rtol=1e-3)


def fitted_additions(rows: TiltRows, fit: TiltFit) -> torch.Tensor:
    tilt = fit_tilt(rows, head(), zero_tilt(VOCABULARY, WIDTH, (), (STOP,)), fit)
    return defined_additions(tilt, rows.states_ND, rows.lengths_NL, rows.features_NKF)


def test_a_fit_lowers_its_loss_and_decay_keeps_it_small() -> None:
    rows, fit = random_rows(500), TiltFit(rank=2, beta=0.2, epochs=40, factor_rate=0.02, gate_rate=0.02)
    fitted, decayed = fitted_additions(rows, fit), fitted_additions(rows, replace(fit, decay=100.0))
    assert tilt_loss(fitted, rows, 0.2) < tilt_loss(torch.zeros_like(fitted), rows, 0.2) - 0.05
    assert (decayed - decayed.mean(1, keepdim=True)).std() < 0.1 * (fitted - fitted.mean(1, keepdim=True)).std()


def test_the_loss_is_kl_less_the_advantage_at_a_bounded_ratio() -> None:
    """Over all tokens, where only five candidates of each state are tilted; rewarded tokens' ratios are bounded."""
    generator, count, beta = torch.Generator().manual_seed(5), 400, 0.3
    logprobs = torch.randn(count, VOCABULARY, generator=generator).mul(2).log_softmax(-1)
    candidates = logprobs.topk(5).indices
    tilt = torch.zeros(count, VOCABULARY).scatter(1, candidates, torch.randn(count, 5, generator=generator).mul(2))
    rows = TiltRows(
        states_ND=torch.zeros(count, WIDTH),
        candidates_NK=candidates,
        logprobs_NK=logprobs.gather(1, candidates),
        features_NKF=torch.zeros(count, 5, len(FEATURES), dtype=torch.bool),
        drawn_N=torch.randint(5, (count,), generator=generator),
        advantages_N=torch.randn(count, generator=generator),
        lengths_NL=torch.zeros(count, NUM_LENGTH_FEATURES),
    )
    log_ratios = (logprobs + tilt).log_softmax(-1) - logprobs
    kl = ((logprobs + log_ratios).exp() * log_ratios).sum(1)
    ratio = log_ratios.gather(1, candidates.gather(1, rows.drawn_N[:, None]))[:, 0].exp()
    rewarded = rows.advantages_N > 0
    assert all((ratio[part] > MAX_RATIO).any() for part in (rewarded, ~rewarded))
    bounded = torch.where(rewarded, ratio.clamp(max=MAX_RATIO), ratio)
    expected = beta * kl.mean() - (rows.advantages_N * (bounded - 1)).mean()
    torch.testing.assert_close(tilt_loss(tilt.gather(1, candidates), rows, beta), expected, atol=1e-4, rtol=1e-4)


def test_tokens_that_a_schema_does_not_allow_take_no_part() -> None:
    """A0 - A1 = (E[r|0] - E[r|1]) / beta whatever the frozen model makes of a third token, which could not be drawn."""
    advantages = torch.tensor([0.1, -0.1])
    masked = torch.tensor([0.5, 0.5, 0.0]).log().expand(2, -1)
    rows = replace(
        rows_of(torch.zeros(VOCABULARY), 2),
        candidates_NK=torch.arange(3).expand(2, -1),
        logprobs_NK=masked,
        features_NKF=torch.zeros(2, 3, len(FEATURES), dtype=torch.bool),
        drawn_N=torch.tensor([0, 1]),
        advantages_N=advantages,
    )
    additions = torch.zeros(3, requires_grad=True)
    optimizer = torch.optim.LBFGS([additions], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = tilt_loss(additions.expand(2, -1), rows, 1.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    first, second, third = additions.tolist()
    assert first - second == pytest.approx(0.2, abs=2e-3) and third == 0


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
