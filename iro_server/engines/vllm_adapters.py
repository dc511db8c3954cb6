"""Tilts, and rows that read the model's state, as LoRA adapters that vLLM servers load at run time, from a directory
that they read too."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from weakref import WeakKeyDictionary, finalize

import torch
from cachetools import LRUCache

from iro_server.engines.adapter_holds import Adapter, AdapterHolds
from iro_server.engines.output_head import OutputHead, read_output_head
from iro_server.engines.vllm_server import MAX_RANK
from value_heads.reserved_tokens import ReservedTokens, with_reserved
from value_heads.tilt import Tilt
from value_heads.tilt_export import HeadAdapter, compressed, head_adapter, without_static, write_peft

log = logging.getLogger("iro.engine")
MISSING = 0.001  # share of a tilt's map that a server's operator is not told of
MOST_VARIANTS = 16  # of a tilt: strengths, and rows that report the state
UNUSED_SECONDS = 86400.0  # an adapter that no process has marked as in use for so long is removed
NAMES = "iro-" + "[0-9a-f]" * 24  # of adapters' folders, as a pattern
NUMBERS = 30.0  # how far rows of length 1 move a logit at most, in nats: they are hardly ever parallel to a state

VariantKey = tuple[float, bytes]  # strength, rows


@dataclass(frozen=True, eq=False)
class StaticTilt:
    """A tilt on a server: ``adapter`` for what depends on the model's state, ``logit_bias`` [V] for the rest that
    depends on nothing, and None where the adapter has that too. ``reserved``: tokens whose logits report the state."""

    adapter: Adapter | None
    logit_bias: torch.Tensor | None
    reserved: ReservedTokens | None = None

    @property
    def is_there(self) -> bool:
        """Whether its adapter is on disk still: processes that share the folder remove their own, which may be it."""
        return self.adapter is None or self.adapter.path.exists()


class Variants(LRUCache[VariantKey, StaticTilt]):
    """One tilt on a server, by what requests ask of it. Those that were asked for longest ago give way: a client may
    ask for any strength. Each holds its adapter."""

    def __init__(self, holds: AdapterHolds) -> None:
        super().__init__(MOST_VARIANTS)
        self._holds = holds

    def popitem(self) -> tuple[VariantKey, StaticTilt]:
        key, static = super().popitem()
        self.release(static)
        return key, static

    def release(self, static: StaticTilt) -> None:
        if static.adapter:
            self._holds.release(static.adapter)

    def release_all(self) -> None:
        """What was written for a tilt that nobody has any more."""
        for static in self.values():
            self.release(static)


class AdapterFolder:
    """Writes each variant of a tilt once, and lets go of it with the tilt. ``folder``: None where the servers take no
    adapters. ``unused``: tokens that no completion needs. ``dispose``: as of AdapterHolds."""

    def __init__(
        self,
        model_dir: Path,
        folder: Path | None,
        unused: Sequence[int] = (),
        dispose: Callable[[Adapter], None] | None = None,
    ) -> None:
        self.model_dir, self.folder, self.unused = model_dir, folder and folder.resolve(), unused
        self.holds = AdapterHolds(dispose)
        self._of_tilts: WeakKeyDictionary[Tilt, Variants] = WeakKeyDictionary()
        self._of_rows = Variants(self.holds)  # without a tilt

    @cached_property
    def head(self) -> OutputHead:
        return read_output_head(self.model_dir)

    def of(self, tilt: Tilt | None, strength: float, rows_KD: torch.Tensor | None = None) -> StaticTilt:
        """``rows_KD``: of length 1, whose products with the model's state the adapter reports.

        ValueError for what depends on the model's state without a folder.
        """
        variants = self._of_rows if tilt is None else self._variants(tilt)
        key = (strength, b"" if rows_KD is None else rows_KD.numpy().tobytes())
        static = variants.get(key)
        if static is None or not static.is_there:
            written = self._static(tilt, strength, rows_KD)
            if static is not None:
                variants.release(static)
            variants[key] = static = written
        return static

    def _variants(self, tilt: Tilt) -> Variants:
        if tilt not in self._of_tilts:
            self._of_tilts[tilt] = variants = Variants(self.holds)
            finalize(tilt, variants.release_all).atexit = False  # a server that starts again finds them
        return self._of_tilts[tilt]

    def neutral(self) -> Adapter:
        """An adapter that changes nothing. OSError where the output head's weights are not in the model's directory."""
        head = read_output_head(self.model_dir)  # not kept: a server without tilts needs it no more
        vocabulary, width = head.weight_VD.shape
        zero = HeadAdapter(torch.zeros(1, width), torch.zeros(vocabulary, 1), torch.zeros(vocabulary))
        return self._written(zero, head.name)

    def remove_old(self) -> None:
        """Remove adapters that no process which shares the folder has marked as in use for ``UNUSED_SECONDS``. A
        process that ends leaves its own, which may be those of the next one."""
        assert self.folder is not None
        for path in self.folder.glob(NAMES):
            try:
                unused_seconds = time.time() - path.stat().st_mtime
            except FileNotFoundError:  # another process has removed it
                continue
            if unused_seconds > UNUSED_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def _static(self, tilt: Tilt | None, strength: float, rows_KD: torch.Tensor | None) -> StaticTilt:
        if tilt is None:
            vocabulary, width = self.head.weight_VD.shape
            adapter = HeadAdapter(torch.zeros(0, width), torch.zeros(vocabulary, 0), torch.zeros(vocabulary))
            logit_bias = None
        else:
            adapter, logit_bias = self._of_tilt(tilt, strength, MAX_RANK - (0 if rows_KD is None else len(rows_KD)))
        if rows_KD is None and len(adapter.lora_A) == 0:
            return StaticTilt(None, logit_bias)
        if self.folder is None:
            raise ValueError("the tilt depends on the model's state: IRO_ENGINE_ADAPTERS names no directory for it")
        if rows_KD is None:
            return StaticTilt(self._written(adapter, self.head.name), logit_bias)
        reference, *ids = self.unused[: len(rows_KD) + 1]
        reserved = ReservedTokens(reference, tuple(ids), NUMBERS / self.head.state_length)
        adapter = with_reserved(adapter, reserved, rows_KD, self.head.weight_VD)
        return StaticTilt(self._written(adapter, self.head.name), logit_bias, reserved)

    def _of_tilt(self, tilt: Tilt, strength: float, rank: int) -> tuple[HeadAdapter, torch.Tensor | None]:
        """An adapter of at most ``rank`` without a static part, and what of that it does not have."""
        parts, missing = compressed(head_adapter(tilt, self.head.weight_VD), rank - (tilt.direction is not None))
        if missing > MISSING:
            log.warning(
                "a tilt is compressed to adapters of rank %d: its map of the state is off by %.1f %%",
                MAX_RANK,
                100 * missing,
            )
        static = parts.static * strength
        scaled = HeadAdapter(parts.lora_A, parts.lora_B * strength, static)
        if self.folder is None or tilt.direction is None:
            return replace(scaled, static=torch.zeros_like(static)), static
        return without_static(scaled, tilt.direction), None

    def _written(self, adapter: HeadAdapter, module: str) -> Adapter:
        """An adapter that the caller holds. ``module``: the output head's name in the model."""
        assert self.folder is not None
        digest = hashlib.sha256()
        for tensor in (adapter.lora_A, adapter.lora_B):
            digest.update(tensor.float().contiguous().numpy().tobytes())
        name = f"iro-{digest.hexdigest()[:24]}"
        path = self.folder / name
        self.holds.hold(written := Adapter(name, path))
        written.mark_used()
        if not path.exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                move_into_place(write_peft(adapter, Path(made) / name, str(self.model_dir), module), path)
        return written


def move_into_place(written: Path, path: Path) -> None:
    """Rename the folder; another process may have written the same one first."""
    try:
        os.rename(written, path)
    except OSError:
        if not path.exists():
            raise
