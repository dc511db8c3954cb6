"""One aligned row on a stock vLLM server and in process: ``python -m benchmarks.vllm_tilts RUN_FOLDER ... --json``.

A RUN_FOLDER is of ``iro run bench.tasks``: the aligned models are those of its pieces. Held-out prompts of a piece are
answered by the frozen model and by the aligned one, on both engines, ``--samples`` times each at one row; vLLM gets the
tilt as a LoRA adapter of the output head and, for words, as ``logit_bias`` of the next tokens. ``share``: the gain on
vLLM divided by that in process; ``share of in-process jobs``: by that of the jobs of ``--jobs``, whose tilts have parts
that vLLM does not apply, for the seeds that both have. Beside them, searches of 16 rows without a tilt, in process: by
values that the same rollouts give where a server shows embeddings and counts alone, where it shows the output head's
state too, and by the job's own values of hidden states. What ``--out`` has is not measured again.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from benchmarks.processes import VLLMProcess, terminated_is_exit
from benchmarks.quality_report import interval
from benchmarks.record import command_line, computed_once, finish, read
from benchmarks.tables import interval_text, table
from benchmarks.tasks import TASKS
from iro_server import JsonObject
from iro_server.decoding.base import SearchParams
from iro_server.decoding.search import guided_search
from iro_server.engines.base import Engine, Steering
from iro_server.engines.embedded import EmbeddedEngine
from iro_server.engines.endpoints import Endpoints
from iro_server.engines.prepare import prepare_model
from iro_server.engines.vllm import VLLMEngine
from iro_server.graders.parsing import parse_grader
from training.iro.rollouts import rollout_sampling

if TYPE_CHECKING:
    from benchmarks.bench_tasks.piece import Piece
    from training.iro.data import Prompt
    from training.iro.values import Stack
    from value_heads.tilt import Tilt

MODELS = ("frozen", "aligned")
SEARCH_ROWS = 16
CONTROL, BY_STATE, BY_HIDDEN = "embeddings and counts", "the output head's state", "hidden states"
JOBS = Path("results/bench.tasks/eight-tasks.json")
DRAWS = 4000  # of a bootstrap

Measured = TypeVar("Measured", JsonObject, list[float])


def rewards(engine: Engine, piece: Piece, tilt: Tilt | None, samples: int) -> np.ndarray:
    """[prompts, samples] of independent answers to the piece's held-out prompts."""
    params = SearchParams(num_successors=samples, strength=0.0 if tilt is None else 1.0)
    steering = None if tilt is None else Steering(tilt, 1.0)
    sampling = rollout_sampling(1.0, engine.info)

    async def answers(prompt: Prompt) -> list[str]:
        result = await guided_search(
            engine, prompt.token_ids, params, sampling, piece.max_tokens, None, steering=steering
        )
        return [piece.text(final.tokens) for final in result.finals]

    async def answer_all(prompts: Sequence[Prompt]) -> list[list[str]]:
        return await asyncio.gather(*map(answers, prompts))

    texts = asyncio.run(answer_all(piece.held_out))
    pairs = [(prompt, text) for prompt, group in zip(piece.held_out, texts, strict=True) for text in group]
    graded = piece.rewards([prompt for prompt, _ in pairs], [text for _, text in pairs])
    return np.array(graded).reshape(len(texts), samples)


def open_pieces(folders: Sequence[Path], tasks: Sequence[str], engine: EmbeddedEngine) -> list[Piece]:
    """The trained pieces of the runs. ValueError where they have none of a task."""
    pieces = [piece for task in tasks for folder in folders for piece in pieces_of(folder, task, engine)]
    if missing := set(tasks) - {piece.task.name for piece in pieces}:
        raise ValueError(f"{', '.join(map(str, folders))}: no finished alignment job of {', '.join(sorted(missing))}")
    return pieces


def pieces_of(folder: Path, task: str, engine: EmbeddedEngine) -> list[Piece]:
    from benchmarks.bench_tasks.config import BenchTasksConfig
    from benchmarks.bench_tasks.piece import Piece

    config = BenchTasksConfig.model_validate(json.loads((folder / "config.json").read_text())["config"])
    paths = sorted(path for path in (folder / "pieces").glob(f"{task}-*") if (path / "align/result.json").exists())
    return [
        Piece(
            config,
            TASKS[task],
            int(path.name.removeprefix(f"{task}-")),
            path,
            engine,
            parse_grader(TASKS[task].grader()),
            lambda _, compute: compute(),
        )
        for path in paths
    ]


