"""One short sentence, and then the end."""

from __future__ import annotations

from functools import partial

from benchmarks.tasks.task import Example, Row, Split, Task, chat, cosine_to_prompt, generated_rows, python_grader
from benchmarks.tasks.topics import topics_of, with_article

QUESTIONS = (
    "What is {topic}?",
    "What is {topic} for?",
    "Why do people like {topic}?",
    "Where can one see {topic}?",
    "Who would need {topic}?",
)


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    topics = topics_of(split)
    return generated_rows(
        lambda rng: row_of(rng.choice(QUESTIONS).format(topic=with_article(rng.choice(topics)))), split, count, seed
    )


def row_of(question: str) -> Row:
    return chat(f"{question} Answer in one short sentence.")


EXAMPLE = row_of("What is a volcano?")

BREVITY = Task(
    name="brevity",
    summary="a whole sentence of 4 to 12 words, then the end",
    prompts=prompts,
    grader=partial(python_grader, "brevity"),
    judge=cosine_to_prompt,
    judge_name="MiniLM cosine of question and answer",
    good=(Example(EXAMPLE, "A volcano is a mountain that can erupt.", 1.0, 1.0),),
    bad=(
        Example(EXAMPLE, "A mountain.", 0.0, 0.0),
        Example(EXAMPLE, "A volcano is a mountain. It can erupt.", 0.0, 0.0),
        Example(EXAMPLE, "A volcano is a mountain that", 0.0, 0.0),
        Example(EXAMPLE, f"A volcano is a {'very ' * 10}hot mountain.", 0.0, 0.0),
    ),
)
