"""Which recordings there are, and what is said in them: a JSONL manifest, or a folder in LibriSpeech's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import soundfile


class ManifestError(ValueError):
    """A manifest that cannot be used, and what to change in it."""


@dataclass(frozen=True)
class Recording:
    """``text`` is None where nobody has written down what is said."""

    audio: Path
    text: str | None
    seconds: float


def load(path: Path) -> list[Recording]:
    """The recordings of ``path``: a JSONL file of {"audio": …, "text": … or null}, or a folder of LibriSpeech.

    Audio is whatever libsndfile reads (WAV, FLAC, OGG, MP3), its path relative to the manifest. Raises ManifestError,
    one line that says what to change.
    """
    if not path.exists():
        raise ManifestError(f"no manifest {path}: give a JSONL file, or a folder in LibriSpeech's layout")
    rows = _librispeech(path) if path.is_dir() else _jsonl(path)
    found = [recording(audio, text, where) for audio, text, where in rows]
    if not found:
        raise ManifestError(f"{path} names no recording")
    return found


def recording(audio: Path, text: str | None, where: str) -> Recording:
    """Of a file that is there and is audio, or a ManifestError that names ``where``."""
    if not audio.is_file():
        raise ManifestError(f'{where}: no file {audio}; correct "audio" or remove the line')
    try:
        return Recording(audio, text, float(soundfile.info(str(audio)).duration))
    except soundfile.LibsndfileError as error:
        raise ManifestError(f"{where}: {audio} is not audio that libsndfile reads ({error.error_string})") from None


def save(path: Path, rows: Iterable[tuple[Path, str | None]]) -> None:
    """Write a manifest whose audio paths are relative to it."""
    lines = [json.dumps({"audio": str(audio.relative_to(path.parent)), "text": text}) + "\n" for audio, text in rows]
    path.write_text("".join(lines))


def _jsonl(path: Path) -> Iterator[tuple[Path, str | None, str]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip():
            where = f"{path} line {number}"
            row = _parse(line, where)
            yield path.parent / row["audio"], row.get("text"), where


def _parse(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where} is not JSON ({error.msg}): write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("audio"), str):
        raise ManifestError(f'{where} has no "audio": name the recording\'s file there')
    if not isinstance(row.get("text"), str | None) or row.get("text") == "":
        raise ManifestError(f'{where}: "text" is what is said, or null where nobody has written it down')
    return row


def _librispeech(folder: Path) -> Iterator[tuple[Path, str | None, str]]:
    """speaker/chapter/speaker-chapter.trans.txt has lines `utterance TEXT`, and utterance.flac lies beside it."""
    transcripts = sorted(folder.rglob("*.trans.txt"))
    if not transcripts:
        raise ManifestError(f"{folder} has no *.trans.txt below it: LibriSpeech's layout is speaker/chapter/…trans.txt")
    for transcript in transcripts:
        for number, line in enumerate(transcript.read_text().splitlines(), 1):
            utterance, _, text = line.partition(" ")
            yield transcript.parent / f"{utterance}.flac", text.lower() or None, f"{transcript} line {number}"
