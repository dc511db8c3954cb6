"""The demo: align a frozen model to the sentiment of film reviews through the API, and judge what it then writes."""

from __future__ import annotations

import ast
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openai import APIError, OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import track

from iro_server import JsonObject
from iro_server.cli.demo import DemoError
from iro_server.cli.demo.data import prompt_rows
from iro_server.cli.demo.judges import minilm_head, minilm_judge, vader_judge
from iro_server.cli.demo.report import draw, print_results
from iro_server.cli.demo.sentiment import sentiment_grader_source
from iro_server.cli.demo.server import running_server
from iro_server.cli.jobs import status_line
from iro_server.engines.prepare import prepare_model
from iro_server.graders.base import Sample
from iro_server.graders.parsing import parse_grader

BATCH = 8  # prompts of one request
FINALS = 16
BEST = f"best of {FINALS}"
ONE_ROW = "IRO, one row"
SEED = 1
ENDED = {"succeeded", "failed", "cancelled"}
Judge = Callable[[Sequence[str]], np.ndarray]


@dataclass(frozen=True)
class DemoSize:
    """How much is done; the defaults take twelve minutes on two cores that do nothing else."""

    iterations: int = 1
    tilt_rounds: int = 1  # the text of further ones is less and less a sentence
    train_prompts: int = 48
    validation_prompts: int = 8
    heldout_prompts: int = 32
    max_tokens: int = 40


QUICK = DemoSize(iterations=1, train_prompts=16, validation_prompts=4, heldout_prompts=8, max_tokens=16)


def run_demo(out: Path = Path("runs/demo"), size: DemoSize | None = None, console: Console | None = None) -> Path:
    """Run the demo and return ``out``, which then holds demo.json, demo.png and the server's log.

    Raises MissingPackage where data or a judge is not installed, DemoError where the server or the job fails.
    """
    size, console = size or DemoSize(), console or Console()
    started = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    with console.status("Preparing the frozen model"):
        prepare_model()
    with console.status("Fitting the grader and the judges (the first time only)"):
        source = sentiment_grader_source()
        judge_accuracy = minilm_head().accuracy
    console.print(f"Reward: {ast.get_docstring(ast.parse(source))}")
    console.print(f"Judge the job never sees: MiniLM, {judge_accuracy:.1%} right on held-out snippets; and VADER.")
    grader = {"type": "python", "name": "sentiment", "source": source}
    train, heldout = prompt_rows(size.train_prompts + size.validation_prompts, size.heldout_prompts)
    prompts = [row["prompt"] for row in heldout]
    with running_server(out / "server.log") as client:
        try:
            job = align(client, grader, train, size, console)
            finals = dict(continuations(client, job, prompts, size, console))
        except APIError as error:
            raise DemoError(f"the demo's server ({out / 'server.log'}): {error}") from error
    with parse_grader(grader) as reward, console.status("Judging"):
        results = judge(finals, prompts, lambda texts: _rewards(reward, texts))
    results |= {"job": job.id, "model": job.model, "size": vars(size), "seconds": time.monotonic() - started}
    (out / "demo.json").write_text(json.dumps(results, indent=1, ensure_ascii=False))
    draw(results, out / "demo.png")
    print_results(console, results)
    console.print(f"\n{results['seconds'] / 60:.1f} minutes. Figure: {out / 'demo.png'}; numbers: {out / 'demo.json'}")
    return out


def align(
    client: OpenAI, grader: JsonObject, rows: Sequence[dict[str, str]], size: DemoSize, console: Console
) -> FineTuningJob:
    """Upload, create the job, follow it to its end."""
    validation, train = rows[: size.validation_prompts], rows[size.validation_prompts :]
    files = [_upload(client, name, part) for name, part in (("train", train), ("validation", validation))]
    options = {
        "iterations": size.iterations,
        "tilt_rounds": size.tilt_rounds,
        "betas": [1.0] * size.iterations,  # chosen beforehand: "auto" would spend rollouts on it
        "max_tokens": size.max_tokens,
        "validation_prompts": size.validation_prompts,
        "rollouts_per_prompt": FINALS,
    }
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": options}}
    job = client.fine_tuning.jobs.create(
        model=client.models.list().data[0].id,
        training_file=files[0],
        validation_file=files[1],
        method=method,
        suffix="sentiment",
        seed=SEED,
    )
    return follow(client, job.id, console)


