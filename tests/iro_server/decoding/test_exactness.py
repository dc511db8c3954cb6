"""The search against a toy language model whose every completion and probability is known."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from iro_server.decoding.base import Final, SearchParams, repeatable
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling
from tests.toy import END, VOCABULARY, ToyEngine, ToyScorer, enumerate_completions, next_probs, tilted_probs

PROMPT, LENGTH = [0, 1], 4
SEED_OF_1_2_3 = 2243870231560765811


def reward(tokens: tuple[int, ...]) -> float:
    return 1.5 * tokens.count(1) - 0.7 * tokens.count(0)


def run(params: SearchParams, seed: int, scorer: ToyScorer | None = None, length: int = LENGTH):
    return asyncio.run(guided_search(ToyEngine(), PROMPT, params, Sampling(seed=seed, stop_ids=(END,)), length, scorer))


def guided_distribution(beta: float) -> dict[tuple[int, ...], float]:
    """pi_base * exp(V / beta), normalised, by enumeration."""
    weights = {y: p * math.exp(reward(y) / beta) for y, p in enumerate_completions(PROMPT, LENGTH).items()}
    total = sum(weights.values())
    return {y: w / total for y, w in weights.items()}


def smc_counts(width: int, draws: int, seed0: int) -> dict[tuple[int, ...], int]:
    params = SearchParams(beam_width=width, num_successors=2, chunk_length=2, selection="smc")
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(draws):
        finals = run(params, seed0 + seed, ToyScorer(lambda t: reward(t) / 2.0)).finals
        y = tuple(finals[0].tokens)
        counts[y] = counts.get(y, 0) + 1
    return counts


def test_enumeration_is_a_distribution() -> None:
    assert sum(enumerate_completions(PROMPT, LENGTH).values()) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow(40)
def test_smc_samples_from_the_guided_distribution() -> None:
    """Chi-square of independent searches' draws against pi_base * exp(V/beta), at a width where bias is small."""
    exact = guided_distribution(2.0)
    counts = smc_counts(width=64, draws=600, seed0=0)
    common = [y for y, p in exact.items() if p * 600 >= 8]
    observed = [counts.get(y, 0) for y in common]
    expected = [exact[y] * 600 for y in common]
    observed.append(600 - sum(observed))
    expected.append(600 - sum(expected))
    assert chisquare(observed, expected).pvalue > 0.01


def length_distribution(longest: int) -> list[float]:
    """The toy model's exact probability of a completion of 1, 2, … ``longest`` tokens, the last with all it cuts."""
    running, lengths = {tuple(PROMPT): 1.0}, []
    for length in range(1, longest + 1):
        grown: dict[tuple[int, ...], float] = {}
        for tail, mass in running.items():
            for token, p in enumerate(next_probs([0] * (length - 1) + list(tail)).tolist()):
                grown[(tail[1], token)] = grown.get((tail[1], token), 0.0) + mass * p
        stopped = sum(mass for tail, mass in grown.items() if tail[-1] == END)
        running = {tail: mass for tail, mass in grown.items() if tail[-1] != END}
        lengths.append(stopped + (sum(running.values()) if length == longest else 0.0))
    return lengths


@pytest.mark.slow(7)
@pytest.mark.parametrize("width", [2, 4])
def test_the_first_final_of_smc_is_a_draw_where_rows_stop_early(width: int) -> None:
    """Without values SMC is exact at every width: first finals are as long as the frozen model's completions."""
    exact, draws = np.array(length_distribution(24)), 300
    params = SearchParams(beam_width=width, num_successors=2, chunk_length=2, selection="smc")
    lengths = [len(run(params, seed, length=24).finals[0].tokens) for seed in range(draws)]
    fourths = np.searchsorted(exact.cumsum(), (0.25, 0.5, 0.75)) + 1  # tokens
    observed = np.bincount(np.searchsorted(fourths, lengths), minlength=4)
    expected = [part.sum() / exact.sum() * draws for part in np.split(exact, fourths)]
    assert exact[:-1].sum() > 0.9
    assert chisquare(observed, expected).pvalue > 0.01


@pytest.mark.slow(10)
def test_no_place_among_the_finals_of_smc_prefers_early_stops() -> None:
    """Guided, over searches that end because every survivor has stopped: first and last final are equally long."""
    params = SearchParams(beam_width=4, num_successors=2, chunk_length=2, selection="smc")
    differences = []
    for seed in range(100):
        finals = run(params, seed, ToyScorer(lambda t: reward(t) / 2.0), length=40).finals
        if all(final.finish_reason == "stop" for final in finals):
            differences.append(len(finals[0].tokens) - len(finals[-1].tokens))
    assert len(differences) > 40
    assert abs(np.mean(differences)) < 3 * np.std(differences) / math.sqrt(len(differences))


