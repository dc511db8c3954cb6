"""Bundles of one base share one backbone."""

from __future__ import annotations

import gc
import weakref

import pytest
from transformers import LlamaModel

from tests.value_heads.lora import bundle, full, search, write_model
from value_heads import load_bundle, save_bundle, shared
from value_heads.shared import free_memory, shared_models


def models_alive() -> int:
    gc.collect()
    return sum(type(each) is LlamaModel for each in gc.get_objects())


@pytest.mark.slow(11)
def test_bundles_of_one_base_share_one_backbone(values, model_dir, tmp_path):
    hashes = {"model_hash": "a", "template_hash": "b"}
    for number in range(3):
        save_bundle(tmp_path / str(number), bundle(model_dir, number), **hashes)
    before = models_alive()
    loaded = [load_bundle(tmp_path / str(number), **hashes, backbone_dir=model_dir) for number in range(3)]
    assert models_alive() == before
    assert {id(each.backbone.model) for each in loaded} == {id(values.backbone.model)}
    ids = [4, 8, 15, 16, 23, 42]
    assert [full(each, ids) for each in loaded] == [full(bundle(model_dir, number), ids) for number in range(3)]
    assert len({full(each, ids) for each in loaded}) == 3


def test_the_backbone_goes_with_its_last_user(tmp_path):
    first, second = (bundle(write_model(tmp_path, seed=3), number) for number in range(2))
    model = weakref.ref(first.backbone.shared)
    del first
    gc.collect()
    assert model() in shared_models()
    free_memory()
    assert model().adapters == 1
    del second
    gc.collect()
    assert model() is None


@pytest.mark.slow(6)
async def test_the_adapters_that_are_set_aside_are_the_least_recently_used(tmp_path, monkeypatch):
    bundles = [bundle(write_model(tmp_path, seed=3), number) for number in range(4)]
    ids = [4, 8, 15, 16, 23, 42]
    expected = [full(each, ids) for each in bundles]
    monkeypatch.setattr(shared, "MOST_ADAPTERS", 2)
    for number in (0, 2, 1, 2):
        assert full(bundles[number], ids) == expected[number]
    assert bundles[0].backbone.shared.adapters == 2
    assert [each.backbone.adapters[0].state is None for each in bundles] == [False, True, True, False]
    for number, each in enumerate(bundles):  # cached keys and values of an adapter outlive its place on the model
        await search(each, number, [5, 6, 7])
    assert [full(each, ids) for each in bundles] == expected