def _upload(client: OpenAI, name: str, rows: Sequence[dict[str, str]]) -> str:
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=(f"{name}.jsonl", content), purpose="fine-tune").id


def follow(client: OpenAI, job_id: str, console: Console) -> FineTuningJob:
    """Print the job's events as they come. Returns the succeeded job; raises DemoError for any other end."""
    printed_ids: set[str] = set()
    started = time.monotonic()
    with console.status("") as status:
        while True:
            job = client.fine_tuning.jobs.retrieve(job_id)
            for event in reversed(client.fine_tuning.jobs.list_events(job_id, limit=100).data):
                if event.id not in printed_ids:
                    printed_ids.add(event.id)
                    console.print(f"  {event.message}", highlight=False, markup=False)
            if job.status in ENDED:
                break
            minutes, seconds = divmod(int(time.monotonic() - started), 60)
            status.update(f"Aligning for {minutes}:{seconds:02}: {status_line(job.model_dump(), time.time())}")
            time.sleep(1)
    if job.status != "succeeded":
        raise DemoError(f"the alignment job {job.status}" + (f": {job.error.message}" if job.error else ""))
    return job


def continuations(
    client: OpenAI, job: FineTuningJob, prompts: Sequence[str], size: DemoSize, console: Console
) -> Iterator[tuple[str, list[list[str]]]]:
    """(name, finals of each prompt): the base's 16 samples, 16 finals of each iteration, best value first, and the
    aligned model's answer of one row, however many rows the job chose to serve."""
    checkpoints = sorted(
        client.fine_tuning.jobs.checkpoints.list(job.id).data, key=lambda checkpoint: checkpoint.step_number
    )
    sixteen: JsonObject = {"rows": FINALS}
    models: list[tuple[str, str, int, JsonObject]] = [
        ("base", job.model, FINALS, {"num_successors": FINALS}),  # one beam without chunks: plain samples
        *((f"IRO-{part.step_number}", part.fine_tuned_model_checkpoint, FINALS, sixteen) for part in checkpoints),
        (ONE_ROW, str(job.fine_tuned_model), 1, {"rows": 1}),
    ]
    for label, name, count, search in models:
        finals = []
        starts = range(0, len(prompts), BATCH)
        for start in track(starts, f"Held-out prompts, {label}", console=console, transient=True):
            batch = list(prompts[start : start + BATCH])
            answer = client.completions.create(
                model=name,
                prompt=batch,
                n=count,
                max_tokens=size.max_tokens,
                seed=SEED + start,
                extra_body={"search": search},
            )
            texts = [choice.text for choice in answer.choices]
            finals += [texts[i : i + count] for i in range(0, len(texts), count)]
        yield label, finals


def judge(finals: dict[str, list[list[str]]], prompts: Sequence[str], grade: Judge) -> JsonObject:
    """What each method wrote, by each judge, and its gain over best-of-16 in the grader's units, prompt by prompt."""
    methods: dict[str, list[str]] = {}
    for label, groups in finals.items():
        first, best = {"base": ("base", BEST), ONE_ROW: (ONE_ROW, None)}.get(
            label, (f"{label}, value", f"{label}, reward")
        )
        methods[first] = [texts[0] for texts in groups]
        if best:
            methods[best] = [texts[int(np.argmax(grade(texts)))] for texts in groups]
    judges: dict[str, Judge] = {"grader": grade, "vader": vader_judge, "minilm": minilm_judge}
    scores = {name: {key: score(texts) for key, score in judges.items()} for name, texts in methods.items()}
    best_of_n = scores[BEST]["grader"]
    rows = [
        {
            "name": name,
            "rows": 1 if name in ("base", ONE_ROW) else FINALS,
            "scores": {key: summary(values) for key, values in scores[name].items()},
            "gain_over_best_of_n": summary(scores[name]["grader"] - best_of_n),
            "texts": texts,
        }
        for name, texts in methods.items()
    ]
    return {"prompts": list(prompts), "methods": rows}


def summary(values: np.ndarray) -> JsonObject:
    """Mean and its standard error over prompts."""
    se = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return {"mean": float(np.mean(values)), "se": se, "values": values.tolist()}


def _rewards(grader: Any, texts: Sequence[str]) -> np.ndarray:
    return np.array([grade.reward for grade in grader.grade_many([(Sample(text), {}) for text in texts])])
