"""`iro run bilevel.bl_just`: BL-JUST (arXiv:2412.08548) and what it is compared with, on your speech or on digits."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from training.bilevel.bl_just import checks, digits, manifest, text
from training.bilevel.bl_just.features import Features
from training.bilevel.bl_just.figures import draw
from training.bilevel.bl_just.manifest import ManifestError, Recording
from training.bilevel.bl_just.model import Recogniser
from training.bilevel.bl_just.training import Data, Settings, Training, error_rates, plan, transcribe
from training.intervals import band
from training.run import Job, JobConfig, Run

Method = Literal["supervised", "pretrain", "fixed", "bl_just"]


class Config(JobConfig):
    """``manifest``, ``dev``, ``test``: JSONL files or folders of LibriSpeech; digits are made if there is none.
    ``labelled``: how many training rows keep their text (None: all). ``strings``: labelled, unlabelled, dev and test
    strings of digits; ``real``: unlabelled recordings beside them (None: all).

    ``pieces``: the size of a SentencePiece model; 0 for characters. ``context``, ``future``: seconds heard and told.
    An epoch is ``exploration_passes`` on L_unsup at ``exploration_lr`` and one joint pass at ``lr``; γ grows by
    ``gamma_step`` an epoch up to ``gamma_cap``; ``finetune_passes`` at ``finetune_lr`` end it.

    ``models``: trainings of each method, of different seeds. ``tune``: try, once each, ``lrs`` as ``lr`` where there is
    no γ, ``gammas`` as ``gamma_cap`` or ``fixed_gamma`` where there is, and keep for each method what is best on dev.
    """

    movable: ClassVar[frozenset[str]] = frozenset({"device", "workers"})

    manifest: Path | None = None
    dev: Path | None = None
    test: Path | None = None
    labelled: int | None = Field(None, ge=1)
    sample_rate: int = Field(8000, ge=1000)
    strings: tuple[int, int, int, int] = (100, 220, 30, 60)
    real: int | None = Field(100, ge=0)

    encoder: Literal["bigru", "conformer"] = "bigru"
    width: int = Field(96, ge=8, multiple_of=8)
    layers: int = Field(1, ge=1)
    pieces: int = Field(0, ge=0)
    context: float = Field(0.5, gt=0)
    future: float = Field(0.3, gt=0)

    methods: tuple[Method, ...] = ("supervised", "pretrain", "fixed", "bl_just")
    models: int = Field(5, ge=1)
    epochs: int = Field(40, ge=1)
    exploration_passes: int = Field(1, ge=0)
    finetune_passes: int = Field(1, ge=0)
    batch: int = Field(32, ge=1)
    exploration_lr: float = Field(1e-3, gt=0)
    lr: float = Field(4e-3, gt=0)
    finetune_lr: float = Field(4e-4, gt=0)
    gamma_step: float = Field(0.05, ge=0)
    gamma_cap: float = Field(0.5, ge=0)
    fixed_gamma: float = Field(0.5, ge=0)
    tune: bool = False
    lrs: tuple[float, ...] = (3e-3, 6e-3)
    gammas: tuple[float, ...] = (0.1, 0.5)

    device: str = "cpu"
    workers: int = Field(0, ge=0)


@dataclass
class Corpus:
    """Features of train (those with a text first), dev and test, and their texts."""

    train: Data
    dev: tuple[Features, list[str]]
    test: tuple[Features, list[str]]
    tokenizer: text.Tokenizer


def load_corpus(config: Config, folder: Path, rng: np.random.Generator) -> Corpus:
    """Raises ManifestError, or ValueError for more ``pieces`` than the texts have."""
    given = (config.manifest, config.dev, config.test)
    if None in given and any(given):
        raise ManifestError("give manifest=, dev= and test= together, or none of them for connected digits")
    if not any(given):
        given = digits.make(folder / "digits", digits.Sizes(*config.strings, config.real), rng)
    train, dev, test = (manifest.load(path) for path in given if path is not None)
    written = [one for one in train if one.text is not None]
    if config.labelled is not None:
        written = written[: config.labelled]
    if not written:
        raise ManifestError(f'{given[0]} has no row with a "text": write down what is said in some of them')
    train = written + [one for one in train if one not in set(written)]
    tokenizer = text.fit([str(one.text) for one in written], config.pieces)
    tokens = [tokenizer.encode(str(one.text)) for one in written]
    data = Data(Features(train, config.sample_rate), tokens)
    return Corpus(data, _judged(dev, config), _judged(test, config), tokenizer)


def _judged(recordings: list[Recording], config: Config) -> tuple[Features, list[str]]:
    kept = [one for one in recordings if one.text is not None]
    if not kept:
        raise ManifestError('dev and test need a "text" in some rows: error rates compare with it')
    return Features(kept, config.sample_rate), [str(one.text) for one in kept]


def run(config: Config, run: Run) -> dict[str, Any]:
    _check_device(config.device)
    for name, claim in checks.CLAIMS.items():
        run.check(name, **claim())
    corpus = load_corpus(config, run.folder, run.rng(0))
    run.emit("message", f"expect about {_minutes(config, corpus, run):.1f} min on this {config.device}")
    chosen = {method: _tuned(method, config, corpus, run) for method in config.methods}
    results: dict[str, Any] = {}
    for n in range(config.models):
        for method in config.methods:
            results.setdefault(method, []).append(_train(f"{method}-{n}", method, chosen[method], n, corpus, run))
    return {
        "chosen": {method: {key: getattr(one, key) for key in TUNED} for method, one in chosen.items()},
        "results": results,
        "table": table(results),
    }


TUNING = 10**6  # the number of the trainings that choose rates
TUNED = ("lr", "gamma_cap", "fixed_gamma")


def _tuned(method: str, config: Config, corpus: Corpus, run: Run) -> Config:
    """``config`` with the rates that are best on dev; the seed of these trainings is not used again."""
    if not config.tune:
        return config
    candidates = _candidates(method, config)
    found = [_train(f"tune-{method}-{i}", method, one, TUNING, corpus, run) for i, one in enumerate(candidates)]
    return candidates[int(np.argmin([one["dev"]["wer"] for one in found]))]


def _candidates(method: str, config: Config) -> list[Config]:
    gamma = {"bl_just": "gamma_cap", "fixed": "fixed_gamma"}.get(method)
    name, values = (gamma, config.gammas) if gamma else ("lr", config.lrs)
    return [config.model_copy(update={name: value}) for value in values]


def _train(name: str, method: str, config: Config, n: int, corpus: Corpus, run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.step(name, partial(_training, name, method, config, n, corpus, run))
    return found


def _training(name: str, method: str, config: Config, n: int, corpus: Corpus, run: Run) -> dict[str, Any]:
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
    result: dict[str, Any] = {"method": method, "seed": n, "curve": curve}
    for part, (features, meant) in (("dev", corpus.dev), ("test", corpus.test)):
        said = transcribe(training.model, features, corpus.tokenizer)
        _write_said(run.folder / "transcripts" / f"{name}-{part}.jsonl", features, meant, said)
        result[part] = error_rates(said, meant)
    run.emit("message", f"{name}: WER {result['dev']['wer']:.3f} on dev, {result['test']['wer']:.3f} on test")
    return result


def _pass(name: str, training: Training, curve: list[float], corpus: Corpus, run: Run) -> None:
    step = training.passes[training.done]
    row: dict[str, Any] = {"training": name, "step": training.done, "pass": step.kind, "gamma": step.gamma}
    row |= training.run_pass()
    if step.kind != "explore":
        features, meant = corpus.dev
        rates = error_rates(transcribe(training.model, features, corpus.tokenizer), meant)
        row |= {f"dev_{rate}": value for rate, value in rates.items()}
        curve.append(rates["wer"])
    run.metrics(row)
    run.checkpoint(f"{name}-state", training.state() | {"tokenizer": corpus.tokenizer.state(), "curve": curve})


def build(config: Config, method: str, corpus: Corpus, seed: int) -> Training:
    """A training at its start."""
    torch.manual_seed(seed)
    model = Recogniser(config.encoder, config.width, config.layers, corpus.tokenizer.size)
    settings = _settings(config)
    return Training(model, corpus.train, plan(method, settings), settings, seed, config.device)


def _settings(config: Config) -> Settings:
    return Settings(**{name: getattr(config, name) for name in Settings._fields})


def table(results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Means with 95 % Student intervals over seeds, and of the differences from supervised-only, paired by seed."""
    rows: dict[str, Any] = {}
    for method, found in results.items():
        rows[method] = {
            f"{part}_{rate}": band([one[part][rate] for one in found])
            for part in ("dev", "test")
            for rate in ("wer", "cer")
        }
        if "supervised" in results and method != "supervised":
            pairs = zip(found, results["supervised"], strict=True)
            rows[method]["test_wer_less_supervised"] = band([a["test"]["wer"] - b["test"]["wer"] for a, b in pairs])
    return rows


def _minutes(config: Config, corpus: Corpus, run: Run) -> float:
    """To expect for all trainings, from the time that two steps of each loss take now."""
    timed = build(config, "bl_just", corpus, run.seed).seconds_per_step()
    total = 0.0
    for method in config.methods:
        tries = len(_candidates(method, config)) if config.tune else 0
        settings = _settings(config)
        total += (config.models + tries) * sum(timed[step.kind] for step in plan(method, settings))
    return total / 60


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device} cannot be used here ({str(error).splitlines()[0][:120]})") from None


def _write_said(path: Path, features: Features, meant: list[str], said: list[str]) -> None:
    path.parent.mkdir(exist_ok=True)
    rows = zip(features.recordings, meant, said, strict=True)
    lines = [json.dumps({"audio": str(one.audio), "text": text, "heard": heard}) for one, text, heard in rows]
    path.write_text("\n".join(lines) + "\n")


JOB = Job(
    name="bilevel.bl_just",
    summary="Speech recognition from few labels: BL-JUST, supervised only, pre-training and fixed γ, compared by WER",
    Config=Config,
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
