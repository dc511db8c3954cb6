"""Asterisk's prompts: real recordings of telephone speech, transcribed in English, untranscribed in other languages.

All English recordings are of one speaker, so that train, dev and test differ in what is said and not in who says it.
Debian's packages asterisk-core-sounds-en and -en-wav, and asterisk-core-sounds-es-wav, -fr-wav and -it-wav for more
unlabelled speech (CC BY-SA 3.0).
"""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import soundfile

from training.speech import manifest
from training.speech.digits import WORDS
from training.speech.manifest import ManifestError

SOUNDS = Path("/usr/share/asterisk/sounds")
TEXTS = Path("/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz")
VOICES = {"en": "en_US_f_Allison", "es": "es_MX_f_Allison", "fr": "fr_CA_f_June", "it": "it_IT_m_Carlo"}
SHORTEST, LONGEST_TRANSCRIBED, LONGEST = 0.5, 3.0, 5.0  # seconds of the recordings that are used
LETTERS = re.compile(r"[a-z' ]+")


def make(folder: Path, sizes: tuple[int, int, int], languages: tuple[str, ...], rng: np.random.Generator) -> None:
    """Writes the manifests train, dev and test under ``folder``.

    ``sizes``: English recordings with a text in train, in dev and in test, of at most 3 seconds, no two with the same
    text; the other English ones and all of ``languages`` are unlabelled, of at most 5 seconds. Raises ManifestError if
    a Debian package is missing or ``sizes`` are too large.
    """
    texts = english_texts()
    sources = [path for path in _recordings("en") if path in texts]
    transcribed = _different([path for path in sources if _seconds(path) <= LONGEST_TRANSCRIBED], texts, rng)
    if sum(sizes) > len(transcribed):
        raise ManifestError(f"prompts={list(sizes)} are more than the {len(transcribed)} different English recordings")
    ends = np.cumsum(sizes)
    labelled, dev, test = (transcribed[end - size : end] for size, end in zip(sizes, ends, strict=True))
    # A sentence of dev or test stays out of train, also as unlabelled speech.
    held_out = {texts[path] for path in (*dev, *test)}
    in_train = set(labelled)
    unlabelled = [path for path in sources if path not in in_train and texts[path] not in held_out]
    unlabelled += [path for language in languages for path in _recordings(language)]
    folder.mkdir(parents=True, exist_ok=True)
    train_path, dev_path, test_path = manifest.part_paths(folder)
    manifest.save(train_path, [*((path, texts[path]) for path in labelled), *((path, None) for path in unlabelled)])
    manifest.save(dev_path, [(path, texts[path]) for path in dev])
    manifest.save(test_path, [(path, texts[path]) for path in test])


def english_texts() -> dict[Path, str]:
    """What is said, by recording: lower case, digits as words, no punctuation. Notes such as "[a beep]", and texts with
    other characters or longer numbers, are left out."""
    if not TEXTS.exists():
        raise ManifestError(
            f"no transcripts in {TEXTS}: apt install asterisk-core-sounds-en asterisk-core-sounds-en-wav"
        )
    lines = gzip.decompress(TEXTS.read_bytes()).decode().splitlines()
    texts = {}
    for name, separator, transcript in (line.partition(":") for line in lines if not line.startswith(";")):
        text = _spoken(transcript)
        if separator and text:
            texts[SOUNDS / VOICES["en"] / f"{name.strip()}.wav"] = text
    return texts


def _spoken(transcript: str) -> str | None:
    """``transcript`` as letters, apostrophes and spaces, or None where that is not all that is heard."""
    words = re.sub(r"(?<!\d)\d(?!\d)", lambda digit: f" {WORDS[int(digit[0])]} ", transcript.lower())
    text = " ".join(re.sub(r'[.,;:!?"-]', " ", words).split())
    return text if LETTERS.fullmatch(text) else None


def _recordings(language: str) -> list[Path]:
    folder = SOUNDS / VOICES[language]
    if not folder.is_dir():
        raise ManifestError(f"no recordings in {folder}: apt install asterisk-core-sounds-{language}-wav")
    paths = sorted(path for path in folder.rglob("*.wav") if path.parent.name != "silence")
    return [path for path in paths if SHORTEST <= _seconds(path) <= LONGEST]


def _seconds(path: Path) -> float:
    return float(soundfile.info(str(path)).duration)


def _different(sources: list[Path], texts: dict[Path, str], rng: np.random.Generator) -> list[Path]:
    """One recording of each text, in an order of ``rng``."""
    by_text = {texts[path]: path for path in reversed(sources)}
    paths = sorted(by_text.values())
    return [paths[place] for place in rng.permutation(len(paths))]
