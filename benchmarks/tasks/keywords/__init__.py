"""Three words of the prompt that a short text has to contain."""

from __future__ import annotations

import random
import re
from functools import cache

from nltk.stem import PorterStemmer

from benchmarks.tasks.task import Example, Row, Split, Task, chat, generated_rows, split_of
from iro_server import JsonObject

SUBJECTS = (
    "a school trip",
    "a rainy afternoon",
    "two old friends",
    "a lost letter",
    "a small village",
    "a long journey",
    "a new neighbour",
    "a birthday party",
)
MIN_LETTERS, MAX_LETTERS = 5, 9
MIN_OTHER_WORDS = 6
WORDS = 3


@cache
def vocabulary(split: Split) -> list[str]:
    """Words of a split, whose stems no other split has: from the word list of IFEval's checkers."""
    from if_verifiable.ifeval.instructions_util import WORD_LIST

    stem = PorterStemmer().stem
    words = sorted({word for word in WORD_LIST if re.fullmatch(f"[a-z]{{{MIN_LETTERS},{MAX_LETTERS}}}", word)})
    return [word for word in words if split_of(stem(word)) == split]


def prompts(split: Split, count: int, seed: int) -> list[Row]:
    def generate(rng: random.Random) -> Row:
        return row_of(rng.choice(SUBJECTS), rng.sample(vocabulary(split), WORDS))

    return generated_rows(generate, split, count, seed)


def row_of(subject: str, words: list[str]) -> Row:
    text = f"Write one or two sentences about {subject}. Use the words {words[0]}, {words[1]} and {words[2]}."
    return chat(text, words=words)


def grader() -> JsonObject:
    """The share of the words that occur, in any case."""
    occurs = {
        name: {
            "type": "string_check",
            "name": name,
            "operation": "ilike",
            "input": "{{sample.output_text}}",
            "reference": f"{{{{item.words[{place}]}}}}",
        }
        for place, name in enumerate(("first", "second", "third"))
    }
    return {
        "type": "multi",
        "name": "keywords",
        "graders": occurs,
        "calculate_output": "(first + second + third) / 3",
    }


def judge(row: Row, completion: str) -> float:
    """The share of the words that occur as words of their own, and 0 for a text that is little else."""
    words = re.findall(r"[a-z]+", completion.lower())
    other_words = set(words) - set(row["words"])
    if len(other_words) < MIN_OTHER_WORDS:
        return 0.0
    return sum(word in words for word in row["words"]) / len(row["words"])


EXAMPLE = row_of("a school trip", ["bridge", "letter", "window"])

KEYWORDS = Task(
    name="keywords",
    summary="share of three demanded words that occur",
    prompts=prompts,
    grader=grader,
    judge=judge,
    judge_name="whole words in a sentence",
    good=(
        Example(EXAMPLE, "From the window of the bus Ana saw the bridge and dropped her letter.", 1.0, 1.0),
        Example(EXAMPLE, "The Bridge was closed, so the class wrote a letter.", 0.6, 0.7),
    ),
    bad=(Example(EXAMPLE, "The class went to the museum and had lunch in the park.", 0.0, 0.0),),
)
