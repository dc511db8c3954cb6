"""Aligned models and their graders in the server's memory: which stay, and which go when."""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import save
from sqlalchemy import delete

from iro_server.api.app import create_app
from iro_server.api.registry import ModelRegistry, ModelUnreadable
from iro_server.graders.base import Sample
from iro_server.graders.loaded import HeldGrader, Loaded
from iro_server.store.database import find, open_database
from iro_server.store.tables import DEFAULT_PROJECT, Checkpoint, Model, Permission
from tests.iro_server.api.byte_engine import ByteEngine
from tests.iro_server.api.serving import aligned, ended, serving, settings_for, start_job, wait_for
from tests.iro_server.engines.fake_endpoint import write_byte_model
from value_heads import LoraBackbone, LoraValues, save_bundle
from value_heads.shared import shared_models


def registry_of(settings):
    return create_app(settings, ByteEngine()).state.context.models


@contextmanager
def server(settings) -> Iterator[tuple[TestClient, ModelRegistry]]:
    app = create_app(settings, ByteEngine())
    with TestClient(app, base_url="http://127.0.0.1") as client:
        yield client, app.state.context.models


def chat(client: TestClient, model: str, **options: Any) -> int:
    """The answer's status."""
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]} | options
    return client.post("/v1/chat/completions", json=body).status_code


def resolve(registry, name: str):
    return registry.resolve(name, DEFAULT_PROJECT)


def test_the_models_called_last_stay_in_memory(tmp_path):
    settings = settings_for(tmp_path, loaded_models=2)
    names = [aligned(settings, f"model-{number}") for number in range(3)]
    registry = registry_of(settings)
    values = {}
    for number in (0, 1, 0, 2):
        values[number] = weakref.ref(resolve(registry, names[number]).values)
    gc.collect()
    assert [values[number]() is None for number in range(3)] == [False, True, False]
    assert len(registry.values) == len(registry.graders) == 2


def test_a_request_keeps_the_model_that_it_uses(tmp_path):
    settings = settings_for(tmp_path, loaded_models=1)
    names = [aligned(settings, f"model-{number}") for number in range(2)]
    registry = registry_of(settings)
    first = resolve(registry, names[0])
    resolve(registry, names[1])
    state = first.scorer(first.defaults.search).start([1])
    assert state is not None and first.values is not resolve(registry, names[0]).values
    with first.grader.use() as grader:
        assert grader.type == "string_check"


def test_what_is_not_called_goes(tmp_path):
    settings = settings_for(tmp_path, model_idle=0.2)
    name = aligned(settings, "model")
    with server(settings) as (client, registry):
        assert chat(client, name) == 200
        wait_for(lambda: not len(registry.values) and not len(registry.graders))
        assert chat(client, name) == 200


@pytest.mark.slow(6)
def test_a_deleted_model_and_its_grader_leave_memory(tmp_path):
    settings = settings_for(tmp_path)
    name, other = aligned(settings, "model"), aligned(settings, "other")
    with server(settings) as (client, registry):
        assert [chat(client, each) for each in (name, other)] == [200, 200]
        values = weakref.ref(resolve(registry, name).values)
        assert client.delete(f"/v1/models/{name}").status_code == 200
        gc.collect()
        assert values() is None
        assert len(registry.values) == len(registry.graders) == 1
        assert [chat(client, each) for each in (name, other)] == [404, 200]


def test_a_deleted_models_grader_ends_its_processes(tmp_path):
    source = "def grade(sample, item): return sample['output_text'].count('z')"
    settings = settings_for(tmp_path, python_graders="unsafe")
    name = aligned(settings, "model", grader={"type": "python", "name": "letters", "source": source})
    with server(settings) as (client, registry):
        assert chat(client, name, search={"pick": "grader"}) == 200
        with resolve(registry, name).grader.use() as grader:
            sandboxes = [process._sandbox for process in grader._processes if process._sandbox]
        assert sandboxes and all(sandbox._process.poll() is None for sandbox in sandboxes)
        client.delete(f"/v1/models/{name}")
        assert all(sandbox._process.poll() is not None for sandbox in sandboxes)


KEEPS = """
seen = []
def grade(sample, item):
    seen.append(item)
    if item.get("tell"): raise ValueError(f"have seen {seen}")
    return len(seen)
"""


