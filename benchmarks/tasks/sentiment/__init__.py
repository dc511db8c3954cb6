"""Positive continuations of the openings of film reviews."""

from __future__ import annotations

from benchmarks.tasks.task import Example, Row, Split, Task, shuffled
from iro_server import JsonObject
from iro_server.cli.demo.data import PROMPT_WORDS, imdb_splits
from iro_server.cli.demo.judges import vader_judge
from iro_server.cli.demo.sentiment import sentiment_grader_source

OPENING = {"prompt": "I went to see this film with my"}


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    """The first words of reviews that neither grader nor judge was fitted on. Raises MissingPackage."""
    openings = dict.fromkeys(" ".join(text.split()[:PROMPT_WORDS]) for text in imdb_splits().prompts.texts)
    return shuffled(({"prompt": opening} for opening in openings), split, count, seed)


def grader() -> JsonObject:
    return {"type": "python", "name": "sentiment", "source": sentiment_grader_source()}


def judge(row: Row, completion: str) -> float:
    """VADER's compound score of the continuation, in [-1, 1]."""
    return float(vader_judge([completion])[0])


SENTIMENT = Task(
    name="sentiment",
    summary="positive continuation of a film review",
    prompts=prompts,
    grader=grader,
    judge=judge,
    judge_name="VADER",
    good=(Example(OPENING, " family, and we loved it. The acting is wonderful and the story is superb.", 2.0, 20.0),),
    bad=(Example(OPENING, " family, and we hated it. The acting is awful and the plot is boring.", -20.0, -2.0),),
)
