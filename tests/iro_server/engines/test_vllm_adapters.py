"""Which adapter a request to vLLM names: on a CPU vLLM 0.32 gives one without any that of its last slot."""

from __future__ import annotations

import gc
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iro_server.engines import vllm_adapters
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.vllm import VLLMEngine
from tests.iro_server.api.serving import wait_for
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint, write_byte_model
from value_heads.tilt import Tilt, fold_tilts, zero_tilt

PROMPT = [5, 6, 7]
VOCABULARY, WIDTH = 260, 16


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_byte_model(tmp_path_factory.mktemp("model"), vocabulary=VOCABULARY)


def engine_of(model_dir, fake: FakeEndpoint, adapters) -> VLLMEngine:
    return VLLMEngine(model_dir, Endpoints((fake.url,), adapters=adapters, patience=1.0))


async def asked_for(engine: VLLMEngine, steering: Steering | None = None) -> str:
    session = await engine.open(PROMPT, Sampling(), (), steering)
    return session.request(0, 1, 1, seed=0)["model"]


async def test_the_base_and_a_bias_are_asked_for_by_an_adapter_that_changes_nothing(model_dir, tmp_path) -> None:
    fake = FakeEndpoint()
    bias = replace(zero_tilt(VOCABULARY, WIDTH, (), (END,)), bias=torch.arange(260.0))
    with engine_of(model_dir, fake, tmp_path / "adapters") as engine:
        names = {await asked_for(engine), await asked_for(engine, Steering(bias))}
        adapter = engine.neutral
    fake.close()
    assert adapter is not None and names == {adapter.name}
    assert not any(tensor.any() for tensor in load_file(adapter.path / "adapter_model.safetensors").values())


async def test_a_server_with_another_working_directory_is_given_the_absolute_path(
    model_dir, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = FakeEndpoint()
    with engine_of(model_dir, fake, Path("adapters")) as engine:
        adapter = engine.neutral
    fake.close()
    assert adapter is not None and adapter.path.parent == tmp_path / "adapters"


async def test_servers_without_adapters_are_asked_by_the_models_name(model_dir, tmp_path, caplog) -> None:
    for fake, adapters in ((FakeEndpoint(), None), (FakeEndpoint(loads=False), tmp_path / "adapters")):
        with caplog.at_level(logging.WARNING), engine_of(model_dir, fake, adapters) as engine:
            assert await asked_for(engine) == "bytes" and engine.neutral is None
        fake.close()
    assert "--enable-lora" in caplog.text


@pytest.mark.parametrize(("most", "expected"), [(32, WIDTH + 1), (8, 8)])
async def test_a_model_of_several_iterations_fits_the_servers_rank(
    model_dir, tmp_path, monkeypatch, caplog, most: int, expected: int
) -> None:
    """Folded tilts have the sum of their ranks, which the servers would refuse; what is left out is logged."""
    monkeypatch.setattr(vllm_adapters, "MAX_RANK", most)
    generator = torch.Generator().manual_seed(0)
    tilts = [
        replace(
            zero_tilt(VOCABULARY, WIDTH, (), (END,)),
            state_factor=torch.randn(16, WIDTH + 1, generator=generator),
            token_factor=torch.randn(16, WIDTH, generator=generator),
            direction=torch.randn(WIDTH, generator=generator),
        )
        for _ in range(3)
    ]
    fake = FakeEndpoint()
    with engine_of(model_dir, fake, tmp_path / "adapters") as engine:
        folded = fold_tilts(tilts, [1.0, 0.5, 2.0])
        name = await asked_for(engine, Steering(folded))
    fake.close()
    tensors = load_file(tmp_path / "adapters" / name / "adapter_model.safetensors")
    ranks = [tensor.shape[0] for key, tensor in tensors.items() if "lora_A" in key]
    assert ranks == [expected]  # the map of the state and the direction at most; not the 49 of the folded tilts
    assert ("off by" in caplog.text) == (expected < WIDTH + 1)


def state_tilt(seed: int) -> Tilt:
    generator = torch.Generator().manual_seed(seed)
    return replace(
        zero_tilt(VOCABULARY, WIDTH, (), (END,)),
        state_factor=torch.randn(2, WIDTH + 1, generator=generator),
        token_factor=torch.randn(2, WIDTH, generator=generator),
        direction=torch.randn(WIDTH, generator=generator),
    )


async def test_a_client_that_tries_strengths_fills_no_disk_and_each_strength_has_its_adapter(model_dir, tmp_path):
    fake, folder = FakeEndpoint(), tmp_path / "adapters"
    with engine_of(model_dir, fake, folder) as engine:
        tilt = state_tilt(0)
        names = [await asked_for(engine, Steering(tilt, strength / 100)) for strength in range(50, 100)]
        assert len(set(names)) == 50
        assert len(list(folder.iterdir())) <= vllm_adapters.MOST_VARIANTS + 1  # and the one that changes nothing
        assert names[0] == await asked_for(engine, Steering(tilt, 0.5)) and (folder / names[0]).exists()
        del tilt
        gc.collect()  # as when the server lets go of a model; a thread of the engine's may hold it for a moment
        wait_for(lambda: [path.name for path in folder.iterdir()] == [engine.neutral.name])
    fake.close()


async def test_an_adapter_that_another_process_removed_is_written_again(model_dir, tmp_path):
    fake, tilt = FakeEndpoint(), state_tilt(1)
    with engine_of(model_dir, fake, tmp_path) as engine:
        name = await asked_for(engine, Steering(tilt))
        shutil.rmtree(tmp_path / name)
        assert await asked_for(engine, Steering(tilt)) == name and (tmp_path / name).exists()
    fake.close()
