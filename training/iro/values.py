"""Value functions as a checkpoint or another machine takes them: the files of their bundle."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from iro_server.engines.base import ModelInfo
from value_heads import LoraValues, ValueStack, load_bundle, save_bundle

Stack = ValueStack | LoraValues
Files = dict[str, Tensor]
"""The bytes of each, [size] uint8, by name."""


@dataclass(frozen=True)
class Bundles:
    """Bundles of one frozen model, which lies in ``model_dir``."""

    info: ModelInfo
    model_dir: Path | None

    def pack(self, stack: Stack) -> Files:
        with tempfile.TemporaryDirectory() as folder:
            info = self.info
            save_bundle(Path(folder), stack, model_hash=info.model_hash, template_hash=info.template_hash)
            return {
                path.name: torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) for path in _in(folder)
            }

    def unpack(self, files: Files) -> Stack:
        with tempfile.TemporaryDirectory() as folder:
            for name, data in files.items():
                Path(folder, name).write_bytes(data.numpy().tobytes())
            return self.load(Path(folder))

    def load(self, folder: Path) -> Stack:
        hashes = {"model_hash": self.info.model_hash, "template_hash": self.info.template_hash}
        values = load_bundle(folder, **hashes, backbone_dir=self.model_dir)
        if isinstance(values, LoraValues):
            values.backbone.score_singly = self.info.hidden  # such an engine promises the same to the bit
        return values


def _in(folder: str) -> list[Path]:
    return sorted(Path(folder).iterdir())