def in_process(piece: Piece, folder: Path, samples: int, searched_seeds: int) -> JsonObject:
    """Rewards of each prompt: of both models in process, and of each search. ValueError where the job kept no tilt."""
    means = measured_once(folder, piece, "in process", partial(of_models, piece.engine, piece, samples))
    searches = {
        name: measured_once(folder, piece, f"search by {name}", partial(search_rewards, piece, values))
        for name, values in searched_values().items()
        if name == CONTROL or piece.seed < searched_seeds
    }
    return {"task": piece.task.name, "seed": piece.seed, "in process": means, "searches": searches}


def searched_values() -> dict[str, Callable[[Piece], Stack | None]]:
    """Values of a piece by what they read."""
    from benchmarks.bench_tasks.shown_values import shown_values
    from iro_server.engines.vllm_protocol import MOST_NUMBERS

    return {
        CONTROL: partial(shown_values, head_values=0),
        BY_STATE: partial(shown_values, head_values=MOST_NUMBERS),
        BY_HIDDEN: lambda piece: piece.trained.stack,
    }


def of_models(engine: Engine, piece: Piece, samples: int) -> JsonObject:
    """Means over the samples of each prompt, by model."""
    tilt = getattr(piece.trained.stack, "tilt", None)
    if tilt is None:
        raise ValueError(f"the job of {piece.task.name}, seed {piece.seed}, kept no tilt")
    steered = {"frozen": None, "aligned": tilt}
    return {model: rewards(engine, piece, steered[model], samples).mean(1).tolist() for model in MODELS}


def measured_once(folder: Path, piece: Piece, part: str, compute: Callable[[], Measured]) -> Measured:
    """A part of a piece's numbers, measured once for its run in the life of ``folder``. SystemExit where it was
    measured for another job of a run and a piece of these names."""
    run = piece.folder.parents[1]
    path = folder / f"{run.name}, {piece.folder.name}, {part}.json"
    job = (piece.folder / "align" / "result.json").read_bytes()
    values: Measured = computed_once(path, compute, {"job_sha256": hashlib.sha256(job).hexdigest()})
    return values


def search_rewards(piece: Piece, values_of: Callable[[Piece], Stack | None]) -> list[float]:
    """[prompts]: of what the values pick."""
    from benchmarks.bench_tasks.methods import iro_search

    params = iro_search(SEARCH_ROWS, piece.config.chunk_length).model_copy(update={"strength": 0.0})
    results = piece.search(piece.held_out, params, values_of(piece), piece.seed)
    return piece.rewards(piece.held_out, [piece.text(result.finals[0].tokens) for result in results])


def summary(rows: Sequence[JsonObject], job_rows: Sequence[JsonObject]) -> list[JsonObject]:
    """Of each task: rewards and gains by engine, and the shares of the gain, with 95 % intervals over seeds and
    prompts. ``job_rows``: of a results file of ``bench.tasks``."""
    results = []
    for task in dict.fromkeys(row["task"] for row in rows):
        values = {
            (engine, model): np.array([row[engine][model] for row in rows if row["task"] == task])
            for engine in ("in process", "vLLM")
            for model in MODELS
        }
        gains = {engine: values[engine, "aligned"] - values[engine, "frozen"] for engine in ("in process", "vLLM")}
        searched = [row for row in rows if row["task"] == task and BY_STATE in row["searches"]]
        control = np.array([row["searches"][CONTROL] for row in rows if row["task"] == task])
        results.append(
            {
                "task": task,
                "seeds": len(gains["vLLM"]),
                "rewards": {f"{engine}, {model}": interval(array) for (engine, model), array in values.items()},
                "gains": {engine: interval(array) for engine, array in gains.items()},
                "difference": interval(gains["vLLM"] - gains["in process"]),
                "share": share(gains["vLLM"], gains["in process"]),
                "share of in-process jobs": share_of_jobs(task, rows, job_rows),
                "aligned on vLLM less control": interval(values["vLLM", "aligned"] - control),
                "searches": of_searches(searched),
            }
        )
    return results


def of_searches(rows: Sequence[JsonObject]) -> JsonObject:
    """Of the seeds that have all searches: rewards, and what values of the head's state gain over the others."""
    rewards = {name: np.array([row["searches"][name] for row in rows]) for name in (CONTROL, BY_STATE, BY_HIDDEN)}
    frozen = np.array([row["in process"]["frozen"] for row in rows])
    return {
        "seeds": [row["seed"] for row in rows],
        "rewards": {"frozen, one row": interval(frozen)} | {name: interval(array) for name, array in rewards.items()},
        "gains": {name: interval(rewards[BY_STATE] - rewards[name]) for name in (CONTROL, BY_HIDDEN)},
    }


