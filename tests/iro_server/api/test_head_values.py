"""Aligned models whose values read the output head's state, where servers over HTTP run the frozen model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
import torch

from iro_server.engines.endpoints import Endpoints
from iro_server.engines.vllm import VLLMEngine
from iro_server.engines.vllm_adapters import MOST_VARIANTS
from tests.iro_server.api.serving import serving, settings_for, wait_for
from tests.iro_server.api.tilted import add_model
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint, endpoints, write_byte_model
from value_heads import FeatureSpec, LinearHead, MLPHead, ValueStack
from value_heads.features import HEAD_STATE

WIDTH = 16
SPEC = FeatureSpec(current=(HEAD_STATE,), summed=(0,), position=False, stop_ids=(END,))
SEARCH = {"search": {"num_successors": 4, "chunk_length": 2}}


def linear(seed: int, spec: FeatureSpec = SPEC) -> ValueStack:
    weight = torch.randn(spec.width(WIDTH), generator=torch.Generator().manual_seed(seed))
    return ValueStack([LinearHead(spec, weight, 0.0)], [1.0])


def mlp() -> ValueStack:
    width = SPEC.width(WIDTH)
    return ValueStack([MLPHead(SPEC, torch.zeros(width), torch.ones(width), (4,))], [1.0])


@contextmanager
def served(folder: Path, generates: bool) -> Iterator[tuple[openai.OpenAI, FakeEndpoint]]:
    """Models ``a`` and ``b`` are linear; ``wide`` reads more numbers than three unused tokens report."""
    model_dir = write_byte_model(folder / "model", vocabulary=260)
    wide = FeatureSpec(current=(HEAD_STATE,), averaged=(HEAD_STATE,), summed=(HEAD_STATE,), position=False)
    with (
        endpoints(FakeEndpoint(generates=generates)) as (fake,),
        VLLMEngine(model_dir, Endpoints((fake.url,), adapters=folder / "adapters"), "bytes") as engine,
    ):
        settings = settings_for(folder)
        stacks = {"a": linear(0), "b": linear(1), "mlp": mlp(), "wide": linear(2, wide)}
        for name, stack in stacks.items():
            add_model(settings, engine, name, stack)
        with serving(settings, engine) as client:
            fake.bodies.clear()
            yield client, fake


def complete(client: openai.OpenAI, model: str, **options: Any) -> openai.types.Completion:
    extra = {"extra_body": SEARCH | options.pop("extra_body", {})}
    return client.completions.create(model=model, prompt="Hi!", max_tokens=6, seed=1, **extra, **options)


def refused(client: openai.OpenAI, model: str, message: str, **options: Any) -> openai.BadRequestError:
    with pytest.raises(openai.BadRequestError, match=message) as error:
        complete(client, model, **options)
    return error.value


def test_they_are_searched_through_reserved_tokens_or_refused(tmp_path: Path) -> None:
    with served(tmp_path, generates=True) as (client, fake):
        assert complete(client, "a", logprobs=0).choices[0].text
        assert fake.bodies and all("sampling_params" in body for body in fake.bodies)
        assert refused(client, "a", "likeliest tokens", logprobs=2).param == "logprobs"
        assert refused(client, "mlp", "whole state").code == "model_mismatch"
        assert refused(client, "wide", "read 3 numbers .* 2 can be read").code == "model_mismatch"


def test_several_models_are_mixed_as_in_process(tmp_path: Path) -> None:
    """Whatever the weights, few adapters stay on disk."""
    with served(tmp_path, generates=True) as (client, fake):
        for weight in range(2 * MOST_VARIANTS):
            mixed = {"search": SEARCH["search"] | {"values": {"b": weight / 10}}}
            assert complete(client, "a", extra_body=mixed).choices[0].text
        assert all("sampling_params" in body for body in fake.bodies)
        names = {body["model"] for body in fake.bodies}
        assert len(names) == 2 * MOST_VARIANTS
        wait_for(lambda: len(list((tmp_path / "adapters").iterdir())) <= MOST_VARIANTS + 1)


def test_without_the_route_they_are_refused(tmp_path: Path) -> None:
    with served(tmp_path, generates=False) as (client, fake):
        error = refused(client, "a", "reads hidden states of bytes|served without them")
        assert error.code == "model_mismatch" and not fake.bodies
