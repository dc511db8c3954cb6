"""A real vLLM server of the real model, which the modules of this folder share."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from benchmarks.processes import VLLMProcess
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm import VLLMEngine
from value_heads.tilt import Tilt, zero_tilt
from value_heads.tilt_export import constant_direction

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


@pytest.fixture(scope="session")
def states(model, prompt) -> torch.Tensor:
    """[tokens of the prompt, width] that the output head reads."""
    with torch.no_grad():
        return model.model(torch.tensor([prompt])).last_hidden_state[0]


@pytest.fixture(scope="session")
def state_tilt(model, engine, states) -> Tilt:
    """A bias and a map of the state, both of a size that moves the draw."""
    generator = torch.Generator().manual_seed(0)
    vocabulary, width = model.lm_head.weight.shape
    direction, error = constant_direction(states)
    return replace(
        zero_tilt(vocabulary, width, (), engine.info.eos_ids),
        bias=torch.randn(vocabulary, generator=generator) * 0.3,
        state_factor=torch.randn(8, width + 1, generator=generator) * 0.02,
        token_factor=torch.randn(8, width, generator=generator) * 0.2,
        direction=direction,
        direction_error=error,
    )
