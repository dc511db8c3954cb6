"""Log-mel frames of recordings, and SpecAugment."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from cachetools import LRUCache
from scipy.signal import resample_poly
from torch.utils.data import Dataset
from transformers.audio_utils import mel_filter_bank

from training.speech.manifest import Recording

MELS = 40
FRAMES_PER_SECOND = 100
WINDOW_SECONDS = 0.025


def load_audio(path: Path, rate: int) -> torch.Tensor:
    """Mono samples [n] in [-1, 1], at ``rate`` Hz."""
    samples, file_rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if file_rate != rate:
        ratio = Fraction(rate, file_rate)
        mono = resample_poly(mono, ratio.numerator, ratio.denominator)
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def log_mel(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Log-mel energies [frames, 40], 100 frames per second; each mel has mean 0 and deviation 1 over the recording."""
    energies = (mel_energies(samples, rate) + 1e-6).log()
    return (energies - energies.mean(dim=0)) / (energies.std(dim=0) + 1e-3)


def mel_energies(samples: torch.Tensor, rate: int) -> torch.Tensor:
    """Energies [frames, 40] of 25 ms windows in triangles evenly spaced on Slaney's mel scale, from 20 Hz."""
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
    """Log-mel frames of recordings, computed on access; a cache holds the last ``cache_mb`` MiB."""

    def __init__(self, recordings: list[Recording], rate: int, cache_mb: int = 512) -> None:
        self.recordings, self.rate = recordings, rate
        self._cache: LRUCache[int, torch.Tensor] = LRUCache(cache_mb * 2**20, getsizeof=lambda frames: frames.nbytes)

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: int) -> torch.Tensor:
        frames = self._cache.get(index)
        if frames is None:
            frames = log_mel(load_audio(self.recordings[index].audio, self.rate), self.rate)
            if frames.nbytes <= self._cache.maxsize:
                self._cache[index] = frames
        return frames


def spec_augment(
    frames: torch.Tensor, rng: np.random.Generator, *, mel_width: int = 8, time_masks: int = 2, time_share: float = 0.1
) -> torch.Tensor:
    """``frames`` [T, M] with a band of mels and ``time_masks`` spans of frames set to the mean, 0 (arXiv:1904.08779).

    Widths are uniform, up to ``mel_width`` mels and ``time_share`` of the frames. No time warping.
    """
    masked = frames.clone()
    _mask(masked.T, rng, mel_width)
    for _ in range(time_masks):
        _mask(masked, rng, int(time_share * len(frames)))
    return masked


def _mask(rows: torch.Tensor, rng: np.random.Generator, limit: int) -> None:
    width = int(rng.integers(min(limit, len(rows)) + 1))
    start = int(rng.integers(len(rows) - width + 1))
    rows[start : start + width] = 0
