"""Explanations that a ten-year-old can read."""

from __future__ import annotations

import math
from functools import partial

from benchmarks.tasks.task import Example, Row, Split, Task, chat, generated_rows, python_grader
from benchmarks.tasks.topics import topics_of, with_article

REQUESTS = (
    "Explain what {topic} is.",
    "Describe {topic}.",
    "How does {topic} come about?",
    "Tell me something about {topic}.",
)
TARGET, SCALE = 5.0, 5.0


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    topics = topics_of(split)
    return generated_rows(
        lambda rng: chat(rng.choice(REQUESTS).format(topic=with_article(rng.choice(topics)))), split, count, seed
    )


def judge(row: Row, completion: str) -> float:
    """exp(-|grade - 5| / 5) of the Coleman-Liau index, which counts letters and no syllables."""
    from textstat import coleman_liau_index

    return math.exp(-abs(coleman_liau_index(completion) - TARGET) / SCALE) if completion.strip() else 0.0


EXAMPLE = chat("Explain what a volcano is.")

READING_LEVEL = Task(
    name="reading_level",
    summary="Flesch-Kincaid grade near 5",
    prompts=prompts,
    grader=partial(python_grader, "reading_level"),
    judge=judge,
    judge_name="Coleman-Liau index near 5",
    good=(
        Example(
            EXAMPLE,
            "A volcano is a mountain with a deep hole inside. Hot melted rock can come up through the hole and flow "
            "down the sides of the mountain.",
            0.6,
            1.0,
        ),
    ),
    bad=(
        Example(
            EXAMPLE,
            "Volcanism constitutes the geophysical manifestation of subterranean magmatic differentiation, accompanied "
            "by considerable atmospheric contamination and characteristic seismological perturbation.",
            0.0,
            0.1,
        ),
        Example(EXAMPLE, "", 0.0, 0.0),
    ),
)
