"""``iro generate``: which of a search's completions it shows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from iro_server.cli import generate
from iro_server.cli.generate import complete
from iro_server.decoding.base import Final, SearchParams, SearchResult, SearchUsage
from iro_server.engines.base import Sampling
from iro_server.engines.embedded import EmbeddedEngine
from value_heads import FeatureSpec, LinearHead, ValueStack, save_bundle


def save_values(folder: Path, engine: EmbeddedEngine) -> Path:
    spec = FeatureSpec(summed=(0,))
    head = LinearHead(spec, torch.zeros(spec.width(engine.info.hidden_size)), 0.0)
    info = engine.info
    return save_bundle(folder, ValueStack([head], [1.0]), model_hash=info.model_hash, template_hash=info.template_hash)


@pytest.mark.parametrize(("temperature", "shown"), [(0.0, 1), (1.0, 0)])
def test_at_temperature_0_a_search_that_samples_shows_its_best(
    temperature: float,
    shown: int,
    small_model: Path,
    small_engine: EmbeddedEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finals = [Final([number], [0.0], value, "stop") for number, value in ((40, 0.5), (41, 2.0), (42, 1.0))]

    async def search(*args: object, **options: object) -> SearchResult:
        return SearchResult(finals, SearchUsage())

    monkeypatch.setattr(generate, "guided_search", search)
    params = SearchParams(beam_width=4, selection="smc")
    bundles = {save_values(tmp_path, small_engine): 1.0}
    completion = complete(small_model, "Hello", False, params, Sampling(temperature=temperature), 4, bundles)
    assert completion.text == small_engine.tokenizer.decode(finals[shown].tokens)
