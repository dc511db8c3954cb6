"""`iro run bilevel.bl_just`: BL-JUST (arXiv:2412.08548) and its baselines, on your speech or on digits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from training.run import Job, JobConfig, Run
from training.speech import checks, digits, manifest, text
from training.speech.features import Features
from training.speech.figures import draw
from training.speech.manifest import ManifestError, Recording
from training.speech.model import Recogniser
from training.speech.results import TrainingResult, table
from training.speech.training import (
    Training,
    TrainingData,
    TrainingMethod,
    TrainingSchedule,
    error_rates,
    plan,
    transcribe,
)


class BLJustConfig(JobConfig):
    """The recordings, the recogniser and its training.

    An epoch is ``exploration_passes`` on L_unsup at ``exploration_lr`` and one joint pass at ``lr``; γ grows by
    ``gamma_step`` per epoch up to ``gamma_cap``; ``finetune_passes`` at ``finetune_lr`` follow.
    """

    movable: ClassVar[frozenset[str]] = frozenset({"device", "workers"})

    manifest: Path | None = Field(
        None, description="Training recordings: JSONL or a folder of LibriSpeech. Without, digits are generated."
    )
    dev: Path | None = Field(
        None, description="Recordings on which settings are chosen: JSONL or a folder of LibriSpeech."
    )
    test: Path | None = Field(None, description="Recordings of the results: JSONL or a folder of LibriSpeech.")
    labelled: int | None = Field(None, ge=1, description="Training rows that keep their text. Null: all.")
    sample_rate: int = Field(8000, ge=1000, description="Samples of sound a second.")
    strings: tuple[int, int, int, int] = Field(
        (100, 220, 30, 60), description="Labelled, unlabelled, dev and test strings of generated digits."
    )
    real: int | None = Field(100, ge=0, description="Further unlabelled recordings. Null: all.")

    encoder: Literal["bigru", "conformer"] = Field("bigru", description="The recogniser's encoder.")
    width: int = Field(96, ge=8, multiple_of=8, description="Width of the encoder.")
    layers: int = Field(1, ge=1, description="Layers of the encoder.")
    pieces: int = Field(0, ge=0, description="Size of a SentencePiece model; 0 for characters.")
    context: float = Field(0.5, gt=0, description="Seconds of a CPC window.")
    future: float = Field(0.3, gt=0, description="Seconds that CPC predicts.")

    methods: tuple[TrainingMethod, ...] = Field(
        ("supervised", "pretrain", "fixed", "bl_just"), description="The methods to compare."
    )
    models: int = Field(5, ge=1, description="Trainings of each method, with different seeds.")
    epochs: int = Field(40, ge=1, description="Epochs, each `exploration_passes` on L_unsup and one joint pass.")
    exploration_passes: int = Field(1, ge=0, description="Passes of an epoch on L_unsup alone.")
    finetune_passes: int = Field(1, ge=0, description="Passes on the labelled loss after the epochs.")
    batch: int = Field(32, ge=1, description="Recordings of a batch.")
    exploration_lr: float = Field(1e-3, gt=0, description="Learning rate of the exploration passes.")
    lr: float = Field(4e-3, gt=0, description="Learning rate of the joint pass.")
    finetune_lr: float = Field(4e-4, gt=0, description="Learning rate of the passes after the epochs.")
    gamma_step: float = Field(0.05, ge=0, description="By how much γ, the weight of L_unsup, grows in an epoch.")
    gamma_cap: float = Field(0.5, ge=0, description="The largest γ.")
    fixed_gamma: float = Field(0.5, ge=0, description="γ of the method whose γ is fixed.")
    tune: bool = Field(
        False,
        description="Run once each of `lrs` as `lr` for methods without γ, and of `gammas` as `gamma_cap` or "
        "`fixed_gamma` for methods with γ; use the best on dev.",
    )
    lrs: tuple[float, ...] = Field((3e-3, 6e-3), description="Learning rates to try.")
    gammas: tuple[float, ...] = Field((0.1, 0.5), description="Values of γ to try.")

    device: str = Field("cpu", description="Where PyTorch trains: cpu, cuda, ….")
    workers: int = Field(0, ge=0, description="Processes that read recordings; 0: the run's own.")


@dataclass
class Corpus:
    """Features of train (recordings with a text first), dev and test, and their texts."""

    train: TrainingData
    dev: tuple[Features, list[str]]
    test: tuple[Features, list[str]]
    tokenizer: text.Tokenizer


def load_corpus(config: BLJustConfig, folder: Path, rng: np.random.Generator) -> Corpus:
    """Raises ManifestError, and ValueError for more ``pieces`` than the texts have."""
    paths = (config.manifest, config.dev, config.test)
    if None in paths and any(paths):
        raise ManifestError("give manifest=, dev= and test= together, or none of them for connected digits")
    if not any(paths):
        paths = digits.make(folder / "digits", digits.CorpusSizes(*config.strings, config.real), rng)
    train, dev, test = (manifest.load(path) for path in paths if path is not None)
    labelled = [recording for recording in train if recording.text is not None]
    if config.labelled is not None:
        labelled = labelled[: config.labelled]
    if not labelled:
        raise ManifestError(f'{paths[0]} has no row with a "text": write down what is said in some of them')
    train = labelled + [recording for recording in train if recording not in set(labelled)]
    tokenizer = text.fit([str(recording.text) for recording in labelled], config.pieces)
    tokens = [tokenizer.encode(str(recording.text)) for recording in labelled]
    data = TrainingData(Features(train, config.sample_rate), tokens)
    return Corpus(data, _with_texts(dev, config), _with_texts(test, config), tokenizer)


def _with_texts(recordings: list[Recording], config: BLJustConfig) -> tuple[Features, list[str]]:
    labelled = [recording for recording in recordings if recording.text is not None]
    if not labelled:
        raise ManifestError('dev and test need a "text" in some rows: error rates compare with it')
    return Features(labelled, config.sample_rate), [str(recording.text) for recording in labelled]


def run(config: BLJustConfig, run: Run) -> dict[str, object]:
    _check_device(config.device)
    for name, claim in checks.CLAIMS.items():
        run.check(name, **claim())
    corpus = load_corpus(config, run.folder, run.rng(0))
    run.emit("message", f"expect about {_minutes(config, corpus, run):.1f} min on this {config.device}")
    chosen = {method: _tuned(method, config, corpus, run) for method in config.methods}
    results: dict[str, list[TrainingResult]] = {}
    for n in range(config.models):
        for method in config.methods:
            results.setdefault(method, []).append(_train(f"{method}-{n}", method, chosen[method], n, corpus, run))
    return {
        "chosen": {method: {key: getattr(tuned, key) for key in TUNED} for method, tuned in chosen.items()},
        "results": results,
        "table": table(results),
    }


TUNING = 10**6  # the number of the tuning runs
TUNED = ("lr", "gamma_cap", "fixed_gamma")


def _tuned(method: TrainingMethod, config: BLJustConfig, corpus: Corpus, run: Run) -> BLJustConfig:
    """``config`` with the rates that are best on dev. The tuning runs have a separate seed."""
    if not config.tune:
        return config
    candidates = _candidates(method, config)
    trainings = [
        _train(f"tune-{method}-{i}", method, candidate, TUNING, corpus, run) for i, candidate in enumerate(candidates)
    ]
    return candidates[int(np.argmin([training["dev"]["wer"] for training in trainings]))]


def _candidates(method: TrainingMethod, config: BLJustConfig) -> list[BLJustConfig]:
    gamma = {"bl_just": "gamma_cap", "fixed": "fixed_gamma"}.get(method)
    name, values = (gamma, config.gammas) if gamma else ("lr", config.lrs)
    return [config.model_copy(update={name: value}) for value in values]


def _train(name: str, method: TrainingMethod, config: BLJustConfig, n: int, corpus: Corpus, run: Run) -> TrainingResult:
    result: TrainingResult = run.step(name, partial(_training, name, method, config, n, corpus, run))
    return result


def _training(
    name: str, method: TrainingMethod, config: BLJustConfig, n: int, corpus: Corpus, run: Run
) -> TrainingResult:
    training = build(config, method, corpus, run.derive_seed(1, n))
    curve: list[float] = []  # dev WER after each supervised pass
    if run.has(f"{name}-state"):
        state = run.load(f"{name}-state")
        training.load(state)
        curve = list(state["curve"])
    with run.progress(name, len(training.passes)) as advance:
        for done in range(len(training.passes)):
            if done >= training.done:
                _pass(name, training, curve, corpus, run)
            advance()
    rates = {}
    for part, (features, texts) in (("dev", corpus.dev), ("test", corpus.test)):
        transcripts = transcribe(training.model, features, corpus.tokenizer)
        _write_transcripts(run.folder / "transcripts" / f"{name}-{part}.jsonl", features, texts, transcripts)
        rates[part] = error_rates(transcripts, texts)
    result: TrainingResult = {
        "method": method,
        "seed": n,
        "curve": curve,
        "dev": rates["dev"],
        "test": rates["test"],
    }
    run.emit("message", f"{name}: WER {result['dev']['wer']:.3f} on dev, {result['test']['wer']:.3f} on test")
    return result


def _pass(name: str, training: Training, curve: list[float], corpus: Corpus, run: Run) -> None:
    step = training.passes[training.done]
    row: dict[str, object] = {"training": name, "step": training.done, "pass": step.kind, "gamma": step.gamma}
    row |= training.run_pass()
    if step.kind != "explore":
        features, texts = corpus.dev
        rates = error_rates(transcribe(training.model, features, corpus.tokenizer), texts)
        row |= {f"dev_{rate}": value for rate, value in rates.items()}
        curve.append(rates["wer"])
    run.metrics(row)
    run.checkpoint(f"{name}-state", {**training.state(), "tokenizer": corpus.tokenizer.state(), "curve": curve})


def build(config: BLJustConfig, method: TrainingMethod, corpus: Corpus, seed: int) -> Training:
    """A training before its first pass."""
    torch.manual_seed(seed)
    model = Recogniser(config.encoder, config.width, config.layers, corpus.tokenizer.size)
    schedule = _schedule(config)
    return Training(model, corpus.train, plan(method, schedule), schedule, seed, config.device)


def _schedule(config: BLJustConfig) -> TrainingSchedule:
    return TrainingSchedule(**{name: getattr(config, name) for name in TrainingSchedule._fields})


def _minutes(config: BLJustConfig, corpus: Corpus, run: Run) -> float:
    """Expected for all trainings, from the time that two steps of each loss take."""
    seconds = build(config, "bl_just", corpus, run.seed).seconds_per_pass()
    total = 0.0
    for method in config.methods:
        tuning_runs = len(_candidates(method, config)) if config.tune else 0
        total += (config.models + tuning_runs) * sum(seconds[step.kind] for step in plan(method, _schedule(config)))
    return total / 60


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device} cannot be used here ({str(error).splitlines()[0][:120]})") from None


def _write_transcripts(path: Path, features: Features, texts: list[str], transcripts: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = zip(features.recordings, texts, transcripts, strict=True)
    lines = [json.dumps({"audio": str(source.audio), "text": text, "heard": heard}) for source, text, heard in rows]
    path.write_text("\n".join(lines) + "\n")


JOB = Job(
    name="bilevel.bl_just",
    summary="Speech recognition from few labels: BL-JUST, supervised only, pre-training and fixed γ, compared by WER",
    Config=BLJustConfig,
    run=run,
    presets={
        "smoke": {
            "strings": (24, 48, 8, 8),
            "real": 8,
            "width": 32,
            "layers": 1,
            "models": 1,
            "epochs": 2,
            "batch": 16,
            "exploration_passes": 1,
        },
        "two-cores": {"tune": True},
        "paper": {
            "sample_rate": 16000,
            "encoder": "conformer",
            "width": 512,
            "layers": 8,
            "pieces": 1000,
            "context": 2.0,
            "future": 1.0,
            "models": 1,
            "epochs": 200,
            "exploration_passes": 4,
            "finetune_passes": 5,
            "batch": 60,
            "lr": 1e-4,
            "finetune_lr": 1e-5,
            "gamma_step": 0.002,
            "gamma_cap": 1.0,
        },
    },
    draw=draw,
)