def total_variation(width: int, exact: dict[tuple[int, ...], float], searches: int) -> float:
    params = SearchParams(beam_width=width, num_successors=2, chunk_length=2, selection="smc")
    mass: dict[tuple[int, ...], float] = {}
    for seed in range(searches):
        for final in run(params, seed, ToyScorer(lambda t: reward(t) / 2.0)).finals:
            y = tuple(final.tokens)
            mass[y] = mass.get(y, 0.0) + 1 / (width * searches)
    return 0.5 * sum(abs(exact.get(y, 0.0) - mass.get(y, 0.0)) for y in exact.keys() | mass.keys())


@pytest.mark.slow(45)
def test_smc_total_variation_falls_as_the_width_grows() -> None:
    """At an equal number of particles in all, so that what is left at small W is the method's bias."""
    exact = guided_distribution(2.0)
    distances = [total_variation(w, exact, 4096 // w) for w in (1, 8, 128)]
    assert distances[0] > distances[1] > distances[2]
    assert distances[2] < 0.08


@pytest.mark.slow(6)
def test_smc_that_resamples_only_where_weights_are_uneven_is_exact_too() -> None:
    """One successor of each row: rows keep their weights over several chunks."""
    exact, width, searches = guided_distribution(2.0), 128, 32
    params = SearchParams(beam_width=width, num_successors=1, chunk_length=1, selection="smc")
    mass = dict.fromkeys(exact, 0.0)
    for seed in range(searches):
        for final in run(params, seed, ToyScorer(lambda t: reward(t) / 2.0)).finals:
            mass[tuple(final.tokens)] += 1 / (width * searches)
    assert 0.5 * sum(abs(exact[y] - mass[y]) for y in exact) < 0.08


def test_top_w_finds_the_best_completion() -> None:
    best = max(enumerate_completions(PROMPT, LENGTH), key=lambda y: (reward(y), y))
    params = SearchParams(beam_width=32, num_successors=32, chunk_length=1, selection="top")
    finals = run(params, 0, ToyScorer(reward)).finals
    assert reward(tuple(finals[0].tokens)) == reward(best)


def test_one_beam_one_successor_is_plain_sampling_token_for_token() -> None:
    guided = run(SearchParams(chunk_length=1), 7, ToyScorer(reward), 12).finals[0]
    plain = run(SearchParams(), 7, None, 12).finals[0]
    assert guided.tokens == plain.tokens
    assert guided.logprobs == plain.logprobs


def test_one_chunk_to_the_end_is_best_of_n() -> None:
    best_of = run(SearchParams(num_successors=16), 3, ToyScorer(reward)).finals
    samples = run(SearchParams(num_successors=16), 3, None).finals
    assert sorted(tuple(f.tokens) for f in best_of) == sorted(tuple(f.tokens) for f in samples)
    assert best_of[0].value == max(reward(tuple(s.tokens)) for s in samples)
    assert np.all(np.diff([f.value for f in best_of]) <= 0)


def test_equal_base_tokens_whatever_the_chunk() -> None:
    """W*K rows of every token: the budget of best-of-(W*K), where nothing stops early."""
    counts = []
    for chunk_length in (1, 3, None):
        engine = ToyEngine()
        params = SearchParams(beam_width=2, num_successors=4, chunk_length=chunk_length)
        usage = asyncio.run(guided_search(engine, PROMPT, params, Sampling(seed=0), 6, ToyScorer(reward))).usage
        assert usage.base_tokens == engine.sampled
        counts.append(usage.base_tokens)
    assert counts == [48, 48, 48]


def test_temperature_0_draws_one_row_however_wide_the_search() -> None:
    sampling = Sampling(temperature=0.0, seed=0, stop_ids=(END,))
    params = SearchParams(beam_width=2, num_successors=4, chunk_length=2)
    engine = ToyEngine()
    result = asyncio.run(guided_search(engine, PROMPT, params, sampling, 6, ToyScorer(reward)))
    assert len(result.finals) == 1
    assert result.usage.base_tokens == engine.sampled == len(result.finals[0].tokens)


def test_a_repeatable_seed_belongs_to_the_prompt() -> None:
    """Written out, since another process, or another version, has to draw the same answer."""
    greedy = Sampling(temperature=0.0, top_p=0.9)
    assert repeatable(greedy, 0.7, [1, 2, 3]) == Sampling(temperature=0.7, top_p=0.9, seed=SEED_OF_1_2_3)
    assert repeatable(greedy, 0.7, [12, 3]).seed != SEED_OF_1_2_3
    assert repeatable(Sampling(temperature=0.0, seed=5), 0.7, [1, 2, 3]).seed == 5


def test_finished_rows_stay_in_the_pool() -> None:
    """A value that only likes stopping at once must return such a completion, though other beams went on."""
    finals = run(
        SearchParams(beam_width=4, num_successors=8, chunk_length=1),
        1,
        ToyScorer(lambda t: 10.0 if t == (END,) else 0.0),
    ).finals
    assert finals[0].tokens == [END]
    assert finals[0].finish_reason == "stop"
    assert {f.finish_reason for f in finals} <= {"stop", "length"}


@dataclass(frozen=True)
class ToySteering:
    tilt: Callable[[tuple[int, ...]], torch.Tensor]
    strength: float = 1.0


def static(tokens: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([0.8, -0.6, 0.3, 0.1])


def of_the_state(tokens: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([math.cos(len(tokens) + 2.0 * v + tokens[-1]) for v in range(VOCABULARY)])


def soft_advantage(beta: float) -> Callable[[tuple[int, ...]], torch.Tensor]:
    """A(s,a) = V(s a) - V(s) in units of beta, V(s) = log E[exp(r/beta) | s]: the proposal is then the target."""
    weights = {y: p * math.exp(reward(y) / beta) for y, p in enumerate_completions(PROMPT, LENGTH).items()}
    chances = enumerate_completions(PROMPT, LENGTH)

    def value(response: tuple[int, ...]) -> float:
        below = [y for y in weights if y[: len(response)] == response]
        return math.log(sum(weights[y] for y in below) / sum(chances[y] for y in below))

    def tilt(tokens: tuple[int, ...]) -> torch.Tensor:
        response = tokens[len(PROMPT) :]
        return torch.tensor([value((*response, token)) - value(response) for token in range(VOCABULARY)])

    return tilt


def log_ratio(completion: tuple[int, ...], steering: ToySteering) -> float:
    """log q/pi_0 of a completion."""
    prefixes = [(*PROMPT, *completion[:count]) for count in range(len(completion))]
    ratios = [(tilted_probs(p, steering) / next_probs(p))[t].log() for p, t in zip(prefixes, completion, strict=True)]
    return float(sum(ratios))


def test_for_an_additive_reward_the_optimal_tilt_is_a_bias_and_what_lies_ahead() -> None:
    """A(s,a) = b[a] + log Z(s a) - log Z(s), Z(s) of the rewards of the tokens that follow."""
    beta, chances = 2.0, enumerate_completions(PROMPT, LENGTH)
    bias = torch.tensor([-0.7, 1.5, 0.0, 0.0]) / beta

    def log_z(response: tuple[int, ...]) -> float:
        below = [y for y in chances if y[: len(response)] == response]
        ahead = sum(chances[y] * math.exp((reward(y) - reward(response)) / beta) for y in below)
        return math.log(ahead / sum(chances[y] for y in below))

    for response in ((), (0,), (1, 2), (2, 1, 0)):
        look_ahead = torch.tensor([log_z((*response, token)) - log_z(response) for token in range(VOCABULARY)])
        assert torch.allclose(soft_advantage(beta)((*PROMPT, *response)), bias + look_ahead, atol=1e-5)


def steered(width: int, seed: int, tilt: Callable[[tuple[int, ...]], torch.Tensor], beta: float = 2.0):
    params = SearchParams(beam_width=width, num_successors=2, chunk_length=2, selection="smc")
    sampling, scorer = Sampling(seed=seed, stop_ids=(END,)), ToyScorer(lambda tokens: reward(tokens) / beta)
    search = guided_search(ToyEngine(), PROMPT, params, sampling, LENGTH, scorer, steering=ToySteering(tilt))
    return asyncio.run(search).finals


@pytest.mark.parametrize("tilt", [static, pytest.param(of_the_state, marks=pytest.mark.slow(15))])
def test_smc_samples_from_the_target_whatever_the_proposal(tilt: Callable[[tuple[int, ...]], torch.Tensor]) -> None:
    exact, distances = guided_distribution(2.0), []
    for width, searches in ((1, 512), (128, 16)):
        mass: dict[tuple[int, ...], float] = {}
        for seed in range(searches):
            for final in steered(width, seed, tilt):
                y = tuple(final.tokens)
                mass[y] = mass.get(y, 0.0) + 1 / (width * searches)
        distances.append(0.5 * sum(abs(exact.get(y, 0.0) - mass.get(y, 0.0)) for y in exact.keys() | mass.keys()))
    assert distances[1] < 0.13 and distances[1] < distances[0] / 2


@pytest.mark.slow(7)
def test_with_the_exact_advantage_every_row_weighs_the_same_and_is_a_draw_from_the_target() -> None:
    """One row of the exact proposal is a sample of pi_base * exp(r/beta): no search, no correction."""
    exact, draws = guided_distribution(2.0), 600
    tilt = soft_advantage(2.0)
    weights = [reward(y) / 2.0 - log_ratio(y, ToySteering(tilt)) for y in exact]
    assert max(weights) - min(weights) < 1e-4
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(draws):
        sampling = Sampling(seed=seed, stop_ids=(END,))
        search = guided_search(ToyEngine(), PROMPT, SearchParams(), sampling, LENGTH, steering=ToySteering(tilt))
        y = tuple(asyncio.run(search).finals[0].tokens)
        counts[y] = counts.get(y, 0) + 1
    common = [y for y, p in exact.items() if p * draws >= 8]
    observed, expected = [counts.get(y, 0) for y in common], [exact[y] * draws for y in common]
    observed.append(draws - sum(observed))
    expected.append(draws - sum(expected))
    assert chisquare(observed, expected).pvalue > 0.01


@pytest.mark.parametrize("chunk_length", [1, 3, None])
def test_each_token_has_the_kl_of_the_state_that_it_was_drawn_from(chunk_length: int | None) -> None:
    params, steering = (
        SearchParams(beam_width=2, num_successors=2, chunk_length=chunk_length),
        ToySteering(of_the_state),
    )
    search = guided_search(ToyEngine(), PROMPT, params, Sampling(seed=1, stop_ids=(END,)), LENGTH, steering=steering)
    for final in asyncio.run(search).finals:
        prefixes = [(*PROMPT, *final.tokens[:count]) for count in range(len(final.tokens))]
        pairs = [(tilted_probs(prefix, steering), next_probs(prefix)) for prefix in prefixes]
        assert final.token_kl == pytest.approx([float((q * (q / p).log()).sum()) for q, p in pairs], abs=1e-6)
        assert final.kl == pytest.approx(sum(final.token_kl))


def test_the_kl_of_an_answer_is_unbiased_for_its_log_ratio() -> None:
    """E_q[log q/pi_0] over answers is the sum of the states' KL: both means agree, the sum with less noise."""
    params, kls, ratios = SearchParams(), [], []
    for seed in range(800):
        sampling = Sampling(seed=seed, stop_ids=(END,))
        search = guided_search(ToyEngine(), PROMPT, params, sampling, LENGTH, steering=ToySteering(of_the_state))
        final = asyncio.run(search).finals[0]
        prefixes = [(*PROMPT, *final.tokens[:count]) for count in range(len(final.tokens))]
        q = [tilted_probs(prefix, ToySteering(of_the_state)) for prefix in prefixes]
        ratios.append(sum(float(p[t].log()) for p, t in zip(q, final.tokens, strict=True)) - sum(final.logprobs))
        kls.append(final.kl)
    assert np.mean(kls) == pytest.approx(np.mean(ratios), abs=4 * np.std(ratios) / math.sqrt(800))
    assert np.std(kls) < np.std(ratios)


def test_what_is_resampled_does_not_depend_on_what_was_drawn() -> None:
    """One token by SMC without values is a draw from the model, though one seed serves the draws and the resampling."""
    params, searches = SearchParams(num_successors=4, selection="smc"), 400
    drawn_tokens = [run(params, seed, length=1).finals[0].tokens[0] for seed in range(searches)]
    expected = next_probs(PROMPT).double().numpy()
    counts = np.bincount(drawn_tokens, minlength=VOCABULARY)
    assert chisquare(counts, expected / expected.sum() * searches).pvalue > 0.01


class WithoutDrift(ToyEngine):
    """Reports no log-ratios and no KL of a tilt, as a server over HTTP."""

    info = replace(ToyEngine.info, drift=False)


def test_smc_refuses_a_tilt_whose_log_ratios_the_engine_does_not_report() -> None:
    def steered_by(steering: ToySteering | None) -> list[Final]:
        params = SearchParams(beam_width=2, num_successors=2, selection="smc")
        search = guided_search(WithoutDrift(), PROMPT, params, Sampling(seed=0), LENGTH, steering=steering)
        return asyncio.run(search).finals

    assert len(steered_by(None)) == 2
    with pytest.raises(ValueError, match="toy reports no log-ratios of a tilt, which smc corrects for"):
        steered_by(ToySteering(static))


@pytest.mark.parametrize("tilt", [None, static])
def test_nats_that_an_engine_does_not_report_are_unknown_and_not_0(tilt: Callable | None) -> None:
    steering = ToySteering(tilt) if tilt else None
    search = guided_search(
        WithoutDrift(), PROMPT, SearchParams(num_successors=2), Sampling(seed=0), 4, steering=steering
    )
    nats = [final.kl for final in asyncio.run(search).finals]
    assert all(map(math.isnan, nats)) if tilt else nats == [0.0, 0.0]
