"""Recordings and their texts: a JSONL manifest, or a folder in LibriSpeech's layout."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import soundfile


class ManifestError(ValueError):
    """The manifest cannot be used; the message names the line to change."""


@dataclass(frozen=True)
class Recording:
    """``text`` is None for a recording without a transcript."""

    audio: Path
    text: str | None
    seconds: float


def load(path: Path) -> list[Recording]:
    """The recordings of ``path``: a JSONL file of {"audio": …, "text": … or null}, or a folder of LibriSpeech.

    Audio is in a format of libsndfile (WAV, FLAC, OGG, MP3), its path relative to the manifest. Raises ManifestError, a
    line that names what to change.
    """
    if not path.exists():
        raise ManifestError(f"no manifest {path}: give a JSONL file, or a folder in LibriSpeech's layout")
    rows = _librispeech(path) if path.is_dir() else _jsonl(path)
    recordings = [recording(audio, text, source) for audio, text, source in rows]
    if not recordings:
        raise ManifestError(f"{path} names no recording")
    return recordings


def recording(audio: Path, text: str | None, source: str) -> Recording:
    """Raises ManifestError, which names ``source``, if the file does not exist or is not audio."""
    if not audio.is_file():
        raise ManifestError(f'{source}: no file {audio}; correct "audio" or remove the line')
    try:
        return Recording(audio, text, float(soundfile.info(str(audio)).duration))
    except soundfile.LibsndfileError as error:
        raise ManifestError(f"{source}: {audio} is not audio that libsndfile reads ({error.error_string})") from None


def part_paths(folder: Path) -> tuple[Path, Path, Path]:
    """Where the manifests train, dev and test of a generated corpus are."""
    return folder / "train.jsonl", folder / "dev.jsonl", folder / "test.jsonl"


def save(path: Path, rows: Iterable[tuple[Path, str | None]]) -> None:
    """Writes a manifest; paths of audio below its folder are relative to it."""

    def line(audio: Path, text: str | None) -> str:
        named = audio.relative_to(path.parent) if audio.is_relative_to(path.parent) else audio
        return json.dumps({"audio": str(named), "text": text}) + "\n"

    path.write_text("".join(line(audio, text) for audio, text in rows))


def _jsonl(path: Path) -> Iterator[tuple[Path, str | None, str]]:
    for number, line in enumerate(path.read_text().split("\n"), 1):
        if line.strip():
            source = f"{path} line {number}"
            row = _parse(line, source)
            yield path.parent / row["audio"], row["text"], source


class Row(TypedDict):
    audio: str
    text: str | None


def _parse(line: str, source: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{source} is not JSON ({error.msg}): write one object a line") from None
    if not isinstance(row, dict) or not isinstance(row.get("audio"), str):
        raise ManifestError(f'{source} has no "audio": name the recording\'s file there')
    if not isinstance(row.get("text"), str | None) or row.get("text") == "":
        raise ManifestError(f'{source}: "text" is what is said, or null where nobody has written it down')
    return {"audio": row["audio"], "text": row.get("text")}


def _librispeech(folder: Path) -> Iterator[tuple[Path, str | None, str]]:
    """speaker/chapter/speaker-chapter.trans.txt has lines `utterance TEXT`, and utterance.flac lies beside it."""
    transcripts = sorted(folder.rglob("*.trans.txt"))
    if not transcripts:
        raise ManifestError(f"{folder} has no *.trans.txt below it: LibriSpeech's layout is speaker/chapter/…trans.txt")
    for transcript in transcripts:
        for number, line in enumerate(transcript.read_text().split("\n"), 1):
            if line.strip():
                utterance, _, text = line.partition(" ")
                yield transcript.parent / f"{utterance}.flac", text.lower() or None, f"{transcript} line {number}"
