"""Trainings and the run: same bits after a resume, γ = 0 is supervised, and speech of tones is learnt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from tests.training.speech.recordings import RATE, corpus
from training.run import Cancelled
from training.speech import listen, text
from training.speech.config import BLJustConfig
from training.speech.corpus import load_corpus
from training.speech.features import Features
from training.speech.job import JOB
from training.speech.manifest import ManifestError, load
from training.speech.model import ENCODERS, Recogniser
from training.speech.results import table
from training.speech.schedule import NAMES, TrainingMethod, TrainingSchedule, plan
from training.speech.training import Training, TrainingData, error_rates, recognise, transcribe

SCHEDULE = TrainingSchedule(
    epochs=2,
    exploration_passes=1,
    finetune_passes=1,
    batch=8,
    exploration_lr=1e-3,
    lr=5e-3,
    finetune_lr=1e-3,
    weight_decay=0.01,
    gamma=1.0,
    gamma_step=0.25,
    pseudo_rounds=1,
    pseudo_share=1.0,
    context=0.4,
    future=0.2,
)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return corpus(tmp_path_factory.mktemp("speech"), labelled=24, unlabelled=16)


def started(
    speech: Path, method: TrainingMethod, schedule: TrainingSchedule = SCHEDULE, encoder: str = "bilstm"
) -> Training:
    recordings = load(speech)
    texts = [str(recording.text) for recording in recordings if recording.text is not None]
    tokenizer = text.fit(texts, 0)
    torch.manual_seed(0)
    model = Recogniser(encoder, 32, 1, tokenizer.size)
    data = TrainingData(Features(recordings, RATE), [tokenizer.encode(line) for line in texts])
    return Training(model, data, plan(method, schedule), schedule, seed=5)


def finished(training: Training) -> dict[str, torch.Tensor]:
    while training.done < len(training.passes):
        training.run_pass()
    return {name: value.clone() for name, value in training.model.state_dict().items()}


def test_plans_take_the_same_supervised_steps_and_hear_as_much() -> None:
    plans = {method: plan(method, SCHEDULE._replace(epochs=3, exploration_passes=2)) for method in NAMES}
    kinds = {method: [step.kind for step in passes] for method, passes in plans.items()}
    assert kinds["bl_just"] == ["explore", "explore", "joint"] * 3 + ["fine-tune"]
    assert kinds["gradient_norm"] == kinds["fixed_explore"] == kinds["bl_just"]
    assert kinds["pretrain"] == ["explore"] * 9 + ["supervised"] * 3 + ["fine-tune"]
    assert kinds["fixed"] == kinds["rising"] == ["joint"] * 3 + ["fine-tune"]
    assert kinds["supervised"] == ["supervised"] * 3 + ["fine-tune"]
    assert kinds["pseudo"] == ["supervised", "supervised", "transcribe", "pseudo", "fine-tune"]
    gammas = {method: [step.gamma for step in passes if step.kind == "joint"] for method, passes in plans.items()}
    assert gammas["bl_just"] == gammas["rising"] == gammas["gradient_norm"] == [0.0, 0.25, 0.5]
    assert gammas["fixed"] == gammas["fixed_explore"] == [1.0, 1.0, 1.0]
    assert {passes[-1].labelled for passes in plans.values()} == {3}
    assert {step.penalty for step in plans["gradient_norm"]} == {"norm"}


def test_without_a_step_gamma_reaches_its_largest_value_in_the_last_epoch() -> None:
    passes = plan("rising", SCHEDULE._replace(epochs=5, gamma=0.8, gamma_step=None))
    assert [step.gamma for step in passes if step.kind == "joint"] == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8])


@pytest.mark.parametrize("epochs", [1, 2, 5])
@pytest.mark.parametrize("method", ["rising", "bl_just", "gradient_norm"])
def test_the_last_joint_pass_has_the_largest_gamma_in_any_number_of_epochs(method: TrainingMethod, epochs: int) -> None:
    passes = plan(method, SCHEDULE._replace(epochs=epochs, gamma=0.3, gamma_step=None))
    assert [step.gamma for step in passes if step.kind == "joint"][-1] == pytest.approx(0.3)


def test_joint_training_at_gamma_zero_is_supervised_training(speech: Path) -> None:
    """Bitwise: encoder and CTC head after all passes; the CPC head has gone its own way."""
    joint = finished(started(speech, "fixed", SCHEDULE._replace(gamma=0.0)))
    supervised = finished(started(speech, "supervised"))
    for name, value in supervised.items():
        assert torch.equal(joint[name], value) != name.startswith("cpc")


@pytest.mark.parametrize(
    ("encoder", "method", "before"),
    [
        ("bilstm", "bl_just", 1),
        ("conformer", "bl_just", 1),
        pytest.param("conformer", "gradient_norm", 1, marks=pytest.mark.slow(12)),
        ("bilstm", "pseudo", 2),
    ],
)
def test_a_resumed_training_ends_at_the_same_bits(
    speech: Path, tmp_path: Path, encoder: str, method: TrainingMethod, before: int
) -> None:
    schedule = SCHEDULE._replace(epochs=2 if method == "pseudo" else 1, gamma_step=None)
    uninterrupted = finished(started(speech, method, schedule, encoder))
    first = started(speech, method, schedule, encoder)
    for _ in range(before):
        first.run_pass()
    torch.save(first.state(), tmp_path / "state.pt")
    second = started(speech, method, schedule, encoder)
    torch.nn.init.zeros_(second.model.cpc.weight)
    torch.manual_seed(99)
    second.load(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed = finished(second)
    assert all(torch.equal(uninterrupted[name], resumed[name]) for name in uninterrupted)


def test_pseudo_labels_are_what_the_model_is_surest_of_among_the_recordings_without_a_text(speech: Path) -> None:
    training = started(speech, "pseudo", SCHEDULE._replace(epochs=2, pseudo_share=0.25))
    with torch.no_grad():
        training.model.ctc[-1].bias[1] = 1.0  # every vector says the first letter, some less surely
    training.passes[0] = training.passes[0]._replace(kind="transcribe")
    assert training.run_pass() == {"pseudo_labels": 4.0}
    assert set(training.pseudo) < set(range(24, 40)) and list(training.pseudo.values()) == [[1]] * 4
    heard = dict(zip(range(24, 40), recognise(training.model, training.data.features, 24), strict=True))
    assert min(heard[i][1] for i in training.pseudo) > max(heard[i][1] for i in heard if i not in training.pseudo)
    texts = [batch[2] for batch in training._utterances(training.passes[2])]
    assert training.passes[2].kind == "pseudo"
    assert [len(batch[3]) for batch in training._utterances(training.passes[2])] == [8] * training.steps  # 4 and 4
    assert all((text[-4:] == 1).all() for text in texts)


def test_how_sure_the_model_is_depends_on_no_padding(speech: Path) -> None:
    training = started(speech, "pseudo")
    lengths = {len(training.data.features[place]) for place in range(24, 40)}
    alone, beside = (recognise(training.model, training.data.features, 24, batch) for batch in (1, 16))
    assert len(lengths) > 1 and [sure for _, sure in beside] == pytest.approx([sure for _, sure in alone], rel=1e-4)


def test_a_labelled_batch_is_masked_and_the_recordings_are_not(speech: Path) -> None:
    training = started(speech, "supervised")
    frames, counts, _, _ = next(training._utterances(training.passes[0]))
    masked = [recording[:count] for recording, count in zip(frames, counts, strict=True)]
    assert all((recording == 0).any() for recording in masked)
    assert not any((training.data.features[place] == 0).any() for place in range(24))


def test_exploration_leaves_the_ctc_head_and_supervision_the_cpc_head(speech: Path) -> None:
    training = started(speech, "pretrain")
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.run_pass()
    changed = {
        name.split(".")[0]
        for name, value in training.model.state_dict().items()
        if not torch.equal(before[name], value)
    }
    assert changed == {"encoder", "cpc"}
    training.passes[1] = training.passes[1]._replace(kind="supervised")
    before = {name: value.clone() for name, value in training.model.state_dict().items()}
    training.run_pass()
    changed = {
        name.split(".")[0]
        for name, value in training.model.state_dict().items()
        if not torch.equal(before[name], value)
    }
    assert changed == {"encoder", "ctc"}


@pytest.mark.slow(20)
def test_words_of_tones_are_learnt(speech: Path) -> None:
    training = started(speech, "bl_just", SCHEDULE._replace(epochs=40, gamma_step=0.01, gamma=0.1))
    first = training.run_pass()["unsupervised"]
    finished(training)
    features = Features(load(speech)[:24], RATE)
    texts = [str(recording.text) for recording in features.recordings]
    tokenizer = text.fit(texts, 0)
    rates = error_rates(transcribe(training.model, features, tokenizer), texts)
    assert rates["wer"] < 0.8
    training.passes.append(training.passes[0])
    assert training.run_pass()["unsupervised"] < first - 0.3


def test_error_rates_are_by_words_and_letters_of_the_text() -> None:
    assert error_rates(["a"], ["a b c d"]) == {"wer": 3 / 4, "cer": 6 / 7}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_padding_changes_nothing_that_is_heard(encoder: str) -> None:
    torch.manual_seed(1)
    model = Recogniser(encoder, 32, 1, tokens=4).eval()
    frames = torch.randn(1, 41, 40)
    padded = torch.cat([frames, torch.zeros(1, 30, 40)], dim=1)
    batch = torch.cat([padded, torch.randn(1, 71, 40)])
    with torch.inference_mode():
        alone, length = model(frames, torch.tensor([41]))
        beside, lengths = model(batch, torch.tensor([41, 71]))
    assert length.tolist() == [11] and lengths.tolist() == [11, 18]
    torch.testing.assert_close(beside[0, :11], alone[0], rtol=1e-4, atol=1e-5)


def config(speech: Path, **changes: Any) -> dict[str, Any]:
    files = {"manifest": speech, "dev": speech, "test": speech}
    small = {"width": 16, "layers": 1, "context": 0.4, "future": 0.2, "batch": 16, "models": 2, "epochs": 1}
    return files | small | {"exploration_passes": 1} | changes


TUNED: dict[str, Any] = {"tune": True, "grids": {"lr": [1e-3], "gamma": [0.1]}, "methods": ["supervised", "bl_just"]}


@pytest.mark.slow(20)  # as test_a_resumed_training_ends_at_the_same_bits, by whole runs
def test_a_run_that_is_stopped_goes_on_to_the_same_result(speech: Path, tmp_path: Path) -> None:
    changes = TUNED | {"grids": {name: [0.01] for name in ("lr", "gamma", "weight_decay")}}
    stop = iter([False] * 9 + [True])
    with pytest.raises(Cancelled):
        JOB.execute(config(speech, **changes), tmp_path / "run", should_stop=lambda: next(stop))
    assert (tmp_path / "run" / "metrics.jsonl").read_text()
    resumed = JOB.execute(config(speech, **changes), tmp_path / "run")
    uninterrupted = JOB.execute(config(speech, **changes), tmp_path / "uninterrupted")
    assert resumed["results"] == uninterrupted["results"] and resumed["chosen"] == uninterrupted["chosen"]
    rows = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("run", "uninterrupted")]
    assert rows[0] == rows[1]
    assert all(check["holds"] for check in uninterrupted["checks"])
    assert (tmp_path / "uninterrupted" / "figures" / "bl_just.png").stat().st_size > 0
    heard = (tmp_path / "uninterrupted" / "transcripts" / "bl_just-1-test.jsonl").read_text().splitlines()
    model, tokenizer, rate = listen.load(tmp_path / "uninterrupted", "bl_just-1")
    transcripts = transcribe(model, Features(load(speech)[:24], rate), tokenizer)
    assert transcripts == [json.loads(line)["heard"] for line in heard]
    assert len(heard) == 24 and set(json.loads(heard[0])) == {"audio", "text", "heard"}


def test_a_training_on_the_cpu_has_one_thread_whatever_the_process_has(
    speech: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[int] = []
    run_pass = Training.run_pass
    monkeypatch.setattr(Training, "run_pass", lambda self: threads.append(torch.get_num_threads()) or run_pass(self))
    torch.set_num_threads(2)
    try:
        JOB.execute(config(speech, methods=["supervised"], models=1), tmp_path)
        assert set(threads) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


@pytest.mark.slow(20)
def test_a_run_in_two_processes_has_the_rows_and_results_of_one_in_one(speech: Path, tmp_path: Path) -> None:
    changes = TUNED | {"methods": ["supervised", "pseudo"], "tune": False, "models": 1, "epochs": 2}
    results = [JOB.execute(config(speech, **changes, processes=n), tmp_path / str(n)) for n in (1, 2)]
    assert results[0]["results"] == results[1]["results"]
    assert (tmp_path / "1" / "metrics.jsonl").read_text() == (tmp_path / "2" / "metrics.jsonl").read_text()
    assert listen.load(tmp_path / "2", "pseudo-0")[2] == RATE


@pytest.mark.slow(20)
def test_a_stopped_run_goes_on_in_two_processes_with_each_row_once(speech: Path, tmp_path: Path) -> None:
    settings = config(speech, methods=["supervised", "pseudo"], models=1, epochs=2)
    uninterrupted = JOB.execute(settings, tmp_path / "uninterrupted")
    stop = iter([False] * 2 + [True])
    with pytest.raises(Cancelled):
        JOB.execute(settings, tmp_path / "run", should_stop=lambda: next(stop))
    rows = {name: tmp_path / name / "metrics.jsonl" for name in ("run", "uninterrupted")}
    assert rows["run"].read_text()
    resumed = JOB.execute(settings | {"processes": 2}, tmp_path / "run")
    assert resumed["results"] == uninterrupted["results"]
    assert rows["run"].read_text() == rows["uninterrupted"].read_text()


def test_recordings_are_transcribed_by_the_first_method_of_a_run_without_bl_just(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "speech", labelled=4, unlabelled=0)
    JOB.execute(config(manifest, methods=["fixed", "supervised"], models=1, batch=2, epochs=1), tmp_path / "run")
    weights = [listen.load(tmp_path / "run", *name)[0].state_dict()["cpc.weight"] for name in ((), ("fixed-0",))]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    with pytest.raises(ValueError, match="no training fixed-0"):
        shutil.rmtree(tmp_path / "run" / "checkpoints")
        listen.load(tmp_path / "run")
    with pytest.raises(ValueError, match="no training bl_just-0"):
        listen.load(tmp_path)


def test_corrected_texts_are_read_by_a_new_run_of_the_same_process(tmp_path: Path) -> None:
    manifest = corpus(tmp_path / "speech", labelled=4, unlabelled=0)
    settings = config(manifest, methods=["supervised"], models=1, batch=2)
    JOB.execute(settings, tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    manifest.write_text(manifest.read_text().replace("ba", "zu").replace("do", "zu").replace("ki", "zu"))
    JOB.execute(settings, tmp_path / "run")
    tokenizer = listen.load(tmp_path / "run", "supervised-0")[1]
    assert tokenizer.encode("zu") and not tokenizer.encode("bdoki")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"test": None}, "give manifest=, dev= and test= together"),
        ({"context": 60.0}, "lower context or future"),
        ({"device": "cuda:99"}, "device=cuda:99 cannot be used here"),
        ({"pieces": 5000}, "pieces=5000 does not suit these texts"),
    ],
)
def test_bad_input_is_one_line(speech: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        JOB.execute(config(speech, **changes), tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("window", ["context", "future"])
def test_a_window_has_a_frame(window: str) -> None:
    with pytest.raises(ValidationError, match=f"{window}\n  Input should be greater than or equal to 0.01"):
        BLJustConfig.model_validate({window: 0.004})


def test_few_labels_are_the_first_of_the_manifest(speech: Path, tmp_path: Path) -> None:
    loaded = load_corpus(BLJustConfig(**config(speech, labelled=5)), tmp_path, np.random.default_rng(0))
    assert len(loaded.train.texts) == 5 and len(loaded.train.features) == 40


def test_a_manifest_without_any_text(speech: Path, tmp_path: Path) -> None:
    silent = corpus(tmp_path / "silent", 0, 3)
    with pytest.raises(ManifestError, match='no row with a "text"'):
        load_corpus(BLJustConfig(**config(speech, manifest=silent)), tmp_path, np.random.default_rng(0))


def test_intervals_are_students_and_differences_are_paired() -> None:
    def of(*wers: float) -> list[dict[str, Any]]:
        return [{"dev": {"wer": 0.0, "cer": 0.0}, "test": {"wer": wer, "cer": 0.0}} for wer in wers]

    rows = table({"supervised": of(0.5, 0.7, 0.9), "bl_just": of(0.4, 0.6, 0.8)})
    mean = rows["supervised"]["test_wer"]
    assert mean["mean"] == pytest.approx(0.7)
    assert mean["high"] == pytest.approx(0.7 + 4.302653 * 0.2 / 3**0.5, abs=1e-5)
    gap = rows["bl_just"]["test_wer_less_supervised"]
    assert gap["low"] == pytest.approx(-0.1) and gap["high"] == pytest.approx(-0.1)
