"""What a client of a deployment has: a key, files, jobs, aligned models, and their answers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai

from benchmarks.deployment_stack import MODEL, Deployment
from benchmarks.faults_server import ended, insist, wait_for
from iro_server import JsonObject

OPENINGS = (
    "The film",
    "I saw this",
    "The acting was",
    "My wife and I",
    "This story",
    "What a",
    "The plot",
    "It begins",
)
ROWS = "".join(json.dumps({"prompt": opening, "letter": "e"}) + "\n" for opening in OPENINGS).encode()
COUNT_LETTER = """
import time

def grade(sample, item):
    time.sleep(0.2)  # so that the job still runs when the last service is killed
    return sample["output_text"].count(item["letter"]) / 10
"""
# A grader that would be harmful where it is not isolated: the rewards it gives are what of the container it reaches.
REACH = """
import os, socket

def grade(sample, item):
    reached = 0
    for path in ("/data", "/models", "/iro"):
        reached += os.path.exists(path) and bool(os.listdir(path))
    for name, port in (("postgres", 5432), ("server", 8000)):
        try:
            socket.create_connection((name, port), timeout=2)
            reached += 1
        except OSError:
            pass
    reached += any("SERVICE_KEY" in name for name in os.environ)
    return float(reached)
"""
PYTHON_GRADER = {"type": "python", "name": "letters", "source": COUNT_LETTER}
QUICK_COUNT = "def grade(sample, item):\n    return sample['output_text'].count(item['letter']) / 10\n"
QUICK_GRADER = PYTHON_GRADER | {"source": QUICK_COUNT}
SUBJECTS = ("the sea", "a tree", "my street", "winter", "an old house", "trains", "a river", "bread")
QUESTIONS = [f"{request} {subject}." for request in ("Describe", "Tell me about") for subject in SUBJECTS]
CHAT_ROWS = "".join(
    json.dumps({"messages": [{"role": "user", "content": question}], "letter": "e"}) + "\n" for question in QUESTIONS
).encode()
TEXT_GRADER = {
    "type": "text_similarity",
    "name": "likeness",
    "input": "{{sample.output_text}}",
    "reference": "The film was a pleasure to see.",
    "evaluation_metric": "rouge_l",
}
SEARCH = {"rollouts_per_prompt": 2, "beam_width": 2, "num_successors": 2, "chunk_length": 4, "max_tokens": 8}
SMALL = {**SEARCH, "validation_prompts": 2, "early_stop": False, "value_model": "lora", "backbone_layers": 1}
# So few prompts prove no gain, but the model searches with what they taught.
ALIGNING = {
    "rollouts_per_prompt": 8,
    "beam_width": 2,
    "num_successors": 4,
    "chunk_length": 2,
    "max_tokens": 8,
    "validation_prompts": 4,
    "iterations": 2,
    "tilt": "off",
    "keep_unproven": True,
}


@dataclass
class Outcome:
    """What a client keeps from before an event. ``answer``: of the aligned model ``model``, at a fixed seed."""

    file: str
    rows: bytes
    job: str
    status: str
    model: str
    answer: str


@dataclass
class ChatComparison:
    """The same chat with the frozen model and with a job's model. ``value_tokens``: tokens that the latter's value
    functions valued."""

    job_status: str
    frozen_answer: str
    aligned_answer: str
    value_tokens: int


def first_outcome(deployment: Deployment) -> Outcome:
    file = new_file(deployment, ROWS)
    return outcome_of(deployment, file, start_job(deployment, file, TEXT_GRADER, {**SMALL, "iterations": 2}))


def aligned_outcome(deployment: Deployment) -> Outcome:
    """Of a job that succeeds: its python grader counts a letter, which a search can raise. RuntimeError otherwise."""
    file = new_file(deployment, CHAT_ROWS)
    job = start_job(deployment, file, QUICK_GRADER, ALIGNING)
    outcome = outcome_of(deployment, file, job, CHAT_ROWS)
    if outcome.status != "succeeded":
        raise RuntimeError(f"{job} did not align the model: {outcome}")
    return outcome


def chat_comparison(deployment: Deployment, outcome: Outcome) -> ChatComparison:
    def ask(model: str) -> tuple[str, int]:
        def chat(client: openai.OpenAI) -> Any:
            messages: Any = [{"role": "user", "content": QUESTIONS[0]}]
            return client.chat.completions.create(model=model, messages=messages, max_tokens=16, seed=5)

        completion = insist([deployment], chat)
        return completion.choices[0].message.content, completion.usage.model_extra.get("value_tokens", 0)

    frozen, _ = ask(MODEL.split("/")[-1])
    aligned, value_tokens = ask(outcome.model)
    return ChatComparison(outcome.status, frozen, aligned, value_tokens)


def new_file(deployment: Deployment, rows: bytes) -> str:
    return insist([deployment], lambda client: client.files.create(file=("rows.jsonl", rows), purpose="fine-tune").id)


def outcome_of(deployment: Deployment, file: str, job: str, rows: bytes = ROWS) -> Outcome:
    """Once the job has ended."""
    model = model_of(deployment, job)
    return Outcome(file, rows, job, status_of(deployment, job), model, answer(deployment, model))


def start_job(deployment: Deployment, file: str, grader: Mapping[str, str], iro: Mapping[str, Any]) -> str:
    method: Any = {"type": "reinforcement", "reinforcement": {"grader": grader, "iro": iro}}
    jobs = deployment.client.fine_tuning.jobs
    return jobs.create(model=MODEL.split("/")[-1], training_file=file, method=method, seed=3).id


def running_job(deployment: Deployment, file: str, jobs: list[str]) -> str:
    """The last of ``jobs`` while it runs, else a new one, which is added to them."""
    while True:
        if not jobs or status_of(deployment, jobs[-1]) in ("succeeded", "failed", "cancelled"):
            jobs.append(start_job(deployment, file, PYTHON_GRADER, {**SMALL, "iterations": 3}))
        wait_for(lambda: status_of(deployment, jobs[-1]) not in ("validating_files", "queued"), "a job to run", 600)
        if status_of(deployment, jobs[-1]) == "running":
            return jobs[-1]


def status_of(deployment: Deployment, job: str) -> str:
    return insist([deployment], lambda client: client.fine_tuning.jobs.retrieve(job).status)


def model_of(deployment: Deployment, job: str) -> str:
    """The model of a job that ran to its end. So small a job may not improve on the base: then its checkpoint, which
    searches all the same."""
    record = ended([deployment], job, seconds=1800)
    if record.status != "succeeded":
        raise RuntimeError(f"{job} failed: {record.error}")
    if record.iro["improved"]:
        return str(record.fine_tuned_model)
    checkpoints = insist([deployment], lambda client: client.fine_tuning.jobs.checkpoints.list(job).data)
    return checkpoints[0].fine_tuned_model_checkpoint


def checkpoint_steps(deployment: Deployment, job: str) -> list[int]:
    events = insist([deployment], lambda client: client.fine_tuning.jobs.list_events(job, limit=100).data)
    matches = (re.fullmatch(r"Checkpoint created at step (\d+)", event.message) for event in events)
    return sorted(int(match[1]) for match in matches if match)


def answer(deployment: Deployment, model: str) -> str:
    def complete(client: openai.OpenAI) -> str:
        return client.completions.create(model=model, prompt="The film", max_tokens=8, seed=5).choices[0].text

    return insist([deployment], complete)


def lost_items(deployment: Deployment, before: Outcome) -> list[str]:
    """What of ``before`` is gone or changed now."""
    lost = []
    try:
        if insist([deployment], lambda client: client.files.content(before.file).read()) != before.rows:
            lost.append("the file's bytes")
        if (status := status_of(deployment, before.job)) != before.status:
            lost.append(f"the job's status: {before.status} became {status}")
        if (text := answer(deployment, before.model)) != before.answer:
            lost.append(f"the model's answer: {before.answer!r} became {text!r}")
    except openai.APIStatusError as error:
        lost.append(str(error))
    return lost


def graded(deployment: Deployment, source: str) -> JsonObject:
    """Reward and error of a python grader for a sample with two `t`."""
    grader: Any = {"type": "python", "name": "probe", "source": source}

    def run(client: openai.OpenAI) -> Any:
        return client.fine_tuning.alpha.graders.run(grader=grader, model_sample="letters", item={"letter": "t"})

    result = insist([deployment], run)
    return {"reward": result.reward, "error": result.model_extra["iro"]["error"]}
