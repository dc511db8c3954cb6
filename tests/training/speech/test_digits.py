"""The corpus of digits: real recordings kept out of training, voices kept apart."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from training.speech import digits, manifest
from training.speech.job import JOB
from training.speech.manifest import ManifestError


def test_voices_of_the_parts_are_disjoint() -> None:
    parts = [set(voices) for voices in (digits.LABELLED_VOICES, digits.UNLABELLED_VOICES, digits.DEV_VOICES)]
    assert len(set.union(*parts)) == sum(len(part) for part in parts)


def test_without_the_recordings_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "ASTERISK", tmp_path / "none")
    with pytest.raises(ManifestError, match="apt install espeak-ng asterisk-core-sounds-en-wav, or give manifest="):
        digits.make(tmp_path / "digits", digits.CorpusSizes(1, 1, 1, 1), np.random.default_rng(0))


installed = pytest.mark.skipif(
    not digits.ASTERISK.is_dir() or shutil.which("espeak-ng") is None,
    reason="Debian's espeak-ng and asterisk-core-sounds-en-wav are not installed",
)


@installed
def test_the_corpus(tmp_path: Path) -> None:
    sizes = digits.CorpusSizes(labelled=4, unlabelled=5, dev=6, test=7, real=3)
    digits.make(tmp_path, sizes, np.random.default_rng(0))
    train, dev, test = (manifest.load(path) for path in manifest.part_paths(tmp_path))
    assert [recording.text is not None for recording in train] == [True] * 4 + [False] * 8
    assert (len(dev), len(test)) == (6, 7)
    for recording in (*train[:4], *dev, *test):
        assert recording.text and set(recording.text.split()) <= set(digits.WORDS) and 0.3 < recording.seconds < 5
    recorded = {int(recording.audio.stem) for recording in train if recording.audio.parent.name == "real"}
    sources = digits.unlabelled_sources()
    assert len(recorded) == 3 and not any("digits" in sources[i].parts for i in recorded)


@installed
def test_a_corrected_config_trains_on_its_corpus_and_not_on_that_of_the_refused_one(tmp_path: Path) -> None:
    settings = {"real": 2, "width": 8, "models": 1, "epochs": 1, "exploration_passes": 0, "methods": ["supervised"]}
    with pytest.raises(ValueError, match="pieces=5000 does not suit these texts"):
        JOB.execute(settings | {"strings": [6, 4, 2, 2], "pieces": 5000}, tmp_path)
    JOB.execute(settings | {"strings": [12, 8, 4, 4], "seed": 7}, tmp_path)
    parts = [manifest.load(path) for path in manifest.part_paths(tmp_path / "digits")]
    assert [sum(recording.text is not None for recording in part) for part in parts] == [12, 4, 4]
