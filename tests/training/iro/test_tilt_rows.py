"""What tilts of a job are fitted to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from iro_server import JsonObject
from iro_server.decoding.base import SearchParams
from iro_server.engines.base import ModelInfo, Sampling
from iro_server.engines.describe import Description
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.frozen_model import FrozenModel
from tests.training.iro.test_prefixes import Folder
from tests.training.iro.test_tilting import config_in
from training.iro.data import Prompt
from training.iro.fit import Scale, Shards
from training.iro.head_states import head_states
from training.iro.prefixes import state_table
from training.iro.rollouts import HEAD_STATES, Batch, roll_out, stored
from training.iro.tilt_rows import TiltData, fit_tilts, tilt_rows
from training.iro.tilting import TRIALS, fitted_parts, num_trials, tries_tilts
from value_heads.tilt import TILT_PARTS, zero_tilt

TEMPERATURE = 0.5
PROMPTS, SAMPLES, LENGTH = 6, 8, 12


def drawn_at(temperature: float, frozen: FrozenModel, folder: Path) -> Shards:
    """Draws of the output head from random states; the reward counts tokens of even numbers."""
    generator = torch.Generator().manual_seed(0)
    states_RTD = torch.randn(PROMPTS * SAMPLES, LENGTH, frozen.head_weight.shape[1], generator=generator)
    shares_NV = (frozen.logits(states_RTD.flatten(0, 1)) / temperature).softmax(-1)
    tokens_RT = shares_NV.multinomial(1, generator=generator).view(-1, LENGTH)
    source, about = Folder(folder), {"metrics_bytes": 0, "seconds": 0.0}
    shard: JsonObject = {"prompts": list(range(PROMPTS)), "usage": {}, "drift": [], "prefixes": None}
    shard |= {"tokens": tokens_RT.view(PROMPTS, SAMPLES, -1).tolist(), "head_states": state_table(list(states_RTD))}
    rewards = (tokens_RT % 2 == 0).float().mean(1).view(PROMPTS, SAMPLES).tolist()
    source.checkpoints.save("rollouts", stored(shard), about)
    source.checkpoints.save("rewards", {"rewards": rewards}, about)
    return Shards(source, [("rollouts", "rewards")], Scale())


@pytest.fixture(scope="module")
def frozen(small_model: Path) -> FrozenModel:
    return FrozenModel(small_model, "cpu")


@pytest.fixture(scope="module")
def colder(small_model: Path) -> FrozenModel:
    """The frozen model whose logits at temperature 1 are those of ``frozen`` at ``TEMPERATURE``."""
    model = FrozenModel(small_model, "cpu")
    model.head_weight.div_(TEMPERATURE)
    return model


def test_a_tilt_of_draws_at_a_temperature_is_divided_by_it_when_tokens_are_drawn(
    small_model: Path, frozen: FrozenModel, colder: FrozenModel, tmp_path: Path
) -> None:
    """(logits + A) / T, with the A that is fitted at T, are the logits and the A of a model whose logits are colder."""
    prompts = {index: Prompt(index, (5, 300 + index), {}) for index in range(PROMPTS)}
    shards = drawn_at(TEMPERATURE, frozen, tmp_path)
    description, steers = Description.of_directory(small_model), frozenset({"bias", "words", "word_states", "lengths"})
    tempered = TiltData(prompts, shards, description, lambda: frozen, steers, temperature=TEMPERATURE)
    of_colder = TiltData(prompts, shards, description, lambda: colder, steers)
    tilts, expected = (fit_tilts(data, 0, lambda: None) for data in (tempered, of_colder))
    assert set(tilts) == set(expected) == {"words", "bias"}
    for kind, tilt in tilts.items():
        for name, tensor in expected[kind].tensors().items():
            if name not in ("direction", "direction_error"):
                torch.testing.assert_close(tilt.tensors()[name] / TEMPERATURE, tensor, rtol=1e-3, atol=1e-5)
    assert expected["words"].gates.abs().max() > 0.01


def test_an_exportable_tilt_reads_the_state_and_no_words(
    small_model: Path, frozen: FrozenModel, tmp_path: Path
) -> None:
    prompts = {index: Prompt(index, tuple(range(300, 400)), {}) for index in range(PROMPTS)}
    shards, description = drawn_at(1.0, frozen, tmp_path), Description.of_directory(small_model)
    parts = {}
    for tilt in ("auto", "exportable"):
        steers = fitted_parts(config_in(tmp_path, tilt=tilt), TILT_PARTS)
        data = TiltData(prompts, shards, description, lambda: frozen, steers)
        parts[tilt] = {kind: fitted.parts for kind, fitted in fit_tilts(data, 0, lambda: None).items()}
    assert parts["auto"]["words"] >= {"words", "lengths"} and parts["auto"]["states"] >= {"states", "words", "lengths"}
    assert parts["exportable"] == {"states": {"bias", "states"}, "bias": {"bias"}}


def test_an_exportable_tilt_takes_no_trials_of_words(tmp_path: Path) -> None:
    parts = {tilt: fitted_parts(config_in(tmp_path, tilt=tilt), TILT_PARTS) for tilt in ("auto", "exportable")}
    assert parts == {"auto": TILT_PARTS, "exportable": {"bias", "states", "sharpness"}}
    assert num_trials(parts["auto"]) - num_trials(parts["exportable"]) == len(TRIALS["words"])
    known = cast(ModelInfo, SimpleNamespace(drift=True))
    tried = [tries_tilts(config_in(tmp_path, tilt=tilt), TILT_PARTS, known) for tilt in ("exportable", "off")]
    assert tried == [True, False]


def test_a_fit_reads_whole_rollouts_of_about_as_many_positions_as_it_may(
    small_model: Path, frozen: FrozenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = {index: Prompt(index, (5, 300 + index), {}) for index in range(PROMPTS)}
    shards, description = drawn_at(1.0, frozen, tmp_path), Description.of_directory(small_model)
    data = TiltData(prompts, shards, description, lambda: frozen, frozenset({"bias"}))
    zero = zero_tilt(*frozen.head_weight.shape, (), description.info.eos_ids)
    total = PROMPTS * SAMPLES * LENGTH
    monkeypatch.setattr("training.iro.tilt_rows.MOST_POSITIONS", total // 4)
    count = len(tilt_rows(data, zero, seed=0))
    assert count % LENGTH == 0 and total / 8 < count < total / 2


def test_rollouts_under_a_schema_are_of_what_it_allows(small_engine: EmbeddedEngine, tmp_path: Path) -> None:
    """A prompt with tools is not held to it. The engine says how likely it drew each completion."""
    schema, eos_ids = json.dumps({"enum": ["a red lamp", "a river", "7"]}), small_engine.info.eos_ids
    tools = [{"type": "function", "function": {"name": "f"}}]
    items: list[JsonObject] = [{"messages": []}, {"messages": [], "tools": tools}]
    prompts = [Prompt(index, (5, 300 + index), item) for index, item in enumerate(items)]
    sampling = Sampling(TEMPERATURE, stop_ids=eos_ids, schema=schema)
    batch = Batch(prompts, [1, 2], sampling, SearchParams(num_successors=4, chunk_length=None), 12)
    shard = roll_out(small_engine, batch)
    data = TiltData(
        {},
        cast(Shards, None),
        Description.of_engine(small_engine),
        lambda: small_engine.frozen,
        frozenset(),
        temperature=TEMPERATURE,
        schema=schema,
    )
    ended = 0
    for prompt, group, drift in zip(prompts, shard["tokens"], shard["drift"], strict=True):
        states = head_states(small_engine.frozen, prompt.token_ids, group)
        for tokens, states_TD, expected in zip(group, states, drift["logprobs"], strict=True):
            logprobs_TV = data.policy_logprobs(prompt, tokens, states_TD)
            drawn_T = logprobs_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
            assert float(drawn_T.sum()) == pytest.approx(expected, abs=2e-3)
            assert logprobs_TV.isfinite().all() == ("tools" in prompt.item)
            torch.testing.assert_close(logprobs_TV.exp().sum(1), torch.ones(len(tokens)))
            if "tools" not in prompt.item and tokens[-1] in eos_ids:
                ended += 1
                only_end = logprobs_TV[-1, list(eos_ids)].exp().sum()
                torch.testing.assert_close(only_end, torch.tensor(1.0))  # forced
    assert ended


def test_states_that_an_earlier_version_did_not_store_are_recomputed(
    small_model: Path, frozen: FrozenModel, tmp_path: Path
) -> None:
    source, about = Folder(tmp_path), {"metrics_bytes": 0, "seconds": 0.0}
    prompts = {index: Prompt(index, tuple(range(5, 8 + index)), {}) for index in (3, 4)}
    tokens = [[[20, 21, 22], [30]], [[40, 41], [50, 51, 52, 53]]]
    computed = [
        head_states(frozen, prompts[index].token_ids, group) for index, group in zip((4, 3), tokens, strict=True)
    ]
    flat = [states for of_prompt in computed for states in of_prompt]
    shard: JsonObject = {"prompts": [4, 3], "usage": {}, "drift": [], "prefixes": None, "tokens": tokens}
    source.checkpoints.save("rollouts", stored(shard | {"head_states": state_table(flat)}), about)
    data = TiltData(
        prompts,
        Shards(source, [("rollouts", "rewards")], Scale()),
        Description.of_directory(small_model),
        lambda: frozen,
        frozenset(),
    )
    reported = data.states(0)
    source.checkpoints.drop_table("rollouts", HEAD_STATES)
    torch.testing.assert_close(data.states(0), flat)
    torch.testing.assert_close(reported, flat, rtol=2e-3, atol=2e-3)  # stored in half precision
