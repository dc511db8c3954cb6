"""Recordings for tests: a word is a tone, so that nothing has to be installed or committed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from training.speech import manifest

RATE = 8000
TONES = {"ba": 400, "do": 900, "ki": 2000}


def say(path: Path, words: list[str], rng: np.random.Generator) -> Path:
    parts = []
    for word in words:
        time = np.arange(int(rng.integers(1600, 2400))) / RATE
        parts += [np.sin(2 * np.pi * TONES[word] * time), np.zeros(800)]
    samples = np.concatenate(parts)
    soundfile.write(path, 0.3 * samples + 0.01 * rng.normal(size=len(samples)), RATE)
    return path


def corpus(folder: Path, labelled: int, unlabelled: int, seed: int = 0) -> Path:
    """A manifest of random strings of 3 words, the first ``labelled`` with their texts."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    rows: list[tuple[Path, str | None]] = []
    for number in range(labelled + unlabelled):
        words = [str(word) for word in rng.choice(list(TONES), 3)]
        rows.append((say(folder / f"{number}.wav", words, rng), " ".join(words) if number < labelled else None))
    manifest.save(folder / "manifest.jsonl", rows)
    return folder / "manifest.jsonl"
