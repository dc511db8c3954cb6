"""Which adapter a request to vLLM names: on a CPU vLLM 0.32 gives one without any that of its last slot."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from iro_server.engines import vllm_adapters
from iro_server.engines.base import Sampling, Steering
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.vllm import VLLMEngine
from iro_server.engines.vllm_adapters import AdapterFolder
from tests.iro_server.api.serving import wait_for
from tests.iro_server.engines.fake_endpoint import END, FakeEndpoint, write_byte_model
from value_heads.tilt import Tilt, fold_tilts, zero_tilt

PROMPT = [5, 6, 7]
VOCABULARY, WIDTH = 260, 16


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_byte_model(tmp_path_factory.mktemp("model"), vocabulary=VOCABULARY)


class PromptRemoval(VLLMEngine):
    removal_delay, marking_interval = 0.0, 0.05


def engine_of(model_dir, fake: FakeEndpoint, adapters) -> VLLMEngine:
    return PromptRemoval(model_dir, Endpoints((fake.url,), adapters=adapters, patience=1.0))


async def asked_for(engine: VLLMEngine, steering: Steering | None = None) -> str:
    session = await engine.open(PROMPT, Sampling(), (), steering)
    session.close()
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
            assert "states" not in engine.info.steers and not engine.info.head_values
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
        wait_for(lambda: len(list(folder.iterdir())) <= vllm_adapters.MOST_VARIANTS + 1)  # and one that changes nothing
        assert names[0] == await asked_for(engine, Steering(tilt, 0.5)) and (folder / names[0]).exists()
        del tilt
        gc.collect()  # as when the server lets go of a model; a thread of the engine's may hold it for a moment
        wait_for(lambda: [path.name for path in folder.iterdir()] == [engine.neutral.name])
    fake.close()


async def test_an_adapter_that_a_session_names_stays_until_it_is_unloaded(model_dir, tmp_path):
    """A server reads the folders of waiting requests' adapters again, and ends where one is not there."""
    fake, tilt = FakeEndpoint(), state_tilt(2)
    with engine_of(model_dir, fake, tmp_path) as engine:
        session = await engine.open(PROMPT, Sampling(seed=1, stop_ids=(END,)), (), Steering(tilt, 0.01))
        await session.extend([0], 1, 2)
        names = [await asked_for(engine, Steering(tilt, strength / 10)) for strength in range(1, 41)]
        wait_for(lambda: not (tmp_path / names[0]).exists())
        assert session.adapter.path.exists() and ("unload_lora_adapter", session.adapter.name) not in unloads(fake)
        session.close()
        wait_for(lambda: not session.adapter.path.exists())
        assert unloads(fake) == [("unload_lora_adapter", session.adapter.name)]
    fake.close()


def unloads(fake: FakeEndpoint) -> list[tuple[str, str]]:
    return [request for request in fake.adapter_requests if request[0] == "unload_lora_adapter"]


async def test_tilts_of_equal_content_keep_their_adapter_as_long_as_one_of_them_is_there(model_dir, tmp_path):
    fake, tilt, same = FakeEndpoint(), state_tilt(3), state_tilt(3)
    with engine_of(model_dir, fake, tmp_path) as engine:
        name = await asked_for(engine, Steering(tilt))
        assert await asked_for(engine, Steering(same)) == name
        del same
        gc.collect()
        await asyncio.sleep(0.3)
        assert (tmp_path / name).exists()
    fake.close()


async def test_a_served_adapter_is_refused_where_tilts_are_adapters_too(model_dir, tmp_path, monkeypatch):
    fake = FakeEndpoint(model="tuned")
    models = {"data": [{"id": "tuned", "parent": "bytes"}]}
    monkeypatch.setattr(fake.server.RequestHandlerClass, "do_GET", lambda self: self._answer(200, models))
    with pytest.raises(ValueError, match=r"'tuned' is a LoRA adapter of 'bytes'.*IRO_ENGINE_ADAPTERS"):
        engine_of(model_dir, fake, tmp_path)
    engine_of(model_dir, fake, None).close()
    fake.close()


