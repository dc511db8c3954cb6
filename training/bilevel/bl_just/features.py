"""From a recording to log-mel frames, and SpecAugment."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from cachetools import LRUCache
from scipy.signal import resample_poly
from torch.utils.data import Dataset
from transformers.audio_utils import mel_filter_bank

from training.bilevel.bl_just.manifest import Recording

MELS = 40
FRAMES_PER_SECOND = 100
WINDOW_SECONDS = 0.025


def load_audio(path: Path, rate: int) -> torch.Tensor:
    """Mono samples [n] in [-1, 1], at ``rate`` Hz."""
    samples, own = soundfile.read(str(path), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if own != rate:
        ratio = Fraction(rate, own)
        mono = resample_poly(mono, ratio.numerator, ratio.denominator)
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def log_mel(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Log-mel energies [frames, 40], 100 frames a second; each mel has mean 0 and deviation 1 over the recording."""
    energies = (mel_energies(samples, rate) + 1e-6).log()
    return (energies - energies.mean(dim=0)) / (energies.std(dim=0) + 1e-3)


def mel_energies(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Energies [frames, 40] of 25 ms windows in triangles evenly spread on Slaney's mel scale, from 20 Hz."""
    hop, window = rate // FRAMES_PER_SECOND, int(rate * WINDOW_SECONDS)
    size = 1 << (window - 1).bit_length()
    if len(samples) <= size:
        samples = torch.nn.functional.pad(samples, (0, size + 1 - len(samples)))
    hann = torch.hann_window(window)
    power = torch.stft(samples, size, hop, window, hann, return_complex=True).abs().square()
    return (_mel(size, rate) @ power).T


@cache
def _mel(size: int, rate: int) -> torch.Tensor:
    bank = mel_filter_bank(size // 2 + 1, MELS, 20.0, rate / 2, rate, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(bank.T.astype(np.float32))


class Features(Dataset[torch.Tensor]):
    """Log-mel frames of recordings, computed when they are asked for; the last ``cache_mb`` of them are kept."""

    def __init__(self, recordings: list[Recording], rate: int, cache_mb: int = 512) -> None:
        self.recordings, self.rate = recordings, rate
        self._kept: Any = LRUCache(cache_mb * 2**20, getsizeof=lambda frames: frames.nbytes)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> torch.Tensor:
        frames = self._kept.get(index)
        if frames is None:
            frames = log_mel(load_audio(self.recordings[index].audio, self.rate), self.rate)
            if frames.nbytes <= self._kept.maxsize:
                self._kept[index] = frames
        return frames


def spec_augment(
    frames: torch.Tensor, rng: np.random.Generator, *, mel_width: int = 8, time_masks: int = 2, time_share: float = 0.1
) -> torch.Tensor:
    """``frames`` [T, M] with a band of mels and ``time_masks`` spans of frames set to their mean, 0 (arXiv:1904.08779).

    Widths are uniform, up to ``mel_width`` mels and ``time_share`` of the frames. No time warping.
    """
    masked = frames.clone()
    _mask(masked.T, rng, mel_width)
    for _ in range(time_masks):
        _mask(masked, rng, int(time_share * len(frames)))
    return masked


def _mask(rows: torch.Tensor, rng: np.random.Generator, most: int) -> None:
    width = int(rng.integers(min(most, len(rows)) + 1))
    start = int(rng.integers(len(rows) - width + 1))
    rows[start : start + width] = 0
