"""The jobs of a fault run, and whether two of one recipe ended alike."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI

from benchmarks.faults_server import Server, ended, insist
from iro_server import JsonObject
from training.metrics import read_rows

OPENINGS = ["The film", "I saw this", "The acting was", "My wife and I", "This story", "What a", "The plot"]
OPENINGS += ["It begins", "She said", "Our town"]
ROWS = "".join(json.dumps({"prompt": opening, "letter": "e"}) + "\n" for opening in OPENINGS).encode()
COUNT = "def grade(sample, item):\n    return sample['output_text'].count(item['letter']) / 10\n"
LETTERS = {"type": "python", "name": "letters", "source": COUNT}
ALIKE = {"type": "text_similarity", "name": "alike", "evaluation_metric": "fuzzy_match"}
ALIKE |= {"input": "{{sample.output_text}}", "reference": "the best of all"}
SMALL = {"iterations": 2, "rollouts_per_prompt": 4, "beam_width": 2, "num_successors": 2, "chunk_length": 4}
SMALL |= {"max_tokens": 8, "validation_prompts": 2, "early_stop": False, "counted_tokens": 50, "keep_unproven": True}
RECIPES: dict[str, JsonObject] = {
    "linear": {"grader": LETTERS, "iro": SMALL},
    "mlp": {
        "grader": ALIKE,
        "iro": SMALL | {"value_model": "mlp", "counted_tokens": 0},
        "hyperparameters": {"n_epochs": 3},
    },
    "lora": {
        "grader": LETTERS,
        "iro": SMALL | {"value_model": "lora", "backbone_layers": 2},
        "hyperparameters": {"n_epochs": 2},
    },
}
JOB_SEED = 1
PROMPT, SEED = "The film", 5
Outcome = JsonObject


@dataclass(frozen=True)
class Reference:
    """An uninterrupted job: ``steps`` are the names of its run's checkpoints in the order in which it made them."""

    recipe: str
    seed: int
    job_id: str
    model: str
    steps: list[str]
    outcome: Outcome


def create(client: OpenAI, recipe: str, seed: int, training_file: str) -> str:
    method: Any = {"type": "reinforcement", "reinforcement": RECIPES[recipe]}
    job = client.fine_tuning.jobs.create(
        model=client.models.list().data[0].id,
        training_file=training_file,
        method=method,
        seed=seed,
        metadata={"recipe": recipe},
    )
    return job.id


def upload_rows(client: OpenAI) -> str:
    return client.files.create(file=("rows.jsonl", ROWS), purpose="fine-tune").id


def reference(server: Server, recipe: str) -> Reference:
    """The recipe's job, left in peace."""
    job = ended([server], create(server.client, recipe, JOB_SEED, upload_rows(server.client)))
    if job.status != "succeeded":
        raise RuntimeError(f"the uninterrupted {recipe} job {job.status}: {job.error}")
    saved = (run_folder(server, job.id) / "checkpoints").glob("*.pt")
    steps = [path.stem for path in sorted(saved, key=lambda path: path.stat().st_mtime_ns)]
    return Reference(recipe, JOB_SEED, job.id, job.fine_tuned_model, steps, outcome([server], job.id))


def run_folder(server: Server, job_id: str) -> Path:
    return server.settings.job_dir(job_id) / "run"


def outcome(servers: Sequence[Server], job_id: str) -> Outcome:
    """All that a succeeded job leaves, times and its own name aside."""
    job = insist(servers, lambda client: client.fine_tuning.jobs.retrieve(job_id))
    folder = run_folder(servers[0], job_id)
    checkpoints = insist(servers, lambda client: list(client.fine_tuning.jobs.checkpoints.list(job_id)))
    table = insist(servers, lambda client: client.files.content(job.result_files[0]).text)
    return {
        "trained tokens": job.trained_tokens,
        "bundles": {
            str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted((folder / "iterations").rglob("*"))
            if path.is_file()
        },
        "result.json": without_times(
            json.loads((folder / "result.json").read_text().replace(str(folder.parent), "JOB"))
        ),
        "metrics.jsonl": without_times(read_rows(folder)),
        "metrics.csv": [
            {name: cell for name, cell in row.items() if not name.startswith("timing/")}
            for row in csv.DictReader(io.StringIO(table))
        ],
        "checkpoints": {
            checkpoint.step_number: without_times(checkpoint.metrics.to_dict())
            for checkpoint in sorted(checkpoints, key=lambda checkpoint: checkpoint.step_number)
        },
        "completion": say(servers, job.fine_tuned_model),
        "completions of checkpoints": {
            checkpoint.step_number: say(servers, checkpoint.fine_tuned_model_checkpoint) for checkpoint in checkpoints
        },
    }


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(item) for name, item in value.items() if name not in ("timing", "versions")}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def say(servers: Sequence[Server], model: str | None) -> str:
    """What the model writes at a fixed seed."""
    answer = insist(
        servers, lambda client: client.completions.create(model=str(model), prompt=PROMPT, seed=SEED, max_tokens=12)
    )
    return answer.choices[0].text


def differences(expected: Outcome, got: Outcome) -> list[str]:
    return [name for name in expected if expected[name] != got[name]]