def test_a_models_grader_has_a_process_of_its_own_for_each_project_that_calls_it(tmp_path):
    settings = settings_for(tmp_path, python_graders="unsafe")
    name = aligned(settings, "model", grader={"type": "python", "name": "keeps", "source": KEEPS, "workers": 1})
    with open_database(settings).begin() as session:
        session.add(Permission(id="cp_1", model_name=name, project_id="guest", created_at=0))
    registry = registry_of(settings)
    owners, guests = (registry.resolve(name, project) for project in (DEFAULT_PROJECT, "guest"))
    with guests.grader.use() as grader:
        assert grader.grade(Sample("x"), {"secret": "of the guest"}).reward == 1
    with owners.grader.use() as grader:
        assert "of the guest" not in grader.grade(Sample("x"), {"tell": True}).error
    assert owners.owned_by_caller and not guests.owned_by_caller
    registry.drop("", "ftjob-model")
    assert len(registry.graders) == 0


def lora_model(settings, name: str, seed: int) -> str:
    """An aligned model whose value functions are a LoRA adapter."""
    aligned(settings, name)
    with open_database(settings)() as session:
        path = find(session, Model, name).path
    backbone = LoraBackbone(settings.model_dir, 2, rank=2)
    backbone.add_iteration()
    torch.nn.init.normal_(backbone.heads[0].weight, generator=torch.Generator().manual_seed(seed))
    save_bundle(Path(path), LoraValues(backbone, [1.0]), model_hash="model-hash", template_hash="template-hash")
    return name


def test_aligned_models_on_lora_share_one_backbone(tmp_path):
    settings = settings_for(tmp_path, model_dir=write_byte_model(tmp_path / "model"))
    names = [lora_model(settings, f"model-{number}", number) for number in range(3)]
    gc.collect()
    before = len(shared_models())
    registry = registry_of(settings)
    models = [resolve(registry, name) for name in names]
    assert len({id(model.values.backbone.model) for model in models}) == 1
    assert len(shared_models()) == before + 1
    del models
    registry.values.clear()
    gc.collect()
    assert len(shared_models()) == before


def make_manifest_a_folder(bundle: Path) -> None:
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").mkdir()


def drop_weights(bundle: Path) -> None:
    content = save({"other": torch.zeros(1)})
    (bundle / "value.safetensors").write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["tensors_sha256"] = hashlib.sha256(content).hexdigest()
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("damage", [make_manifest_a_folder, drop_weights])
def test_a_bundle_that_cannot_be_read_says_so(tmp_path, damage):
    settings = settings_for(tmp_path)
    name = aligned(settings, "model")
    with open_database(settings)() as session:
        damage(Path(find(session, Model, name).path))
    with pytest.raises(ModelUnreadable, match="The model 'model' cannot be loaded: "):
        resolve(registry_of(settings), name)


class Counted(SimpleNamespace):
    closed = 0

    def close(self) -> None:
        self.closed += 1


def test_a_grader_is_closed_when_the_last_who_uses_it_is_done():
    made: list[Counted] = []

    def make() -> Counted:
        made.append(Counted())
        return made[-1]

    held = HeldGrader(make)
    with held.use() as first, held.use() as second:
        assert first is second is made[0]
        held.drop()
        assert made[0].closed == 0
    assert made[0].closed == 1
    with held.use() as late:
        assert late is made[1] and late.closed == 0
    assert [each.closed for each in made] == [1, 1]


def test_nothing_is_loaded_twice():
    loaded: Loaded[object] = Loaded(2, 60.0)
    started, release = threading.Event(), threading.Event()
    entries = []

    def load() -> object:
        started.set()
        release.wait(10)
        return object()

    threads = [threading.Thread(target=lambda: entries.append(loaded.get("a", load))) for _ in range(2)]
    for thread in threads:
        thread.start()
    started.wait(10)
    release.set()
    for thread in threads:
        thread.join()
    assert entries[0] is entries[1]


def test_a_checkpoint_that_its_job_drops_as_it_is_called_does_not_exist(tmp_path, monkeypatch):
    settings = settings_for(tmp_path)
    with serving(settings, ByteEngine()) as client:
        job = ended(client, start_job(client))
        name = client.fine_tuning.jobs.checkpoints.list(job.id).data[-1].fine_tuned_model_checkpoint
        find_row = ModelRegistry._find

        def find_and_drop(self, *arguments):
            row = find_row(self, *arguments)
            if row:
                with self.sessions.begin() as session:
                    session.execute(delete(Checkpoint).where(Checkpoint.model_name == name))
                shutil.rmtree(row[0], ignore_errors=True)
            return row

        monkeypatch.setattr(ModelRegistry, "_find", find_and_drop)
        with pytest.raises(openai.NotFoundError, match="lists a job's"):
            client.chat.completions.create(model=name, messages=[{"role": "user", "content": "a"}])
