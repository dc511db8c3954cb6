"""States that no engine reported, recomputed by one pass of the frozen model."""

from __future__ import annotations

import asyncio
import gc
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks.families import save_model
from benchmarks.family_configs import VOCABULARY
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import HEAD_STATE, Sampling
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.frozen_model import FrozenModel, find_decoder
from training.iro.data import Prompt
from training.iro.executor import LocalExecutor
from training.iro.head_states import head_states, states_along
from training.iro.prefixes import Prefixes, read_states
from training.iro.rollouts import Batch, roll_out
from value_heads import FeatureSpec, LinearHead, ValueStack


def test_they_are_those_that_the_tokens_were_drawn_from(small_engine: EmbeddedEngine) -> None:
    """Completions of different lengths, in one batch, against the engine's own."""
    prompt = small_engine.tokenizer("The lamp by the river was lit every evening, until")["input_ids"]
    sampling = Sampling(seed=3, stop_ids=tuple(range(0, len(small_engine.tokenizer), 6)))  # about each sixth token
    params = SearchParams(num_successors=6)
    search = guided_search(small_engine, prompt, params, sampling, 12, keep_hidden=(HEAD_STATE,))
    finals = asyncio.run(search).finals
    assert len({len(final.tokens) for final in finals}) > 2
    states = head_states(small_engine.frozen, prompt, [final.tokens for final in finals])
    for final, recomputed in zip(finals, states, strict=True):
        torch.testing.assert_close(recomputed, final.hidden[HEAD_STATE].float(), atol=2e-3, rtol=2e-3)


def test_a_layers_states_at_the_tokens_are_the_engines(small_engine: EmbeddedEngine) -> None:
    """Of completions of different lengths, each with its last token, beside the states that tokens were drawn from."""
    prompt = small_engine.tokenizer("The lamp by the river was lit every evening, until")["input_ids"]
    sampling = Sampling(seed=3, stop_ids=tuple(range(0, len(small_engine.tokenizer), 6)))
    search = guided_search(small_engine, prompt, SearchParams(num_successors=6), sampling, 12, keep_hidden=(1,))
    finals = asyncio.run(search).finals
    completions = [final.tokens for final in finals]
    states = states_along(small_engine.frozen, prompt, completions, 1)
    alone = head_states(small_engine.frozen, prompt, completions)
    for final, (drawn_from, of_layer), expected in zip(finals, states, alone, strict=True):
        torch.testing.assert_close(of_layer, final.hidden[1].float(), atol=2e-3, rtol=2e-3)
        torch.testing.assert_close(drawn_from, expected, atol=2e-3, rtol=2e-3)


def test_values_that_read_them_rank_a_search_in_process(small_engine: EmbeddedEngine) -> None:
    prompt = small_engine.tokenizer("The lamp by the river was lit every evening, until")["input_ids"]
    spec = FeatureSpec(current=(HEAD_STATE,), averaged=(HEAD_STATE,), position=False)
    weight = torch.randn(spec.width(small_engine.info.hidden_size), generator=torch.Generator().manual_seed(0))
    values = ValueStack([LinearHead(spec, 0.1 * weight, 0.0)], [1.0])
    params = SearchParams(beam_width=2, num_successors=2, chunk_length=4)
    finals = asyncio.run(guided_search(small_engine, prompt, params, Sampling(seed=3), 12, values)).finals
    for final, states in zip(
        finals, head_states(small_engine.frozen, prompt, [final.tokens for final in finals]), strict=True
    ):
        assert final.value == pytest.approx(float(values.values({HEAD_STATE: states[None]})[0, -1]), abs=5e-3)


def test_rollouts_store_recomputed_states_as_an_engines_own(small_engine: EmbeddedEngine) -> None:
    prompt_ids = small_engine.tokenizer("The lamp by the river was lit every evening, until")["input_ids"]
    prompts = [Prompt(0, tuple(prompt_ids[:6]), {}), Prompt(1, tuple(prompt_ids), {})]
    batch = Batch(
        prompts,
        [1, 2],
        Sampling(stop_ids=small_engine.info.eos_ids),
        SearchParams(num_successors=3),
        10,
        spec=FeatureSpec(current=(HEAD_STATE,), averaged=(HEAD_STATE,), summed=(0,), position=False),
        head_states=True,
    )
    reported = roll_out(small_engine, batch)
    recomputed = roll_out(small_engine, batch, partial(head_states, small_engine.frozen))
    assert reported["tokens"] == recomputed["tokens"]
    tokens = [row for group in reported["tokens"] for row in group]
    features = [
        Prefixes(part["prefixes"], range(len(tokens)), tokens).features(batch.spec) for part in (reported, recomputed)
    ]
    torch.testing.assert_close(*features, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(
        *(read_states(part["head_states"]) for part in (reported, recomputed)), atol=5e-3, rtol=5e-3
    )


def test_a_job_beside_servers_holds_one_copy_of_the_frozen_model(small_engine: EmbeddedEngine, tmp_path: Path) -> None:
    save_model("llama", tmp_path)
    servers: Any = SimpleNamespace(info=small_engine.info)
    executor = LocalExecutor(servers, tmp_path)
    frozen = executor.load_frozen()
    assert executor.load_frozen() is frozen
    unused = weakref.ref(frozen)
    del frozen
    gc.collect()
    assert unused() is None and executor.load_frozen() is executor.load_frozen()


@pytest.mark.parametrize(
    "family", ["llama", "mistral", "gemma3_text"]
)  # the last two have windows shorter than the rows
def test_they_are_those_of_a_pass_over_the_whole_text(family: str, tmp_path: Path) -> None:
    """The prompt is read once; completions have any lengths."""
    save_model(family, tmp_path)
    frozen = FrozenModel(tmp_path, "cpu")
    generator = torch.Generator().manual_seed(0)
    prompt, *completions = (torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in (17, 11, 1, 7))
    for some in (completions, [completions[1]], []):
        states = head_states(frozen, prompt, some)
        assert [len(states_TD) for states_TD in states] == [len(tokens) for tokens in some]
        for tokens, states_TD in zip(some, states, strict=True):
            with torch.no_grad(), frozen.reference_forward() as model:
                full = find_decoder(model)(input_ids=torch.tensor([prompt + tokens[:-1]])).last_hidden_state[0]
            torch.testing.assert_close(states_TD, full[len(prompt) - 1 :], atol=1e-4, rtol=1e-4)
