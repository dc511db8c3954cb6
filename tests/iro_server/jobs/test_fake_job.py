"""What the fake job saves is what ``save_bundle`` saves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.iro_server.jobs.fake_job import save_values
from value_heads import FeatureSpec, LinearHead, ValueStack, save_bundle
from value_heads.bundle import TENSORS, read_manifest


def test_values_of_the_fake_job_are_a_bundle(tmp_path: Path) -> None:
    spec = FeatureSpec(summed=(0,), position=False)
    stack = ValueStack([LinearHead(spec, torch.tensor([1.0, 0.0]), 0.0) for _ in range(2)], [1.0, 1.0])
    save_bundle(tmp_path / "stack", stack, model_hash="model-hash", template_hash="template-hash")
    save_values(tmp_path / "fake", 2)
    manifests = [read_manifest(tmp_path / name).model_dump(exclude={"tensors_sha256"}) for name in ("stack", "fake")]
    assert manifests[0] == manifests[1]
    expected, saved = (load_file(tmp_path / name / TENSORS) for name in ("stack", "fake"))
    assert expected.keys() == saved.keys()
    assert all(torch.equal(expected[name], saved[name]) for name in expected)


def test_a_worker_of_the_fake_job_imports_no_torch() -> None:
    code = "import sys, iro_server.jobs.worker, tests.iro_server.jobs.fake_job; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
