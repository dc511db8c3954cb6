"""The trainings of a run: each is a step, in the run's own process or in several side by side."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import torch

from training.checkpoints import SavedValue
from training.json_values import JsonObject
from training.run import Run, derive_seed, rng_of
from training.speech.config import BLJustConfig
from training.speech.corpus import Corpus, CorpusConfig, load_corpus
from training.speech.model import Recogniser
from training.speech.results import PARTS, TrainingResult
from training.speech.schedule import TrainingMethod, TrainingSchedule, plan
from training.speech.training import Training, error_rates, transcribe
from training.workers import stop_if_asked, workers


class TrainingTask(NamedTuple):
    """One training: its name, its method, and the number that seeds it."""

    name: str
    method: TrainingMethod
    config: BLJustConfig
    number: int


def train_all(tasks: list[TrainingTask], config: BLJustConfig, run: Run) -> dict[str, TrainingResult]:
    """The result of each task, as one step of the run; in ``processes`` processes if there are several tasks."""
    missing = [task for task in tasks if not run.has(task.name)]
    apart = config.processes > 1 and len(missing) > 1
    results: dict[str, TrainingResult] = {}
    with workers(config.processes if apart else 1, run) as submit:
        waiting = {}
        if apart:
            waiting = {
                task.name: submit(_train_apart, task, run.folder, run.seed, _saved_state(task, run)) for task in missing
            }
        for task in tasks:
            wait = waiting.get(task.name)
            compute = partial(_keep, task, wait, run) if wait else partial(_train_here, task, run)
            results[task.name] = run.step(task.name, compute)
    return results


class Trained(NamedTuple):
    """What a training in another process gives. ``rows``: of metrics.jsonl, one for each pass that was left."""

    rows: list[JsonObject]
    state: JsonObject
    result: TrainingResult
    transcripts: dict[str, list[JsonObject]]


def _train_here(task: TrainingTask, run: Run) -> TrainingResult:
    """In this process: a run that is stopped goes on from the last pass."""
    corpus = corpus_of(task.config, run.folder, run.seed)
    training, curve = _resumed(task, corpus, run.seed, _saved_state(task, run))
    with run.progress(task.name, len(training.passes)) as advance:
        for _ in range(training.done):
            advance()
        for row in _passes(task, training, curve, corpus):
            run.metrics(row)
            run.checkpoint(f"{task.name}-state", _state(training, curve, corpus))
            advance()
    result, transcripts = _evaluate(task, training, curve, corpus)
    _write(task, result, transcripts, run)
    return result


def _train_apart(task: TrainingTask, folder: Path, seed: int, state: SavedValue | None) -> Trained:
    """In a worker process, without the run: the passes that ``state`` leaves."""
    corpus = corpus_of(task.config, folder, seed)
    training, curve = _resumed(task, corpus, seed, state)
    rows = []
    for row in _passes(task, training, curve, corpus):
        stop_if_asked()
        rows.append(row)
    return Trained(rows, _state(training, curve, corpus), *_evaluate(task, training, curve, corpus))


def _keep(task: TrainingTask, wait: Callable[[], Trained], run: Run) -> TrainingResult:
    trained = wait()
    for row in trained.rows:
        run.metrics(row)
    run.checkpoint(f"{task.name}-state", trained.state)
    _write(task, trained.result, trained.transcripts, run)
    return trained.result


def _saved_state(task: TrainingTask, run: Run) -> SavedValue | None:
    """What the run kept of a training that was stopped."""
    name = f"{task.name}-state"
    return run.load(name) if run.has(name) else None


def _resumed(task: TrainingTask, corpus: Corpus, seed: int, state: SavedValue | None) -> tuple[Training, list[float]]:
    """The training at ``state``, and the error rates on dev after each pass with texts until then."""
    training = build(task.config, task.method, corpus, derive_seed(seed, 1, task.number))
    if state is None:
        return training, []
    training.load(state)
    return training, list(state["curve"])


def _passes(task: TrainingTask, training: Training, curve: list[float], corpus: Corpus) -> Iterator[JsonObject]:
    """Runs the passes that are left, and gives a row of each; those with texts add dev's error rate to ``curve``."""
    features, texts = corpus.dev
    while training.done < len(training.passes):
        step = training.passes[training.done]
        row: JsonObject = {"training": task.name, "step": training.done, "pass": step.kind, "gamma": step.gamma}
        row |= training.run_pass()
        if step.kind not in ("explore", "transcribe"):
            rates = error_rates(transcribe(training.model, features, corpus.tokenizer), texts)
            row |= {f"dev_{name}": value for name, value in rates.items()}
            curve.append(rates[task.config.select])
        yield row


def _state(training: Training, curve: list[float], corpus: Corpus) -> JsonObject:
    return {**training.state(), "tokenizer": corpus.tokenizer.state(), "curve": curve}


def _evaluate(
    task: TrainingTask, training: Training, curve: list[float], corpus: Corpus
) -> tuple[TrainingResult, dict[str, list[JsonObject]]]:
    rates, transcripts = {}, {}
    for part, (features, texts) in (("dev", corpus.dev), ("test", corpus.test)):
        heard = transcribe(training.model, features, corpus.tokenizer)
        rows = zip(features.recordings, texts, heard, strict=True)
        transcripts[part] = [{"audio": str(source.audio), "text": text, "heard": line} for source, text, line in rows]
        rates[part] = error_rates(heard, texts)
    result: TrainingResult = {
        "method": task.method,
        "seed": task.number,
        "curve": curve,
        "dev": rates["dev"],
        "test": rates["test"],
    }
    return result, transcripts


def _write(task: TrainingTask, result: TrainingResult, transcripts: Mapping[str, list[JsonObject]], run: Run) -> None:
    (run.folder / "transcripts").mkdir(exist_ok=True)
    for part, rows in transcripts.items():
        path = run.folder / "transcripts" / f"{task.name}-{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dev, test = (" ".join(f"{name.upper()} {value:.3f}" for name, value in result[part].items()) for part in PARTS)
    run.emit("message", f"{task.name}: {dev} on dev, {test} on test")


def corpus_of(config: BLJustConfig, folder: Path, seed: int) -> Corpus:
    """What all trainings of a run learn from, read once by each process. Raises what `load_corpus` raises."""
    return _corpus(CorpusConfig(**{name: getattr(config, name) for name in CorpusConfig.model_fields}), folder, seed)


def forget_corpus() -> None:
    """Let `corpus_of` read the recordings again."""
    _corpus.cache_clear()


@lru_cache(maxsize=1)
def _corpus(config: CorpusConfig, folder: Path, seed: int) -> Corpus:
    return load_corpus(config, folder, rng_of(seed, 0))


def build(config: BLJustConfig, method: TrainingMethod, corpus: Corpus, seed: int) -> Training:
    """A training before its first pass."""
    torch.manual_seed(seed)
    model = Recogniser(config.encoder, config.width, config.layers, corpus.tokenizer.size)
    schedule = schedule_of(config)
    return Training(model, corpus.train, plan(method, schedule), schedule, seed, config.device)


def schedule_of(config: BLJustConfig) -> TrainingSchedule:
    return TrainingSchedule(**{name: getattr(config, name) for name in TrainingSchedule._fields})
