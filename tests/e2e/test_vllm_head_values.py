"""Values that read the output head's state of the real model on a real vLLM server, through reserved tokens."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import torch
from scipy.stats import spearmanr

from benchmarks.processes import VLLMProcess
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling, Steering
from tests.e2e.test_api_server import COUNT_LETTER, ROWS, SMALL
from training.iro.job import JOB
from value_heads import FeatureSpec, LinearHead, ValueStack, load_bundle
from value_heads.compose import compose
from value_heads.features import HEAD_STATE, TOKENS
from value_heads.tilt_export import head_adapter, without_static

pytestmark = [
    pytest.mark.timeout(2400),
    pytest.mark.skipif(not VLLMProcess.python.exists(), reason=f"no {VLLMProcess.python}: `make vllm` installs vLLM"),
]
PARAMS = SearchParams(beam_width=2, num_successors=4, chunk_length=8)


@pytest.fixture(scope="module")
def values(engine) -> ValueStack:
    """Reads the output head's state now and on average, and the sum of embeddings, finished responses otherwise."""
    spec = FeatureSpec(
        current=(HEAD_STATE,),
        averaged=(HEAD_STATE,),
        summed=(0,),
        position=False,
        stop_ids=engine.info.eos_ids,
        ended=True,
    )
    weight = torch.randn(spec.width(engine.info.hidden_size), generator=torch.Generator().manual_seed(0)) * 0.05
    return ValueStack([LinearHead(spec, weight, 0.3)], [0.5])


