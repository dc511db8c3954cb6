"""A real vLLM server of the real model, which the modules of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.processes import VLLMProcess
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm import VLLMEngine

PASSAGE = (
    "I had wanted to see this film for years, and last night a friend finally lent me her copy. It opens slowly, with "
    "a long walk along the shore of a lake, and nothing much is said for the first ten minutes or so of it, until"
)


def vllm(model_dir: Path, folder: Path) -> VLLMProcess:
    return VLLMProcess(model_dir, folder / "vllm.log", "--max-model-len", "512", "--max-num-seqs", "64")


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return prepare_model()


@pytest.fixture(scope="session")
def served(model_dir, tmp_path_factory):
    with vllm(model_dir, tmp_path_factory.mktemp("vllm")) as process:
        yield process


@pytest.fixture(scope="session")
def engine(served, model_dir, tmp_path_factory):
    """With adapters: without, other modules' would answer for the frozen model (docs/vllm.md)."""
    with VLLMEngine(model_dir, Endpoints((served.url,), adapters=tmp_path_factory.mktemp("adapters"))) as engine:
        yield engine


@pytest.fixture(scope="session")
def prompt(engine):
    return engine.tokenizer(PASSAGE)["input_ids"]


@pytest.fixture(scope="session")
def model(model_dir):
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
