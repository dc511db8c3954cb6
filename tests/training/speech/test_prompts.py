"""Asterisk's prompts: real recordings, no sentence of dev or test in train."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from training.speech import manifest, prompts
from training.speech.manifest import ManifestError


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (" Press 1 to listen, 2 to exit.", "press one to listen two to exit"),
        ("Call-Forward on Busy.", "call forward on busy"),
        (" that's invalid!", "that's invalid"),
        ("[ascending tones]", None),
        (" Dial 500 for a test.", None),
        ("at the 28.8 kilobit", None),
        (" ...", None),
    ],
)
def test_a_text_is_what_is_heard_or_none(said: str, text: str | None) -> None:
    assert prompts._spoken(said) == text


installed = pytest.mark.skipif(
    not prompts.TEXTS.exists() or not all((prompts.SOUNDS / voice).is_dir() for voice in prompts.VOICES.values()),
    reason="Debian's asterisk-core-sounds-en and -en-wav, -es-wav, -fr-wav and -it-wav are not installed",
)


@installed
def test_the_parts_share_no_sentence(tmp_path: Path) -> None:
    prompts.make(tmp_path, (100, 60, 120), ("es", "it"), np.random.default_rng(0))
    train, dev, test = (manifest.load(path) for path in manifest.part_paths(tmp_path))
    labelled = [recording for recording in train if recording.text is not None]
    texts = [str(recording.text) for recording in (*labelled, *dev, *test)]
    assert [len(part) for part in (labelled, dev, test)] == [100, 60, 120] and len(set(texts)) == 280
    assert all(0.5 <= recording.seconds <= 3 for recording in (*labelled, *dev, *test))
    known = prompts.english_texts()
    held_out = {recording.text for recording in (*dev, *test)}
    unlabelled = [recording.audio for recording in train if recording.text is None]
    assert len(unlabelled) > 900 and not held_out & {known.get(path) for path in unlabelled}
    assert {path.relative_to(prompts.SOUNDS).parts[0] for path in unlabelled} == {
        prompts.VOICES[language] for language in ("en", "es", "it")
    }


@installed
def test_the_seed_decides_the_parts(tmp_path: Path) -> None:
    texts = []
    for seed in (0, 0, 1):
        prompts.make(tmp_path, (5, 5, 5), (), np.random.default_rng(seed))
        texts.append(manifest.part_paths(tmp_path)[0].read_text())
    assert texts[0] == texts[1] != texts[2]


@installed
def test_more_recordings_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"prompts=\[300, 60, 120\] are more than the \d+ different English"):
        prompts.make(tmp_path, (300, 60, 120), (), np.random.default_rng(0))


def test_without_a_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompts, "TEXTS", tmp_path / "none.gz")
    with pytest.raises(ManifestError, match="apt install asterisk-core-sounds-en asterisk-core-sounds-en-wav"):
        prompts.make(tmp_path / "a", (1, 1, 1), ("fr",), np.random.default_rng(0))
    (tmp_path / "none.gz").write_bytes(gzip.compress(b"; none\nhello: Hello.\n"))
    monkeypatch.setattr(prompts, "SOUNDS", tmp_path / "none")
    with pytest.raises(ManifestError, match=r"no recordings in .*: apt install asterisk-core-sounds-en-wav"):
        prompts.make(tmp_path / "a", (1, 1, 1), ("fr",), np.random.default_rng(0))
