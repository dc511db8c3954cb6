"""A benchmark task: prompts, a grader as a user would upload it, and a judge that no job sees."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from iro_server import JsonObject

Split = Literal["train", "validation", "held_out"]
Row = JsonObject
SPLITS: tuple[Split, ...] = get_args(Split)
MAX_TOKENS = 48
DRAWS_PER_ROW = 1000  # candidates that are tried before a split counts as exhausted


class Example(NamedTuple):
    """A completion of a row's prompt, and the range that its reward lies in."""

    row: Row
    completion: str
    min_reward: float
    max_reward: float


@dataclass(frozen=True)
class Task:
    """``prompts(split, count, seed)``: distinct training rows of the API (JSONL), the splits disjoint by text for all
    seeds. ``grader()``: the reward, in the API's shape. ``judge(row, completion)``: another measure, which no job sees.
    ``good`` and ``bad``: what the grader has to reward, and what not.
    """

    name: str
    summary: str
    prompts: Callable[[Split, int, int], list[Row]]
    grader: Callable[[], JsonObject]
    judge: Callable[[Row, str], float]
    judge_name: str
    good: tuple[Example, ...]
    bad: tuple[Example, ...]
    max_tokens: int = MAX_TOKENS


def words_of(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def split_of(key: str) -> Split:
    """The split that a text or word belongs to, by its hash: six in ten for training, two for each of the others."""
    bucket = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) % 10
    return "train" if bucket < 6 else "validation" if bucket < 8 else "held_out"


def rng_of_split(split: Split, seed: int) -> random.Random:
    return random.Random(f"{split} {seed}")


def distinct_rows(candidates: Iterable[Row], count: int) -> list[Row]:
    """The first ``count`` candidates of different prompts. ValueError where there are not as many."""
    rows: dict[str, Row] = {}
    candidates = itertools.islice(candidates, DRAWS_PER_ROW * count)
    for row in candidates:
        rows.setdefault(prompt_text(row), row)
        if len(rows) == count:
            return list(rows.values())
    raise ValueError(f"{count} prompts were requested, and there are {len(rows)}")


def shuffled(rows: Iterable[Row], split: Split, count: int, seed: int) -> list[Row]:
    """``count`` rows of ``split``, which the hash of the prompt decides, in an order that ``seed`` draws."""
    of_split = [row for row in rows if split_of(prompt_text(row)) == split]
    rng_of_split(split, seed).shuffle(of_split)
    return distinct_rows(of_split, count)


def generated_rows(generate: Callable[[random.Random], Row], split: Split, count: int, seed: int) -> list[Row]:
    """``count`` different rows of ``generate``, whose draws have to stay within the split."""
    rng = rng_of_split(split, seed)
    return distinct_rows(_draws(generate, rng), count)


def _draws(generate: Callable[[random.Random], Row], rng: random.Random) -> Iterator[Row]:
    while True:
        yield generate(rng)


def prompt_text(row: Row) -> str:
    """The text that the model reads of a row: its ``prompt``, or the last message."""
    return str(row["prompt"] if "prompt" in row else row["messages"][-1]["content"])


def chat(text: str, **fields: Any) -> Row:
    """A row with one user message, and the fields that its grader reads."""
    return {"messages": [{"role": "user", "content": text}], **fields}


def python_grader(name: str) -> JsonObject:
    """The python grader in the file ``grader.py`` of the task ``name``."""
    source = (Path(__file__).parent / name / "grader.py").read_text()
    return {"type": "python", "name": name, "source": source}


def cosine_to_prompt(row: Row, completion: str) -> float:
    """Cosine of the MiniLM embeddings of prompt and completion, in [-1, 1]. Raises MissingPackage."""
    from iro_server.cli.demo.judges import embed

    prompt, answer = embed([prompt_text(row), completion])
    return float(prompt @ answer)
