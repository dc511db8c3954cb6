"""Tilts as LoRA adapters that vLLM servers load at run time, from a directory that they read too."""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from iro_server.engines.output_head import OutputHead, read_output_head
from value_heads.tilt import Tilt
from value_heads.tilt_export import HeadAdapter, head_adapter, without_static, write_peft


@dataclass(frozen=True)
class Adapter:
    """``name``: the model's name in requests, which no other tilt or strength has. ``path``: as the servers see it."""

    name: str
    path: Path


@dataclass(frozen=True, eq=False)
class StaticTilt:
    """A tilt on a server: ``adapter`` for what depends on the model's state, ``logit_bias`` [V] for the rest that
    depends on nothing, and None where the adapter has that too."""

    adapter: Adapter | None
    logit_bias: torch.Tensor | None


class AdapterFolder:
    """Writes each tilt once. ``folder``: None where the servers take no adapters."""

    def __init__(self, model_dir: Path, folder: Path | None) -> None:
        self.model_dir, self.folder = model_dir, folder

    @cached_property
    def head(self) -> OutputHead:
        return read_output_head(self.model_dir)

    def of(self, tilt: Tilt, strength: float) -> StaticTilt:
        """ValueError for a tilt that depends on the model's state without a folder."""
        parts = head_adapter(tilt, self.head.weight_VD)
        static = parts.static * strength
        if len(parts.lora_A) == 0 and (self.folder is None or tilt.direction is None):
            return StaticTilt(None, static)
        if self.folder is None:
            raise ValueError("the tilt depends on the model's state: IRO_ENGINE_ADAPTERS names no directory for it")
        scaled = HeadAdapter(parts.lora_A, parts.lora_B * strength, static)
        if tilt.direction is None:
            return StaticTilt(self._written(replace(scaled, static=torch.zeros_like(static))), static)
        return StaticTilt(self._written(without_static(scaled, tilt.direction)), None)

    def _written(self, adapter: HeadAdapter) -> Adapter:
        assert self.folder is not None
        digest = hashlib.sha256()
        for tensor in (adapter.lora_A, adapter.lora_B):
            digest.update(tensor.float().contiguous().numpy().tobytes())
        name = f"iro-{digest.hexdigest()[:24]}"
        path = self.folder / name
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                written = write_peft(adapter, Path(made) / name, str(self.model_dir), self.head.name)
                move_into_place(written, path)
        return Adapter(name, path)


def move_into_place(written: Path, path: Path) -> None:
    """Rename the folder; another process may have written the same one first."""
    try:
        os.rename(written, path)
    except OSError:
        if not path.exists():
            raise
