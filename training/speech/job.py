"""`iro run bilevel.bl_just`: BL-JUST (arXiv:2412.08548) and its baselines, on your speech or on Debian's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from training.json_values import JsonObject
from training.run import Job, Run, derive_seed, rng_of
from training.speech import checks
from training.speech.corpus import Corpus, CorpusConfig, load_corpus
from training.speech.figures import draw
from training.speech.model import Recogniser
from training.speech.results import PARTS, TrainingResult, table
from training.speech.schedule import TrainingMethod, TrainingSchedule, plan
from training.speech.training import Training, error_rates, transcribe
from training.speech.tuning import GridSearch
from training.workers import stop_if_asked, workers

Rate = Literal["lr", "gamma", "exploration_lr", "pseudo_share", "weight_decay"]


class BLJustConfig(CorpusConfig):
    """The recordings, the recogniser and its training.

    An epoch is ``exploration_passes`` on L_unsup at ``exploration_lr`` and one joint pass at ``lr``; where γ rises, it
    does by ``gamma_step`` per epoch up to ``gamma``; ``finetune_passes`` at ``finetune_lr`` follow.
    """

    encoder: Literal["bilstm", "conformer"] = Field("bilstm", description="The recogniser's encoder.")
    width: int = Field(96, ge=8, multiple_of=8, description="Width of the encoder.")
    layers: int = Field(1, ge=1, description="Layers of the encoder.")
    context: float = Field(0.5, gt=0, description="Seconds of a CPC window.")
    future: float = Field(0.3, gt=0, description="Seconds that CPC predicts.")

    methods: tuple[TrainingMethod, ...] = Field(
        ("supervised", "pretrain", "pseudo", "fixed", "bl_just"),
        min_length=1,
        description="The methods to compare. supervised: the texts alone; pretrain: L_unsup, then the texts; pseudo: "
        "the model's own transcripts beside the texts; fixed, rising: both losses with such a γ; fixed_explore, "
        "bl_just: the same with exploration; gradient_norm: bl_just with the other penalty.",
    )
    models: int = Field(5, ge=1, description="Trainings of each method, with different seeds.")
    epochs: int = Field(40, ge=1, description="Epochs, each `exploration_passes` on L_unsup and one joint pass.")
    exploration_passes: int = Field(1, ge=0, description="Passes of an epoch on L_unsup alone.")
    finetune_passes: int = Field(1, ge=0, description="Passes on the labelled loss after the epochs.")
    batch: int = Field(32, ge=2, description="Recordings of a batch.")
    exploration_lr: float = Field(1e-3, gt=0, description="Learning rate of the exploration passes.")
    lr: float = Field(4e-3, gt=0, description="Learning rate of the joint pass.")
    finetune_lr: float = Field(4e-4, gt=0, description="Learning rate of the passes after the epochs.")
    weight_decay: float = Field(0.01, ge=0, description="AdamW's weight decay.")
    gamma: float = Field(0.3, ge=0, description="γ, the weight of L_unsup; where it rises, the largest.")
    gamma_step: float | None = Field(
        None, ge=0, description="By how much γ grows in an epoch. Null: it reaches `gamma` in the last one."
    )
    pseudo_rounds: int = Field(2, ge=1, description="How often the pseudo-labels are made anew.")
    pseudo_share: float = Field(0.3, gt=0, le=1, description="Share of the unlabelled recordings with pseudo-labels.")
    select: Literal["wer", "cer"] = Field("cer", description="The error rate on dev that chooses settings.")
    tune: bool = Field(False, description="Choose `lr`, then the second rate of each method, on dev.")
    tuning_epochs: int | None = Field(None, ge=1, description="Epochs of the runs that choose. Null: `epochs`.")
    grids: dict[Rate, tuple[float, ...]] = Field(
        {}, description="Values to try, ascending, by rate, where they are not the job's own."
    )
    extensions: int = Field(4, ge=0, description="How many values a grid may grow by where its edge is the best.")

    device: str = Field("cpu", description="Where PyTorch trains: cpu, cuda, ….")
    workers: int = Field(0, ge=0, description="Processes that read recordings; 0: the training's own.")
    processes: int = Field(
        1, ge=1, description="Trainings at once. With several, those under way begin anew after a kill."
    )


GRIDS: dict[Rate, tuple[float, ...]] = {
    "lr": (1.5e-3, 3e-3, 6e-3),
    "gamma": (0.1, 0.3, 1.0),
    "exploration_lr": (3e-4, 1e-3, 3e-3),
    "pseudo_share": (0.1, 0.3, 0.9),
    "weight_decay": (0.01, 0.1, 1.0),
}
SECOND: dict[TrainingMethod, Rate] = {  # what is chosen after ``lr``
    "supervised": "weight_decay",
    "pretrain": "exploration_lr",
    "pseudo": "pseudo_share",
}
TUNING = 10**6  # the number of the tuning runs


class TrainingTask(NamedTuple):
    """One training: its name, its method, and the number that seeds it."""

    name: str
    method: TrainingMethod
    config: BLJustConfig
    number: int


def run(config: BLJustConfig, run: Run) -> dict[str, object]:
    _check_device(config.device)
    for name, claim in checks.CLAIMS.items():
        run.check(name, **claim())
    corpus = load_corpus(config, run.folder, run.rng(0))
    run.emit("message", f"expect about {_minutes(config, corpus, run):.1f} min on this {config.device}")
    chosen, tuning = _tuned(config, run) if config.tune else ({method: config for method in config.methods}, {})
    tasks = [
        TrainingTask(f"{method}-{number}", method, chosen[method], number)
        for number in range(config.models)
        for method in config.methods
    ]
    trained = _train_all(tasks, config, run)
    names: tuple[str, ...] = config.methods
    results = {name: [trained[f"{name}-{number}"] for number in range(config.models)] for name in names}
    rates = {method: {rate: getattr(chosen[method], rate) for rate in _rates(method)} for method in config.methods}
    return {"chosen": rates, "tuning": tuning, "results": results, "table": table(results)}


def _rates(method: TrainingMethod) -> tuple[Rate, Rate]:
    return "lr", SECOND.get(method, "gamma")


def _tuned(config: BLJustConfig, run: Run) -> tuple[dict[TrainingMethod, BLJustConfig], JsonObject]:
    """Each method's config with the rates that are best on dev, the second chosen at the best of the first; and what
    was tried. The tuning runs have a separate seed."""
    chosen = dict.fromkeys(config.methods, config)
    tuning: JsonObject = {method: {} for method in config.methods}
    for place in range(2):
        rates = {method: _rates(method)[place] for method in config.methods}
        searches = {method: _search(config, rate) for method, rate in rates.items()}
        while pending := {method: search.pending() for method, search in searches.items() if search.pending()}:
            tasks = {
                (method, value): _tuning_task(method, chosen[method].model_copy(update={rates[method]: value}))
                for method, values in pending.items()
                for value in values
            }
            trained = _train_all(list(tasks.values()), config, run)
            for (method, value), task in tasks.items():
                searches[method].add({value: trained[task.name]["dev"][config.select]})
        for method, search in searches.items():
            chosen[method] = chosen[method].model_copy(update={rates[method]: search.best})
            tuning[method][rates[method]] = {"tried": search.tried, "at_edge": search.at_edge}
    return chosen, tuning


def _search(config: BLJustConfig, rate: Rate) -> GridSearch:
    bounds = (0.0, 1.0) if rate == "pseudo_share" else (0.0, float("inf"))
    return GridSearch(tuple(sorted(config.grids.get(rate, GRIDS[rate]))), config.extensions, bounds)


def _tuning_task(method: TrainingMethod, config: BLJustConfig) -> TrainingTask:
    values = "-".join(f"{rate}={getattr(config, rate):g}" for rate in _rates(method))
    shorter = config.model_copy(update={"epochs": config.tuning_epochs or config.epochs})
    return TrainingTask(f"tune-{method}-{values}", method, shorter, TUNING)


def _train_all(tasks: list[TrainingTask], config: BLJustConfig, run: Run) -> dict[str, TrainingResult]:
    """The result of each task, as one step of the run; in ``processes`` processes if there are several tasks."""
    missing = [task for task in tasks if not run.has(task.name)]
    apart = config.processes > 1 and len(missing) > 1
    results: dict[str, TrainingResult] = {}
    with workers(config.processes if apart else 1, run) as submit:
        waiting = {task.name: submit(_train_apart, task, run.folder, run.seed) for task in missing} if apart else {}
        for task in tasks:
            wait = waiting.get(task.name)
            compute = partial(_keep, task, wait, run) if wait else partial(_train_here, task, run)
            results[task.name] = run.step(task.name, compute)
    return results


class Trained(NamedTuple):
    """What a training in another process gives. ``rows``: of metrics.jsonl, one a pass."""

    rows: list[JsonObject]
    state: JsonObject
    result: TrainingResult
    transcripts: dict[str, list[JsonObject]]


def _train_here(task: TrainingTask, run: Run) -> TrainingResult:
    """In this process: a run that is stopped goes on from the last pass."""
    corpus = _corpus(_corpus_config(task.config), run.folder, run.seed)
    training = build(task.config, task.method, corpus, run.derive_seed(1, task.number))
    curve: list[float] = []  # error rate on dev after each supervised pass
    if run.has(f"{task.name}-state"):
        state = run.load(f"{task.name}-state")
        training.load(state)
        curve = list(state["curve"])
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


def _train_apart(task: TrainingTask, folder: Path, seed: int) -> Trained:
    """In a worker process, without the run."""
    corpus = _corpus(_corpus_config(task.config), folder, seed)
    training = build(task.config, task.method, corpus, derive_seed(seed, 1, task.number))
    curve: list[float] = []
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


def _corpus_config(config: BLJustConfig) -> CorpusConfig:
    return CorpusConfig(**{name: getattr(config, name) for name in CorpusConfig.model_fields})


@cache
def _corpus(config: CorpusConfig, folder: Path, seed: int) -> Corpus:
    return load_corpus(config, folder, rng_of(seed, 0))


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
        trainings = float(config.models)
        if config.tune:
            runs = sum(len(_search(config, rate).grid) for rate in _rates(method))
            trainings += runs * (config.tuning_epochs or config.epochs) / config.epochs
        total += trainings * sum(seconds[step.kind] for step in plan(method, _schedule(config)))
    return total / 60 / config.processes


def _check_device(device: str) -> None:
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device={device} cannot be used here ({str(error).splitlines()[0][:120]})") from None


JOB = Job(
    name="bilevel.bl_just",
    summary="Speech recognition from few texts: BL-JUST, the texts alone, pre-training, pseudo-labels, fixed γ",
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
        "two-cores": {"tune": True, "tuning_epochs": 20, "processes": 2},
        "prompts": {
            "corpus": "prompts",
            "methods": (
                "supervised",
                "pretrain",
                "pseudo",
                "fixed",
                "bl_just",
                "fixed_explore",
                "rising",
                "gradient_norm",
            ),
            "epochs": 19,  # 3,135 steps with texts
            "batch": 8,
            "tune": True,
            "tuning_epochs": 8,
            "processes": 2,
        },
        "paper": {
            "sample_rate": 16000,
            "encoder": "conformer",
            "width": 512,
            "layers": 8,
            "pieces": 1000,
            "context": 2.0,
            "future": 1.0,
            "methods": ("supervised", "pretrain", "fixed", "bl_just"),
            "models": 1,
            "epochs": 200,
            "exploration_passes": 4,
            "finetune_passes": 5,
            "batch": 60,
            "lr": 1e-4,
            "finetune_lr": 1e-5,
            "gamma_step": 0.002,
            "gamma": 1.0,
            "select": "wer",
        },
    },
    draw=draw,
)