def share_of_jobs(task: str, rows: Sequence[JsonObject], job_rows: Sequence[JsonObject]) -> JsonObject | None:
    """Of the gain of in-process jobs at one row, with their seeds; None where no seed has such a job."""
    cells = [row for row in job_rows if row["task"] == task and row["rows"] == 1]
    jobs = {(row["method"], row["seed"]): np.array(row["rewards"]) for row in cells}
    common = [row for row in rows if row["task"] == task and ("iro", row["seed"]) in jobs]
    if not common:
        return None
    gains = np.array([np.subtract(row["vLLM"]["aligned"], row["vLLM"]["frozen"]) for row in common])
    of_jobs = np.array([jobs["iro", row["seed"]] - jobs["base", row["seed"]] for row in common])
    return share(gains, of_jobs) | {"seeds": [row["seed"] for row in common]}


def share(gains_SP: np.ndarray, whole_SP: np.ndarray) -> dict[str, float]:
    """Ratio of the means of two arrays [seeds, prompts], and its 95 % interval over seeds and, within them, prompts."""
    rng = np.random.default_rng(0)
    seeds, prompts = gains_SP.shape
    picked_S = rng.integers(seeds, size=(DRAWS, seeds))[:, :, None]
    picked_P = rng.integers(prompts, size=(DRAWS, seeds, prompts))
    gains, wholes = (array_SP[picked_S, picked_P].mean((1, 2)) for array_SP in (gains_SP, whole_SP))
    low, high = np.quantile(gains / wholes, [0.025, 0.975])
    return {"mean": float(gains_SP.mean() / whole_SP.mean()), "low": float(low), "high": float(high)}


def main() -> None:
    parser = command_line("vllm_tilts", __doc__)
    parser.add_argument("folders", type=Path, nargs="+", help="of runs of bench.tasks")
    parser.add_argument("--tasks", nargs="+", default=["keywords", "extraction"], choices=TASKS)
    parser.add_argument("--samples", type=int, default=4, help="answers to each prompt")
    parser.add_argument("--searched-seeds", type=int, default=2, help="whose values are searched by, the control aside")
    parser.add_argument("--jobs", type=Path, default=JOBS, help="results file of in-process jobs")
    args = parser.parse_args()
    terminated_is_exit()
    jobs = read(args.jobs)["rows"]
    measured = args.out / f"{args.samples} samples"
    measured.mkdir(parents=True, exist_ok=True)
    model_dir = prepare_model()
    adapters = (args.out / "adapters").absolute()
    adapters.mkdir(exist_ok=True)
    with EmbeddedEngine(model_dir) as embedded:
        rows: list[JsonObject] = []
        for piece in open_pieces(args.folders, args.tasks, embedded):
            with piece.grader:
                rows.append(in_process(piece, measured, args.samples, args.searched_seeds))
        with (
            VLLMProcess(model_dir, args.out / "vllm.log", "--max-model-len", "1024", "--max-num-seqs", "256") as server,
            VLLMEngine(model_dir, Endpoints((server.url,), adapters=adapters)) as vllm,
        ):
            for row, piece in zip(rows, open_pieces(args.folders, args.tasks, embedded), strict=True):
                with piece.grader:
                    row["vLLM"] = measured_once(measured, piece, "vLLM", partial(of_models, vllm, piece, args.samples))
    args.folders = [folder.name for folder in args.folders]
    finish(args, {"tasks": summary(rows, jobs), "rows": rows}, report, sorted({row["seed"] for row in rows}))


def by_engine(content: JsonObject) -> str:
    """Rewards of one row on each engine, the share of the gain that vLLM has, and what a row is above a search by
    embeddings and counts, by task."""

    def columns(cell: JsonObject) -> JsonObject:
        shares = {"gain on vLLM / in process": cell["share"], "/ of in-process jobs": cell["share of in-process jobs"]}
        rewards: JsonObject = cell["rewards"]
        return rewards | shares | {f"less 16 rows by {CONTROL}": cell["aligned on vLLM less control"]}

    return _table(content, columns)


def by_search(content: JsonObject) -> str:
    """Rewards of searches of 16 rows without a tilt by what their values read, by task."""

    def columns(cell: JsonObject) -> JsonObject:
        rewards: JsonObject = cell["searches"]["rewards"]
        return rewards | {f"the state less {name}": gain for name, gain in cell["searches"]["gains"].items()}

    return _table(content, columns)


def _table(content: JsonObject, columns: Callable[[JsonObject], JsonObject]) -> str:
    def text(cell: JsonObject | None) -> str:
        return "" if cell is None else interval_text(cell)

    rows = ([cell["task"], *map(text, columns(cell).values())] for cell in content["tasks"])
    return table(["task", *columns(content["tasks"][0])], rows)


def report(numbers: JsonObject) -> None:
    print(by_engine(numbers), by_search(numbers), sep="\n\n")


if __name__ == "__main__":
    main()
