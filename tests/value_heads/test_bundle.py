"""A bundle comes back as it was saved, and only for the model it belongs to."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save

from value_heads import BundleMismatch, FeatureSpec, LinearHead, MLPHead, ValueStack, load_bundle, save_bundle
from value_heads.features import TOKENS
from value_heads.length_features import NUM_LENGTH_FEATURES
from value_heads.text_counts import pack
from value_heads.tilt import fold_tilts, zero_tilt

SIZE = 4
HASHES = {"model_hash": "a" * 64, "template_hash": "b" * 64}


def stack(seed: int, iterations: int) -> ValueStack:
    torch.manual_seed(seed)
    spec = FeatureSpec(current=(1,), summed=(0,), decayed=((1, 0.5),), stop_ids=(2,), horizon=10)
    width = spec.width(SIZE)
    heads = [LinearHead(spec, torch.randn(width), 0.1 * seed) for _ in range(iterations)]
    return ValueStack(
        [*heads, MLPHead(spec, torch.randn(width), torch.rand(width) + 1, (5, 3))], range(1, iterations + 2)
    )


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), iterations=st.integers(0, 3))
def test_roundtrip_is_exact(tmp_path_factory, seed, iterations):
    directory = tmp_path_factory.mktemp("bundle")
    saved = stack(seed, iterations)
    save_bundle(directory, saved, **HASHES, metrics={"reward": 1.5})
    loaded = load_bundle(directory, **HASHES)
    hidden = {layer: torch.randn(2, 5, SIZE) for layer in (0, 1)} | {TOKENS: torch.tensor([[5, 3, 2, -1, -1], [3] * 5])}
    assert torch.equal(loaded.values(hidden), saved.values(hidden))
    assert loaded.betas == saved.betas and loaded.layers == saved.layers
    assert json.loads((directory / "manifest.json").read_text())["metrics"] == {"reward": 1.5}


@pytest.mark.parametrize("added", ["stop_ids", "ended", "text_counts"])
def test_a_bundle_from_before_a_feature_was_added_loads(tmp_path, added):
    """A manifest whose specs do not name it means none of it."""
    spec = FeatureSpec(current=(1,), summed=(0,), horizon=10)
    saved = ValueStack([LinearHead(spec, torch.arange(2.0 * SIZE + 1), 0.5)], [2.0])
    save_bundle(tmp_path, saved, **HASHES)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["heads"][0]["spec"][added]
    manifest["format_version"] = 2
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    hidden = {layer: torch.randn(2, 5, SIZE) for layer in (0, 1)}
    assert torch.equal(load_bundle(tmp_path, **HASHES).values(hidden), saved.values(hidden))


def test_values_that_read_text_come_back_beside_one_that_does_not(tmp_path):
    """The counts of a vocabulary are a tensor, so that the manifest stays short."""
    plain = FeatureSpec(averaged=(1,), stop_ids=(2,), horizon=10)
    spec = plain.model_copy(update={"text_counts": pack([f"Ġword{number}." for number in range(5000)])})
    heads = [LinearHead(each, torch.randn(each.width(SIZE)), 0.0) for each in (plain, spec, spec)]
    mlp = MLPHead(spec, torch.randn(spec.width(SIZE)), torch.rand(spec.width(SIZE)) + 1, (3,))
    saved = ValueStack([*heads, mlp], [1.0, 2.0, 3.0, 4.0])
    save_bundle(tmp_path, saved, **HASHES)
    loaded = load_bundle(tmp_path, **HASHES)
    assert [head.spec for head in loaded.heads] == [head.spec for head in saved.heads]
    hidden = {1: torch.randn(2, 3, SIZE), TOKENS: torch.tensor([[4, 999, 2], [3, 3, 3]])}
    assert torch.equal(loaded.values(hidden), saved.values(hidden))
    assert (tmp_path / "manifest.json").stat().st_size < 5000


@pytest.mark.parametrize("reads_lengths", [True, False])
def test_a_tilt_comes_back_with_its_values(tmp_path, reads_lengths):
    """Of an earlier format: without what it did not have."""
    tilt = zero_tilt(7, SIZE, (1, 2), (3,))
    tilt = replace(tilt, bias=torch.arange(7.0), sharpness=0.5)
    if reads_lengths:
        factor, stop = torch.ones(0, NUM_LENGTH_FEATURES), torch.arange(float(NUM_LENGTH_FEATURES))
        tilt = replace(tilt, length_factor=factor, length_stop=stop)
    save_bundle(tmp_path, stack(0, 1).with_tilt(tilt), **HASHES)
    loaded = load_bundle(tmp_path, **HASHES).tilt
    assert loaded.parts == tilt.parts == {"bias", "sharpness"} | ({"lengths"} if reads_lengths else set())
    assert (loaded.ignored, loaded.stop_ids, loaded.sharpness) == (tilt.ignored, tilt.stop_ids, tilt.sharpness)
    assert loaded.tensors().keys() == tilt.tensors().keys()
    assert all(torch.equal(loaded.tensors()[name], tensor) for name, tensor in tilt.tensors().items())
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    del manifest["tilt"]["sharpness"]
    manifest["format_version"] = 4
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert load_bundle(tmp_path, **HASHES).tilt.sharpness == 0.0


def test_a_tilt_that_a_bundle_cannot_hold_is_refused(tmp_path):
    tilts = [zero_tilt(7, SIZE, ignored, (3,)) for ignored in ((1,), (2,))]
    tilts = [replace(tilt, gates=tilt.gates + 1.0) for tilt in tilts]
    with pytest.raises(ValueError, match="sets of gates"):
        save_bundle(tmp_path / "bundle", stack(0, 1).with_tilt(fold_tilts(tilts, [1.0, 1.0])), **HASHES)
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(("changed", "named"), [("model_hash", "base model"), ("template_hash", "chat template")])
def test_another_base_is_refused(tmp_path, changed, named):
    save_bundle(tmp_path, stack(0, 1), **HASHES)
    with pytest.raises(BundleMismatch, match=named):
        load_bundle(tmp_path, **(HASHES | {changed: "c" * 64}))


@pytest.mark.parametrize("lacking", ["0.weight", "1.mean", "1.net.0.weight", "tilt.bias"])
def test_a_bundle_that_lacks_a_tensor_says_so(tmp_path, lacking):
    """As another program may have written it: its hash is right."""
    save_bundle(tmp_path, stack(0, 1).with_tilt(zero_tilt(7, SIZE, (1, 2), (3,))), **HASHES)
    tensors = load_file(tmp_path / "value.safetensors")
    del tensors[lacking]
    write_tensors(tmp_path, save(tensors))
    with pytest.raises(ValueError, match=lacking.split(".", 1)[1]):
        load_bundle(tmp_path, **HASHES)


def test_a_bundle_whose_file_has_no_tensors_says_so(tmp_path):
    save_bundle(tmp_path, stack(0, 1), **HASHES)
    write_tensors(tmp_path, b"no tensors")
    with pytest.raises(ValueError, match=r"value\.safetensors is no file of tensors"):
        load_bundle(tmp_path, **HASHES)


def write_tensors(folder: Path, content: bytes) -> None:
    """Put ``content`` in place of a bundle's tensors, and its hash into the manifest."""
    (folder / "value.safetensors").write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["tensors_sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_damaged_bundle_says_so(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        load_bundle(tmp_path, **HASHES)
    save_bundle(tmp_path, stack(0, 1), **HASHES)
    tensors, manifest = tmp_path / "value.safetensors", tmp_path / "manifest.json"
    tensor_bytes = tensors.read_bytes()
    tensors.write_bytes(tensor_bytes[:-1] + bytes([tensor_bytes[-1] ^ 1]))
    with pytest.raises(ValueError, match="corrupt"):
        load_bundle(tmp_path, **HASHES)
    tensors.unlink()
    with pytest.raises(ValueError, match="safetensors is missing"):
        load_bundle(tmp_path, **HASHES)
    for text in ("{", "[]", json.dumps(json.loads(manifest.read_text()) | {"format_version": 8})):
        manifest.write_text(text)
        with pytest.raises(ValueError, match="manifest"):
            load_bundle(tmp_path, **HASHES)
