"""`iro run bilevel.bl_just`: BL-JUST (arXiv:2412.08548) and its baselines, on your speech or on Debian's."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from training.json_values import JsonObject
from training.run import Job, Run
from training.speech import checks
from training.speech.config import GRIDS, BLJustConfig, Rate, rates_of
from training.speech.corpus import Corpus
from training.speech.figures import draw
from training.speech.results import table
from training.speech.schedule import TrainingMethod, plan
from training.speech.trainings import TrainingTask, build, corpus_of, forget_corpus, schedule_of, train_all
from training.speech.tuning import GridSearch
from training.workers import one_thread

TUNING = 10**6  # the number of the tuning runs


def run(config: BLJustConfig, run: Run) -> dict[str, object]:
    """On the CPU with one thread, as in the processes of ``processes``: the bits depend on the number of threads."""
    with one_thread() if config.device.startswith("cpu") else nullcontext():
        return _run(config, run)


def _run(config: BLJustConfig, run: Run) -> dict[str, object]:
    _check_device(config.device)
    for name, claim in checks.CLAIMS.items():
        run.check(name, **claim())
    forget_corpus()  # an earlier run of this process may have read other recordings from the same paths
    corpus = corpus_of(config, run.folder, run.seed)
    run.emit("message", f"expect about {_minutes(config, corpus, run):.1f} min on this {config.device}")
    chosen, tuning = _tuned(config, run) if config.tune else ({method: config for method in config.methods}, {})
    tasks = [
        TrainingTask(f"{method}-{number}", method, chosen[method], number)
        for number in range(config.models)
        for method in config.methods
    ]
    trained = train_all(tasks, config, run)
    names: tuple[str, ...] = config.methods
    results = {name: [trained[f"{name}-{number}"] for number in range(config.models)] for name in names}
    rates = {method: {rate: getattr(chosen[method], rate) for rate in rates_of(method)} for method in config.methods}
    return {"chosen": rates, "tuning": tuning, "results": results, "table": table(results)}


def _tuned(config: BLJustConfig, run: Run) -> tuple[dict[TrainingMethod, BLJustConfig], JsonObject]:
    """Each method's config with the rates that are best on dev, the second chosen at the best of the first; and what
    was tried. The tuning runs have a separate seed."""
    chosen = dict.fromkeys(config.methods, config)
    tuning: JsonObject = {method: {} for method in config.methods}
    for place in range(2):
        rates = {method: rates_of(method)[place] for method in config.methods}
        searches = {method: _search(config, rate) for method, rate in rates.items()}
        while pending := {method: search.pending() for method, search in searches.items() if search.pending()}:
            tasks = {
                (method, value): _tuning_task(method, chosen[method].model_copy(update={rates[method]: value}))
                for method, values in pending.items()
                for value in values
            }
            trained = train_all(list(tasks.values()), config, run)
            for (method, value), task in tasks.items():
                searches[method].add({value: trained[task.name]["dev"][config.select]})
        for method, search in searches.items():
            chosen[method] = chosen[method].model_copy(update={rates[method]: search.best})
            tuning[method][rates[method]] = {"tried": search.tried, "at_edge": search.at_edge}
    return chosen, tuning


def _search(config: BLJustConfig, rate: Rate) -> GridSearch:
    bounds = (0.0, 1.0) if rate == "pseudo_share" else (0.0, float("inf"))
    return GridSearch(config.grids.get(rate, GRIDS[rate]), config.extensions, bounds)


def _tuning_task(method: TrainingMethod, config: BLJustConfig) -> TrainingTask:
    values = "-".join(f"{rate}={getattr(config, rate):g}" for rate in rates_of(method))
    shorter = config.model_copy(update={"epochs": config.tuning_epochs or config.epochs})
    return TrainingTask(f"tune-{method}-{values}", method, shorter, TUNING)


def _minutes(config: BLJustConfig, corpus: Corpus, run: Run) -> float:
    """Expected for all trainings, from the time that two steps of each loss take."""
    seconds = build(config, "bl_just", corpus, run.seed).seconds_per_pass()
    total = 0.0
    for method in config.methods:
        trainings = float(config.models)
        if config.tune:
            runs = sum(len(_search(config, rate).grid) for rate in rates_of(method))
            trainings += runs * (config.tuning_epochs or config.epochs) / config.epochs
        total += trainings * sum(seconds[step.kind] for step in plan(method, schedule_of(config)))
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
            "epochs": 19,  # 3,078 steps with texts
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
