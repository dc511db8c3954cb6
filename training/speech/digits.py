"""Connected digits: espeak-ng's voices for training, and a real voice, Debian's Asterisk sounds, for the test."""

from __future__ import annotations

import itertools
import subprocess
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.speech import manifest
from training.speech.features import load_audio
from training.speech.manifest import ManifestError

RATE = 8000
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ASTERISK = Path("/usr/share/asterisk/sounds/en_US_f_Allison")
LABELLED_VOICES = ("en-us", "en-us+f2", "en-gb+m3", "en-gb-x-rp+f3")
ACCENTS = ("en-us", "en-gb", "en-gb-x-rp", "en-gb-scotland", "en-us-nyc", "en-gb-x-gbclan")
VARIANTS = ("f1", "f5", "m1", "m5", "m7", "Alicia", "Gene", "Jacky", "adam", "belinda", "david", "linda", "max", "zac")
UNLABELLED_VOICES = tuple(f"{accent}+{variant}" for accent, variant in itertools.product(ACCENTS, VARIANTS))
DEV_VOICES = ("en-us+f4", "en-us+anika", "en-gb+Andy", "en-gb-scotland+Annie", "en-gb-x-rp+steph", "en-us+m8")
INSTALL = "apt install espeak-ng asterisk-core-sounds-en-wav, or give manifest=, dev= and test="


@dataclass(frozen=True)
class CorpusSizes:
    """Numbers of strings of digits; ``real``: unlabelled recordings of Asterisk, None for all."""

    labelled: int
    unlabelled: int
    dev: int
    test: int
    real: int | None = None


def make(folder: Path, sizes: CorpusSizes, rng: np.random.Generator) -> None:
    """Writes the recordings, and the manifests train, dev and test, under ``folder``.

    Train: labelled strings of four voices; unlabelled strings of 84 further voices, and Asterisk's recordings except
    its digits. Dev: six further voices. Test: Asterisk's ten digits, concatenated. Raises ManifestError if the Debian
    packages are missing.
    """
    if not ASTERISK.is_dir():
        raise ManifestError(f"no recordings in {ASTERISK}: {INSTALL}")
    folder.mkdir(parents=True, exist_ok=True)
    train_path, dev_path, test_path = manifest.part_paths(folder)
    labelled = _spoken(folder, "labelled", sizes.labelled, LABELLED_VOICES, rng)
    spoken = _spoken(folder, "unlabelled", sizes.unlabelled, UNLABELLED_VOICES, rng)
    unlabelled = [(audio, None) for audio, _ in spoken]
    manifest.save(train_path, [*labelled, *unlabelled, *_real(folder, sizes.real, rng)])
    manifest.save(dev_path, _spoken(folder, "dev", sizes.dev, DEV_VOICES, rng))
    manifest.save(test_path, _joined(folder, sizes.test, rng))


def unlabelled_sources() -> list[Path]:
    """Asterisk's recordings except digits/, of which the test strings consist."""
    return sorted(path for path in ASTERISK.rglob("*.wav") if path.parent.name not in ("digits", "silence"))


def _string(rng: np.random.Generator) -> list[int]:
    return [int(digit) for digit in rng.integers(10, size=rng.integers(2, 4))]


def _spoken(
    folder: Path, name: str, count: int, voices: tuple[str, ...], rng: np.random.Generator
) -> list[tuple[Path, str]]:
    (folder / name).mkdir(exist_ok=True)
    rows = []
    for number in range(count):
        audio, text = folder / name / f"{number}.wav", " ".join(WORDS[digit] for digit in _string(rng))
        speed, pitch = rng.integers(80, 171), rng.integers(30, 71)
        _speak(audio, text, voices[number % len(voices)], int(speed), int(pitch))
        rows.append((audio, text))
    return rows


def _speak(audio: Path, text: str, voice: str, speed: int, pitch: int) -> None:
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "-w", str(audio), text]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        raise ManifestError(f"no program espeak-ng: {INSTALL}") from None
    if done.returncode:
        raise ManifestError(f"espeak-ng does not speak as {voice}: {done.stderr.strip()}")
    _write(audio, _trimmed(load_audio(audio, RATE).numpy()))


def _real(folder: Path, limit: int | None, rng: np.random.Generator) -> list[tuple[Path, None]]:
    """Recordings of at least a second, resampled to RATE, in an order of ``rng``."""
    (folder / "real").mkdir(exist_ok=True)
    sources = unlabelled_sources()
    rows: list[tuple[Path, None]] = []
    for number in rng.permutation(len(sources)):
        samples = load_audio(sources[number], RATE).numpy()
        if len(rows) == limit:
            break
        if len(samples) >= RATE:
            audio = folder / "real" / f"{number}.wav"
            _write(audio, samples)
            rows.append((audio, None))
    return rows


def _joined(folder: Path, count: int, rng: np.random.Generator) -> list[tuple[Path, str]]:
    """Strings of Asterisk's digits without leading and trailing silence, 20 to 120 ms apart."""
    (folder / "test").mkdir(exist_ok=True)
    recorded = [_trimmed(load_audio(ASTERISK / "digits" / f"{digit}.wav", RATE).numpy()) for digit in range(10)]
    rows = []
    for number in range(count):
        digits, audio = _string(rng), folder / "test" / f"{number}.wav"
        parts = [
            part for digit in digits for part in (recorded[digit], np.zeros(int(rng.integers(160, 961)), "float32"))
        ]
        _write(audio, np.concatenate(parts))
        rows.append((audio, " ".join(WORDS[digit] for digit in digits)))
    return rows


def _trimmed(samples: np.ndarray) -> np.ndarray:
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[max(0, loud[0] - 240) : loud[-1] + 240]


def _write(path: Path, samples: np.ndarray) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