@pytest.mark.parametrize(
    ("weight", "temperature", "needed"),
    [(-0.5, 1.0, 2.0), (-0.6, 1.0, "needs temperature 2.5"), (-1.0, 1.0, "leaves 0"), (-2.0, 0.0, "leaves -1")],
)
async def test_a_mix_that_flattens_the_model_beyond_vllms_temperatures_is_refused(
    model_dir, weight: float, temperature: float, needed: float | str
) -> None:
    fake = FakeEndpoint()
    sharp = replace(zero_tilt(VOCABULARY, WIDTH, (), (END,)), bias=torch.ones(VOCABULARY), sharpness=1.0)
    steering = Steering(fold_tilts([sharp], [weight]))
    with engine_of(model_dir, fake, None) as engine:
        if isinstance(needed, str):
            with pytest.raises(ValueError, match=needed):
                await engine.open(PROMPT, Sampling(temperature=temperature), (), steering)
        else:
            session = await engine.open(PROMPT, Sampling(temperature=temperature), (), steering)
            assert session.request(0, 1, 1, seed=0)["temperature"] == needed
    fake.close()


async def test_an_adapter_that_another_process_removed_is_written_again(model_dir, tmp_path):
    fake, tilt = FakeEndpoint(), state_tilt(1)
    with engine_of(model_dir, fake, tmp_path) as engine:
        name = await asked_for(engine, Steering(tilt))
        shutil.rmtree(tmp_path / name)
        assert await asked_for(engine, Steering(tilt)) == name and (tmp_path / name).exists()
    fake.close()


def grow_old(folder: Path) -> None:
    """As if a day had passed."""
    for path in folder.iterdir():
        day_ago = time.time() - vllm_adapters.UNUSED_SECONDS - 60
        os.utime(path, (day_ago, day_ago))


async def test_a_start_removes_what_ended_processes_left_a_day_ago_and_nothing_else(model_dir, tmp_path):
    fake, tilt = FakeEndpoint(), state_tilt(4)
    with engine_of(model_dir, fake, tmp_path) as engine:
        old = [await asked_for(engine, Steering(tilt, strength)) for strength in (0.5, 1.0)]
    (tmp_path / "iro-mine").mkdir()  # an export of a user's
    grow_old(tmp_path)
    recent = AdapterFolder(model_dir, tmp_path).of(tilt, 2.0).adapter
    with engine_of(model_dir, fake, tmp_path) as engine:
        wait_for(lambda: not any((tmp_path / name).exists() for name in old))
        assert {path.name for path in tmp_path.iterdir()} == {"iro-mine", recent.name, engine.neutral.name}
    fake.close()


async def test_adapters_in_use_stay_however_long_though_another_process_removes_old_ones(model_dir, tmp_path):
    fake, tilt = FakeEndpoint(), state_tilt(5)
    with engine_of(model_dir, fake, tmp_path) as engine:
        in_use = {await asked_for(engine, Steering(tilt)), engine.neutral.name}
        grow_old(tmp_path)
        wait_for(lambda: all(time.time() - path.stat().st_mtime < 60 for path in tmp_path.iterdir()))
        AdapterFolder(model_dir, tmp_path).remove_old()
        assert {path.name for path in tmp_path.iterdir()} == in_use
    fake.close()


def test_an_adapter_that_an_earlier_process_left_is_in_use_once_it_is_asked_for(model_dir, tmp_path):
    tilt = state_tilt(6)
    adapter = AdapterFolder(model_dir, tmp_path).of(tilt, 1.0).adapter
    grow_old(tmp_path)
    assert AdapterFolder(model_dir, tmp_path).of(tilt, 1.0).adapter == adapter
    AdapterFolder(model_dir, tmp_path).remove_old()
    assert adapter.path.exists()


async def test_an_adapter_of_another_account_is_used_though_it_cannot_be_marked(
    model_dir, tmp_path, monkeypatch, caplog
):
    fake = FakeEndpoint()
    with engine_of(model_dir, fake, tmp_path) as engine:
        name = engine.neutral.name

    def refuse(path):
        raise PermissionError(f"not yours: {path}")

    monkeypatch.setattr(os, "utime", refuse)
    with engine_of(model_dir, fake, tmp_path) as engine:
        assert engine.neutral.name == name
    assert f"{name} cannot be marked as in use: not yours" in caplog.text
    fake.close()
