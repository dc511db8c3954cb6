"""Manifests, features and tokens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training.speech.recordings import RATE, corpus, say
from training.speech import digits, manifest, text
from training.speech.corpus import CorpusConfig, load_corpus
from training.speech.features import Features, load_audio, log_mel, spec_augment
from training.speech.manifest import ManifestError, load


def test_a_manifest_names_audio_relative_to_itself(tmp_path: Path) -> None:
    recordings = load(corpus(tmp_path / "corpus", 2, 1))
    assert [recording.text is None for recording in recordings] == [False, False, True]
    assert all(recording.audio.is_file() and 0.7 < recording.seconds < 1.3 for recording in recordings)


def test_librispeech_layout(tmp_path: Path) -> None:
    chapter = tmp_path / "train-clean-100" / "19" / "198"
    chapter.mkdir(parents=True)
    for number in (0, 1):
        soundfile.write(chapter / f"19-198-000{number}.flac", np.zeros(16000), 16000)
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")
    recordings = load(tmp_path)
    assert [recording.text for recording in recordings] == ["northanger abbey", "this little work"]
    assert [recording.seconds for recording in recordings] == [1.0, 1.0]
    (chapter / "19-198-0001.flac").unlink()
    with pytest.raises(
        ManifestError, match=r'19-198\.trans\.txt line 2: no file .*0001\.flac; correct "audio" or remove'
    ):
        load(tmp_path)


def test_a_text_may_have_any_separator_of_lines_but_a_newline(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "corpus", 2, 0)
    texts = ["one\u2028two\x85", "three\u2029"]
    rows = [json.dumps({"audio": f"{i}.wav", "text": text}, ensure_ascii=False) for i, text in enumerate(texts)]
    manifest.write_bytes("\r\n".join(rows).encode())
    assert [recording.text for recording in load(manifest)] == texts


BAD = {
    '{"audio": "gone.wav", "text": "ba"}': r'line 1: no file .*gone\.wav; correct "audio" or remove the line',
    '{"audio": "not.wav"}': r"line 1: .*not\.wav is not audio that libsndfile reads",
    '{"text": "ba"}': r'line 1 has no "audio": name the recording',
    '{"audio": "x.wav", "text": 3}': r'line 1: "text" is what is said, or null',
    "x.wav": r"line 1 is not JSON .*: write one object a line",
    "": "names no recording",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_manifest_says_in_one_line_what_to_change(tmp_path: Path, line: str) -> None:
    (tmp_path / "not.wav").write_text("no audio")
    (tmp_path / "manifest.jsonl").write_text(line + "\n")
    with pytest.raises(ManifestError, match=BAD[line]) as error:
        load(tmp_path / "manifest.jsonl")
    assert "\n" not in str(error.value)


def test_no_manifest_at_all(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="give a JSONL file, or a folder"):
        load(tmp_path / "manifest.jsonl")


def test_audio_is_mixed_to_mono_and_resampled(tmp_path: Path) -> None:
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "x.wav", np.stack([tone, 0 * tone], axis=1), 16000)
    samples = load_audio(tmp_path / "x.wav", RATE)
    assert samples.shape == (8000,)
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / RATE)
    np.testing.assert_allclose(samples[200:-200], expected[200:-200], atol=5e-3)


def test_log_mel_is_normalised_and_does_not_hear_the_volume() -> None:
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=12000).astype("float32"))
    frames = log_mel(noise, RATE)
    assert frames.shape == (151, 40)
    torch.testing.assert_close(frames.mean(dim=0), torch.zeros(40), rtol=0, atol=1e-4)
    torch.testing.assert_close(log_mel(10 * noise, RATE), frames, rtol=0, atol=0.02)


def test_features_are_the_same_with_and_without_room_to_keep_them(tmp_path: Path) -> None:
    recordings = load(corpus(tmp_path, 2, 0))
    cached, computed = Features(recordings, RATE), Features(recordings, RATE, cache_mb=0)
    for i in (0, 1, 0):
        torch.testing.assert_close(cached[i], computed[i], rtol=0, atol=0)
    assert cached[0] is cached[0] and computed[0] is not computed[0]


@given(st.integers(0, 2**31), st.integers(5, 80))
def test_spec_augment_masks_within_its_widths(seed: int, length: int) -> None:
    frames = torch.ones(length, 40)
    masked = spec_augment(frames, np.random.default_rng(seed), mel_width=8, time_masks=2, time_share=0.2)
    whole_mels = int((masked.sum(dim=0) == 0).sum())
    whole_frames = int((masked.sum(dim=1) == 0).sum())
    assert whole_mels <= 8 and whole_frames <= 2 * int(0.2 * length)
    assert int((masked == 0).sum()) == whole_mels * length + whole_frames * 40 - whole_mels * whole_frames
    assert frames.min() == 1


def test_greedy_merges_repeats_and_drops_blanks() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0, 3], [0, 0, 4, 4, 4, 1, 1, 1]])
    log_probs = torch.nn.functional.one_hot(path, 5).float().log()
    assert text.greedy(log_probs, torch.tensor([8, 5])) == [[1, 1, 2, 3], [4]]


def test_greedy_finds_what_a_search_over_all_paths_calls_the_best_path() -> None:
    torch.manual_seed(3)
    log_probs = torch.randn(1, 5, 3).log_softmax(dim=-1)
    paths = list(itertools.product(range(3), repeat=5))
    best = max(paths, key=lambda path: sum(float(log_probs[0, t, token]) for t, token in enumerate(path)))
    collapsed = [token for token, _ in itertools.groupby(best) if token]
    assert text.greedy(log_probs, torch.tensor([5])) == [collapsed]


@given(st.text("abc ", max_size=20))
def test_characters_survive(words: str) -> None:
    tokenizer = text.restore(text.fit(["a b", "cab"], 0).state())
    assert tokenizer.decode(tokenizer.encode(words)) == words
    assert tokenizer.encode("xyz") == []


def test_sentencepiece_survives_and_refuses_too_many_pieces() -> None:
    pytest.importorskip("sentencepiece")
    texts = ["one two three", "three four five", "six seven eight", "nine zero one"] * 5
    tokenizer = text.restore(text.fit(texts, 20).state())
    assert tokenizer.size == 21
    assert tokenizer.decode(tokenizer.encode("five seven")) == "five seven"
    assert min(tokenizer.encode("five seven")) > text.BLANK
    with pytest.raises(ValueError, match="pieces=900 does not suit these texts"):
        text.fit(texts, 900)


def test_manifest_rows_are_json(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in corpus(tmp_path, 1, 1).read_text().splitlines()]
    assert [row["audio"] for row in rows] == ["0.wav", "1.wav"] and rows[1]["text"] is None


def test_a_generated_corpus_is_made_once_for_its_settings_and_anew_for_others_and_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[int] = []

    def speak(folder: Path, sizes: digits.CorpusSizes, rng: np.random.Generator) -> None:
        folder.mkdir(exist_ok=True)
        spoken.append(sizes.labelled)
        rows = [(say(folder / f"{number}.wav", ["ba"], rng), "ba") for number in range(sizes.labelled)]
        for path in manifest.part_paths(folder):
            manifest.save(path, rows)
            if sizes.labelled == 4:
                raise KeyboardInterrupt

    def labelled(count: int, **changes: int) -> int:
        config = CorpusConfig(strings=(count, 0, 0, 0), **changes)
        return len(load_corpus(config, tmp_path, np.random.default_rng(config.seed)).dev[1])

    monkeypatch.setattr(digits, "make", speak)
    assert (labelled(2), labelled(2), labelled(3)) == (2, 2, 3)
    assert labelled(3, sample_rate=4000) == labelled(3, seed=1) == 3
    with pytest.raises(KeyboardInterrupt):
        labelled(4)
    assert labelled(3, seed=1) == 3 and spoken == [2, 3, 3, 4, 3]
