"""Numbers of the model's state over vLLM: which tokens carry them, what is asked, and what is refused.
(tests/e2e/test_vllm_head_values.py has a real server.)"""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.endpoints import Endpoints, EngineUnavailable
from iro_server.engines.unused_tokens import unused_tokens
from iro_server.engines.vllm import VLLMEngine
from iro_server.engines.vllm_steering import WORDS_CHUNK
from tests.iro_server.api.byte_engine import byte_tokenizer
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint, tokens_of, write_byte_model
from value_heads import FeatureSpec, LinearHead, ValueStack
from value_heads.features import HEAD_STATE
from value_heads.prompt_features import FEATURES
from value_heads.tilt import zero_tilt

PROMPT = [72, 105, 33]
SAMPLING = Sampling(seed=11, stop_ids=(END,), logit_bias=((7, 2.0), (257, 100.0)))
WIDTH, VOCABULARY = 16, 260
SPEC = FeatureSpec(current=(HEAD_STATE,), averaged=(HEAD_STATE,), summed=(0,), position=False, stop_ids=(END,))
ROWS = torch.nn.functional.normalize(torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_byte_model(tmp_path_factory.mktemp("model"), vocabulary=VOCABULARY)


@pytest.fixture
def served(model_dir, tmp_path):
    closing = []

    def start(*fakes: FakeEndpoint, **options):
        closing.extend(fakes)
        options = {"adapters": tmp_path / "adapters", "patience": 1.0} | options
        engine = VLLMEngine(model_dir, Endpoints(tuple(fake.url for fake in fakes), **options))
        closing.insert(0, engine)
        for fake in fakes:
            fake.bodies.clear()
        return engine

    yield start
    for resource in closing:
        resource.close()


def stack(seed: int = 0) -> ValueStack:
    weight = torch.randn(SPEC.width(WIDTH), generator=torch.Generator().manual_seed(seed))
    return ValueStack([LinearHead(SPEC, weight, 0.0)], [1.0])


def test_unused_tokens_are_past_the_tokenizers_then_special_ones_that_no_completion_needs() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<spare 1>", "<spare 2>", "<turn>"]})
    tokenizer.chat_template = "<turn>{{ messages }}"
    assert unused_tokens(tokenizer, 262, (END,)) == [260, 261, 258, 257]


async def test_a_session_asks_for_reserved_tokens_and_bars_them(served) -> None:
    fake = FakeEndpoint(generates=True)
    engine = served(fake)
    assert engine.info.head_values == 2 and not engine.info.lacks((0, HEAD_STATE)) and engine.info.lacks((1,))
    session = await engine.open(PROMPT, SAMPLING, (0, HEAD_STATE), None, ROWS)
    chunk = await session.extend([0], 3, 5)
    (body,) = fake.bodies
    sampling = body["sampling_params"]
    assert body["token_ids"] == PROMPT and body["model"] == session.adapter.name and sampling["n"] == 3
    assert sampling["logprob_token_ids"] == [257, 258, 259, 257] and sampling["logprobs"] == 4
    assert sampling["logit_bias"] == {"7": 2.0, "257": -100.0, "258": -100.0, "259": -100.0}
    expected = [tokens_of(PROMPT, sampling["seed"] + row, 5) for row in range(3)]
    assert [row[:n].tolist() for row, n in zip(chunk.tokens_RL, chunk.lengths_R, strict=True)] == expected
    numbers = chunk.hidden[HEAD_STATE]
    assert numbers.shape == (*chunk.tokens_RL.shape, WIDTH) and not numbers[..., 2:].any()
    torch.testing.assert_close(numbers[0, 0, :2] * session.reserved.size, torch.tensor([-1.0, -2.0]))
    assert chunk.hidden[0].shape == numbers.shape
    assert chunk.logprobs_RL[0, 0] == pytest.approx(-0.5, abs=1e-6)


async def test_the_adapters_logits_are_products_with_the_states(served, model_dir) -> None:
    session = await served(FakeEndpoint(generates=True)).open(PROMPT, Sampling(), (HEAD_STATE,), None, ROWS)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    adapter = load_file(session.adapter.path / "adapter_model.safetensors")
    lora_A, lora_B = (adapter[f"base_model.model.lm_head.lora_{part}.weight"] for part in "AB")
    with torch.no_grad():
        states = model.model(torch.tensor([PROMPT])).last_hidden_state[0]
        logprobs = (model.lm_head(states) + states @ lora_A.T @ lora_B.T).log_softmax(-1)
    numbers = [session.reserved.numbers(position[list(session.reserved.all)].tolist()) for position in logprobs]
    torch.testing.assert_close(torch.tensor(numbers), states @ ROWS.T, atol=1e-4, rtol=1e-4)


async def test_rows_of_several_requests_have_numbers_of_each_token(served) -> None:
    """A tilt towards the prompt's words is set anew every few tokens."""
    fake = FakeEndpoint(generates=True)
    gates = torch.zeros(len(FEATURES), WIDTH + 1)
    gates[FEATURES.index("prompt"), -1] = 3.0
    tilt = replace(zero_tilt(VOCABULARY, WIDTH, (), (END,)), gates=gates)
    session = await served(fake).open(PROMPT, Sampling(seed=5), (HEAD_STATE,), Steering(tilt), ROWS)
    chunk = await session.extend([0], 2, 2 * WORDS_CHUNK + 3)
    first, *later = [body["sampling_params"]["logit_bias"] for body in fake.bodies]
    expected = {str(token): 3.0 for token in PROMPT} | {str(token): -100.0 for token in session.reserved.all}
    assert len(later) == 4 and first.items() >= expected.items()
    for numbers_LD, length in zip(chunk.hidden[HEAD_STATE], chunk.lengths_R, strict=True):
        numbers = numbers_LD[:length, :2] * session.reserved.size
        torch.testing.assert_close(numbers, torch.tensor([[-1.0, -2.0]]).expand(numbers.shape))


async def test_a_row_in_parts_of_a_token_is_a_request_for_several(served) -> None:
    """The route that reports the numbers streams nothing."""
    fake = FakeEndpoint(generates=True)
    session = await served(fake).open(PROMPT, Sampling(seed=5, stop_ids=(END,)), (HEAD_STATE,), None, ROWS)
    tokens: list[int] = []
    while len(tokens) < 12:
        chunk = await session.extend([0], 1, 1, 11 - len(tokens))
        tokens += chunk.tokens_RL[0].tolist()
        numbers = chunk.hidden[HEAD_STATE][0, :, :2] * session.reserved.size
        torch.testing.assert_close(numbers, torch.tensor([[-1.0, -2.0]]).expand(numbers.shape))
    assert [body["sampling_params"]["max_tokens"] for body in fake.bodies] == [WORDS_CHUNK, 12 - WORDS_CHUNK]
    assert session.prefixes == [PROMPT + tokens]


def test_a_search_by_such_values_continues_rows_on_that_route(served) -> None:
    fake = FakeEndpoint(generates=True)
    engine = served(fake)
    params = SearchParams(beam_width=2, num_successors=2, chunk_length=4)
    search = guided_search(engine, PROMPT, params, Sampling(stop_ids=(END,)), 12, stack())
    values = [final.value for final in asyncio.run(search).finals]
    assert all("sampling_params" in body for body in fake.bodies) and values == sorted(values, reverse=True)


@pytest.mark.parametrize("options", [{}, {"adapters": None}])
def test_a_server_without_the_route_or_adapters_reports_no_numbers(served, options) -> None:
    engine = served(FakeEndpoint(generates=bool(options)), **options)
    assert engine.info.head_values == 0
    with pytest.raises(ValueError, match="without hidden states"):
        asyncio.run(guided_search(engine, PROMPT, SearchParams(), Sampling(), 4, stack()))


def test_what_leaves_no_room_for_numbers_is_said(served) -> None:
    engine = served(FakeEndpoint(generates=True))

    def refused(sampling: Sampling, rows: torch.Tensor | None, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            asyncio.run(engine.open(PROMPT, sampling, (HEAD_STATE,), None, rows))

    refused(SAMPLING, None, "numbers of the output head's state alone")
    refused(SAMPLING, torch.cat([ROWS, ROWS]), "2 numbers of a state can be read, not 4")
    refused(replace(SAMPLING, alternatives=2), ROWS, "likeliest tokens are not reported")
    refused(replace(SAMPLING, stop_ids=(258,)), ROWS, "cannot end a row")


def test_a_replica_started_without_the_route_is_named(served) -> None:
    fake = FakeEndpoint(generates=True)
    engine = served(fake)
    fake.generates = False
    with pytest.raises(EngineUnavailable, match="started without /inference/v1/generate"):
        asyncio.run(guided_search(engine, PROMPT, SearchParams(num_successors=2), Sampling(), 4, stack()))


def test_likeliest_tokens_that_a_shared_batch_hides_are_asked_for_again(served) -> None:
    """vLLM 0.32 reports token 0 at -9999 in their place."""
    fake = FakeEndpoint(generates=True)
    engine = served(fake, patience=20.0)

    def with_top(top):
        def change(answer):
            for choice in answer["choices"]:
                choice["logprobs"]["top_logprobs"] = [top] * len(choice["token_ids"])
            return answer

        return change

    hidden, reported = {"token_id:65": -0.5, "token_id:0": -9999.0}, {"token_id:65": -0.5, "token_id:66": -1.5}
    fake.turn(with_top(hidden), times=1)

    async def draw():
        session = await engine.open(PROMPT, Sampling(seed=1, alternatives=2))
        work = asyncio.create_task(session.extend([0], 1, 2))
        while not fake.bodies:
            await asyncio.sleep(0.01)
        fake.turn(with_top(reported))
        return await work

    assert asyncio.run(draw()).alternatives[0][0] == [(65, -0.5), (66, -1.5)]
    assert engine.health().up


async def test_a_server_started_again_without_the_route_is_not_taken_for_one_that_lost_an_adapter(served) -> None:
    """vLLM names the model that it does not know; a server without the route names nothing."""
    fake = FakeEndpoint(generates=True)
    engine = served(fake, patience=60.0)
    session = await engine.open(PROMPT, SAMPLING, (0, HEAD_STATE), None, ROWS)
    answers = [{"error": {"message": f"The model `{session.adapter.name}` does not exist."}}, {"detail": "Not Found"}]
    fake.generate_errors = list(answers)
    with pytest.raises(EngineUnavailable, match="/inference/v1/generate is not there"):
        await asyncio.wait_for(session.extend([0], 1, 2), 10)
    loads = [name for route, name in fake.adapter_requests if route == "load_lora_adapter"]
    assert loads.count(session.adapter.name) == 2 and not fake.generate_errors
