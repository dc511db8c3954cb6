"""What a start reads of a model's weights: nothing that it has hashed before, and no shard that it does not need."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

from benchmarks.families import save_tokenizer
from iro_server.engines.base import Sampling
from iro_server.engines.describe import Description
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.embedding import Embedding
from iro_server.engines.prepare import ModelError, model_hash, prepare_model, verify_model

SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IRO_HOME", str(tmp_path / "home"))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files of weights that are opened."""
    names: list[str] = []
    plain = Path.open

    def counted(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.suffix == ".safetensors":
            names.append(path.name)
        return plain(path, *args, **kwargs)

    monkeypatch.setattr(Path, "open", counted)
    return names


def write(directory: Path, value: float, at: float = 1e9) -> Path:
    """A file of weights last modified at ``at`` seconds."""
    directory.mkdir(exist_ok=True)
    path = directory / "model.safetensors"
    save_file({"w": torch.full((4,), value)}, path)
    os.utime(path, (at, at))
    return path


def save_shards(directory: Path, config: Any) -> None:
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(directory, max_shard_size="20KB")
    save_tokenizer(directory)


def test_weights_are_read_once_for_all_starts(tmp_path: Path, reads: list[str]) -> None:
    write(tmp_path / "model", 1.0)
    digest = model_hash(tmp_path / "model")
    assert reads == ["model.safetensors"]
    assert prepare_model("any/name", out=tmp_path / "model") == tmp_path / "model"
    assert model_hash(tmp_path / "model") == digest
    assert reads == ["model.safetensors"]


@pytest.mark.parametrize("change", ["mtime", "size", "inode", "another file", "path"])
def test_whatever_looks_changed_is_read_again(tmp_path: Path, reads: list[str], change: str) -> None:
    directory = tmp_path / "model"
    path = write(directory, 1.0)
    before = model_hash(directory)
    if change == "mtime":
        write(directory, 2.0, at=1.1e9)
    elif change == "size":
        save_file({"w": torch.ones(5)}, path)
        os.utime(path, (1e9, 1e9))
    elif change == "inode":
        copy = write(tmp_path / "other", 2.0)
        copy.replace(path)
    elif change == "another file":
        save_file({"v": torch.ones(1)}, directory / "more.safetensors")
        os.utime(directory / "more.safetensors", (1e9, 1e9))
    else:
        directory = directory.rename(tmp_path / "moved")
    reads.clear()
    assert (model_hash(directory) == before) == (change == "path")
    assert reads


def test_a_file_that_was_just_written_is_not_trusted_to_stay(tmp_path: Path) -> None:
    """Two writes within the clock's resolution, of one size into one inode, look the same."""
    import time

    now = time.time()
    path = write(tmp_path / "model", 1.0, at=now)
    before = model_hash(tmp_path / "model")
    path.write_bytes(
        path.read_bytes().replace(torch.tensor(1.0).numpy().tobytes(), torch.tensor(2.0).numpy().tobytes())
    )
    os.utime(path, (now, now))
    assert model_hash(tmp_path / "model") != before


@pytest.mark.parametrize("manifest", [True, False])
def test_verify_notices_what_a_start_does_not(tmp_path: Path, manifest: bool) -> None:
    directory = tmp_path / "model"
    path = write(directory, 1.0)
    digest = model_hash(directory)
    if manifest:
        (directory / "iro.json").write_text(json.dumps({"sha256": digest}))
    assert verify_model(directory) == digest
    path.write_bytes(
        path.read_bytes().replace(torch.tensor(1.0).numpy().tobytes(), torch.tensor(2.0).numpy().tobytes())
    )
    os.utime(path, (1e9, 1e9))
    assert model_hash(directory) == digest
    with pytest.raises(ModelError, match="changed"):
        verify_model(directory)
    if manifest:
        with pytest.raises(ModelError, match="changed"):
            model_hash(directory)
    else:
        assert model_hash(directory) != digest


def test_a_home_that_cannot_be_written_costs_only_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("IRO_HOME", str(tmp_path / "file"))
    write(tmp_path / "model", 1.0)
    assert model_hash(tmp_path / "model") == model_hash(tmp_path / "model")
    assert len(reads) == 2


def test_a_server_of_another_process_needs_the_embedding_alone(tmp_path: Path) -> None:
    save_shards(tmp_path / "model", LlamaConfig(**SMALL))
    digest = model_hash(tmp_path / "model")
    (tmp_path / "model" / "iro.json").write_text(json.dumps({"sha256": digest}))
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "model").get_input_embeddings().weight.float()
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())["weight_map"]
    for name in {*index.values()} - {index["model.embed_tokens.weight"]}:
        (tmp_path / "model" / name).unlink()
    assert len(list((tmp_path / "model").glob("*.safetensors"))) == 1 < len({*index.values()})
    assert Description.of_directory(tmp_path / "model").info.model_hash == digest
    hidden = Embedding(tmp_path / "model")(torch.tensor([[5, 127, 500]]))
    assert hidden.dtype == torch.float32
    torch.testing.assert_close(hidden[0, :2], expected[[5, 127]])
    assert not hidden[0, 2].any()  # an id past the table


@pytest.mark.parametrize("config", [LlamaConfig(**SMALL), Gemma3TextConfig(**SMALL)], ids=["plain", "scaled"])
async def test_the_embedding_is_layer_0_of_the_model_in_this_process(tmp_path: Path, config: Any) -> None:
    save_shards(tmp_path / "model", config)
    with EmbeddedEngine(tmp_path / "model") as engine:
        session = await engine.open([5, 6], Sampling(seed=0), layers=(0,))
        chunk = await session.extend([0], 3, 4)
    torch.testing.assert_close(Embedding(tmp_path / "model")(chunk.tokens_RL), chunk.hidden[0])
