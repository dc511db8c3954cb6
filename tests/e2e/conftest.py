"""A real vLLM server of the real model, which the modules of this folder share."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.processes import VLLMProcess
from iro_server.engines.prepare import prepare_model


def vllm(model_dir: Path, folder: Path) -> VLLMProcess:
    return VLLMProcess(model_dir, folder / "vllm.log", "--max-model-len", "512", "--max-num-seqs", "64")


@pytest.fixture(scope="session")
def model_dir() -> Path:
    return prepare_model()


@pytest.fixture(scope="session")
def served(model_dir, tmp_path_factory):
    with vllm(model_dir, tmp_path_factory.mktemp("vllm")) as process:
        yield process