def states_of(model, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """[T, D] that the tokens were drawn from."""
    with torch.no_grad():
        return model.model(torch.tensor([[*prompt, *tokens]])).last_hidden_state[0, len(prompt) - 1 : -1]


def value_of(values: ValueStack, model, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """[T] in process, from transformers' states."""
    with torch.no_grad():
        embedded = model.get_input_embeddings()(torch.tensor(tokens))
    hidden = {HEAD_STATE: states_of(model, prompt, tokens)[None], 0: embedded[None], TOKENS: torch.tensor([tokens])}
    return values.values(hidden)[0]


def test_numbers_are_those_of_transformers_states(engine, prompt, model) -> None:
    """Of 16 rows of 24 tokens: ranks, sizes, and log-probabilities of the tokens drawn; no reserved token is drawn."""
    rows = torch.nn.functional.normalize(
        torch.randn(4, engine.info.hidden_size, generator=torch.Generator().manual_seed(2)), dim=1
    )

    async def draw():
        session = await engine.open(prompt, Sampling(seed=3), (HEAD_STATE,), None, rows)
        first = await session.extend([0], 16, 8)
        second = await session.extend(list(range(16)), 1, 16)
        return session, first, second

    session, *chunks = asyncio.run(draw())
    tokens, numbers, logprobs = (
        torch.cat([read(chunk) for chunk in chunks], 1)
        for read in (lambda c: c.tokens_RL, lambda c: c.hidden[HEAD_STATE], lambda c: c.logprobs_RL)
    )
    assert not set(tokens.flatten().tolist()) & set(session.reserved.all)
    states = torch.stack([states_of(model, prompt, row) for row in tokens.tolist()])
    expected = states @ rows.T
    correlations = [float(spearmanr(numbers[..., k].flatten(), expected[..., k].flatten())[0]) for k in range(4)]
    print(
        "Spearman",
        correlations,
        "rms of the numbers, in nats",
        (expected * session.reserved.size).square().mean() ** 0.5,
    )
    assert min(correlations) >= 0.999
    torch.testing.assert_close(numbers[..., :4], expected, atol=2e-2, rtol=1e-3)
    with torch.no_grad():
        of_drawn = model.lm_head(states).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    torch.testing.assert_close(logprobs, of_drawn, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("steered", [pytest.param(False, marks=pytest.mark.slow(25)), True])
def test_a_search_scores_as_in_process(engine, prompt, model, values, state_tilt, steered) -> None:
    steering = Steering(state_tilt) if steered else None
    search = guided_search(
        engine,
        prompt,
        PARAMS,
        Sampling(seed=5, stop_ids=engine.info.eos_ids),
        24,
        values,
        steering=steering,
        attribution=values,
    )
    finals = asyncio.run(search).finals
    assert [final.value for final in finals] == sorted((final.value for final in finals), reverse=True)
    adapter = without_static(head_adapter(state_tilt, model.lm_head.weight), state_tilt.direction)
    for final in finals:
        expected = value_of(values, model, prompt, final.tokens)
        assert final.value == pytest.approx(float(expected[-1]), abs=5e-3, rel=1e-3)
        shares = torch.cat([expected[:1], expected.diff()])
        torch.testing.assert_close(torch.tensor(final.token_values), shares, atol=1e-2, rtol=1e-3)
        states = states_of(model, prompt, final.tokens)
        with torch.no_grad():
            logits = model.lm_head(states) + (adapter.additions(states) if steered else 0)
        of_drawn = logits.log_softmax(-1).gather(1, torch.tensor(final.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(final.logprobs), of_drawn, atol=2e-3, rtol=1e-3)


@pytest.mark.slow(25)
def test_two_models_mixed_score_as_their_weighted_sum(engine, prompt, model, values) -> None:
    """As `search.values` mixes them: another adapter for each set of weights."""
    head, beta = values.terms()[0]
    weights = torch.randn(len(head.weight), generator=torch.Generator().manual_seed(5)) * 0.05
    other = ValueStack([LinearHead(head.spec, weights, -0.2)], [beta])
    for weight in (0.5, -2.0):
        mixed = compose([values, other], [1.0, weight])
        search = guided_search(engine, prompt, PARAMS, Sampling(seed=6, stop_ids=engine.info.eos_ids), 12, mixed)
        for final in asyncio.run(search).finals:
            alone, others = (value_of(stack, model, prompt, final.tokens)[-1] for stack in (values, other))
            assert final.value == pytest.approx(float(alone + weight * others), abs=1e-2, rel=1e-3)


@pytest.mark.slow(25)
def test_searches_share_batches_with_plain_requests(engine, prompt, values) -> None:
    """And with requests for likeliest tokens, which are asked for again where the batch hid them."""

    async def draw(alternatives: int = 0, scorer: ValueStack | None = None):
        sampling = Sampling(seed=7, stop_ids=engine.info.eos_ids, alternatives=alternatives)
        params = PARAMS if scorer else SearchParams(chunk_length=4)
        return (await guided_search(engine, prompt, params, sampling, 16, scorer)).finals[0]

    async def together():
        return await asyncio.gather(draw(), draw(2), draw(scorer=values), draw(scorer=values))

    alone = [asyncio.run(draw()), asyncio.run(draw(2))]
    plain, likeliest, first, second = asyncio.run(together())
    assert plain.tokens == alone[0].tokens and first.value == pytest.approx(second.value, abs=1e-2)
    assert len(likeliest.alternatives) == len(likeliest.tokens)
    assert all(len(position) == 2 and min(lp for _, lp in position) > -100 for position in likeliest.alternatives)


@pytest.mark.slow(8)
def test_an_adapter_that_a_server_has_lost_is_loaded_again(engine, served, prompt, values) -> None:
    """As after a restart of the server."""

    def search() -> float:
        work = guided_search(engine, prompt, PARAMS, Sampling(seed=9), 8, values)
        return asyncio.run(work).finals[0].value

    before = search()
    name = next(reversed(engine.replicas.all[0].adapters))
    gone = httpx.post(f"{served.url}/unload_lora_adapter", json={"lora_name": name}, timeout=60)
    assert gone.status_code == 200
    assert search() == pytest.approx(before, abs=1e-2)


@pytest.mark.slow(120)
def test_a_job_fits_values_that_read_the_state(engine, served, model_dir, tmp_path) -> None:
    """Two iterations, the second's rollouts by a search with the first's values."""
    (tmp_path / "train.jsonl").write_bytes(ROWS)
    config = SMALL | {
        "model_dir": model_dir,
        "training_file": tmp_path / "train.jsonl",
        "grader": {"type": "python", "source": COUNT_LETTER},
        "value_model": "linear",
        "early_stop": False,
        "engine_urls": [served.url],
        "engine_adapters": tmp_path / "adapters",
    }
    result = JOB.execute(config, tmp_path / "run")
    assert len(result["history"]) == 2
    hashes = {"model_hash": engine.info.model_hash, "template_hash": engine.info.template_hash}
    stack = load_bundle(tmp_path / "run" / result["best_checkpoint"], **hashes)
    assert stack.layers == (HEAD_STATE, 0)
    assert len(list((tmp_path / "adapters").iterdir())) >= 2  # of the rows that each step's values read
