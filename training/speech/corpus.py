"""What a run trains on: features and texts of train, dev and test."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from training.run import JobConfig
from training.speech import digits, manifest, prompts, text
from training.speech.features import Features
from training.speech.manifest import ManifestError, Recording
from training.speech.training import TrainingData

GENERATED_BY = {"digits": {"seed", "strings", "real"}, "prompts": {"seed", "prompts", "languages"}}


class CorpusConfig(JobConfig):
    """The recordings: the user's, or those that ``corpus`` names."""

    movable: ClassVar[frozenset[str]] = frozenset({"device", "workers", "processes"})

    manifest: Path | None = Field(
        None, description="Training recordings: JSONL or a folder of LibriSpeech. Without, those of `corpus`."
    )
    dev: Path | None = Field(
        None, description="Recordings on which settings are chosen: JSONL or a folder of LibriSpeech."
    )
    test: Path | None = Field(None, description="Recordings of the results: JSONL or a folder of LibriSpeech.")
    corpus: Literal["digits", "prompts"] = Field(
        "digits", description="Generated strings of digits, or Asterisk's prompts: real telephone speech."
    )
    labelled: int | None = Field(None, ge=1, description="Training rows that keep their text. Null: all.")
    sample_rate: int = Field(8000, ge=1000, description="Samples of sound a second.")
    strings: tuple[int, int, int, int] = Field(
        (100, 220, 30, 60), description="Labelled, unlabelled, dev and test strings of generated digits."
    )
    real: int | None = Field(100, ge=0, description="Further unlabelled recordings beside digits. Null: all.")
    prompts: tuple[int, int, int] = Field(
        (120, 60, 150), description="Labelled, dev and test recordings of Asterisk's English prompts."
    )
    languages: tuple[Literal["es", "fr", "it"], ...] = Field(
        ("es", "fr", "it"), description="Further unlabelled prompts beside the English ones."
    )
    pieces: int = Field(0, ge=0, description="Size of a SentencePiece model; 0 for characters.")


@dataclass
class Corpus:
    """Features of train (recordings with a text first), dev and test, and their texts."""

    train: TrainingData
    dev: tuple[Features, list[str]]
    test: tuple[Features, list[str]]
    tokenizer: text.Tokenizer


def load_corpus(config: CorpusConfig, folder: Path, rng: np.random.Generator) -> Corpus:
    """Raises ManifestError, and ValueError for more ``pieces`` than the texts have."""
    paths = (config.manifest, config.dev, config.test)
    if None in paths and any(paths):
        raise ManifestError("give manifest=, dev= and test= together, or none of them for the recordings of corpus=")
    if not any(paths):
        paths = _generated(config, folder, rng)
    train, dev, test = (manifest.load(path) for path in paths if path is not None)
    labelled = [recording for recording in train if recording.text is not None]
    if config.labelled is not None:
        labelled = labelled[: config.labelled]
    if not labelled:
        raise ManifestError(f'{paths[0]} has no row with a "text": write down what is said in some of them')
    transcribed = set(labelled)
    train = labelled + [recording for recording in train if recording not in transcribed]
    tokenizer = text.fit([str(recording.text) for recording in labelled], config.pieces)
    tokens = [tokenizer.encode(str(recording.text)) for recording in labelled]
    data = TrainingData(Features(train, config.sample_rate), tokens)
    return Corpus(data, _with_texts(dev, config), _with_texts(test, config), tokenizer)


def _generated(config: CorpusConfig, folder: Path, rng: np.random.Generator) -> tuple[Path, Path, Path]:
    """The manifests of ``config.corpus`` in the run folder, made anew unless those there are of the same settings.

    A config that was refused after it had made a corpus leaves it in the folder, which a corrected config may use.
    """
    corpus = folder / config.corpus
    settings_file = corpus / "settings.json"
    settings = config.model_dump_json(include=GENERATED_BY[config.corpus])
    if not settings_file.exists() or settings_file.read_text() != settings:
        settings_file.unlink(missing_ok=True)  # a kill before the end leaves a corpus of no settings
        if config.corpus == "digits":
            digits.make(corpus, digits.CorpusSizes(*config.strings, config.real), rng)
        else:
            prompts.make(corpus, config.prompts, config.languages, rng)
        settings_file.write_text(settings)
    return manifest.part_paths(corpus)


def _with_texts(recordings: list[Recording], config: CorpusConfig) -> tuple[Features, list[str]]:
    labelled = [recording for recording in recordings if recording.text is not None]
    if not labelled:
        raise ManifestError('dev and test need a "text" in some rows: error rates compare with it')
    return Features(labelled, config.sample_rate), [str(recording.text) for recording in labelled]
