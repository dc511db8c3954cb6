"""The rows of ``align.logit_bias`` by purpose, and their rewards by prompt."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.iro.data import AlignError, numbered_rows
from training.iro.diagnostics import mean_and_error
from training.json_values import JsonObject

MIN_PROMPTS = 12


class Parts(NamedTuple):
    """Rows by purpose. ``held_out``: choose strength and temperature. ``check``: compare with plain requests."""

    train: list[JsonObject]
    held_out: list[JsonObject]
    check: list[JsonObject]


def split_rows(path: Path, rng: np.random.Generator) -> Parts:
    """Half of the prompts fit, a quarter each chooses and checks; equal prompts stay together.

    AlignError for a file without rows of different prompts, ``MIN_PROMPTS`` at least, and for a line that is no row.
    """
    by_prompt: dict[str, list[JsonObject]] = {}
    for place, row in _rows(path):
        if not isinstance(row, dict) or ("messages" in row) == ("prompt" in row):
            raise AlignError(f'{path.name}, {place}: not an object with either "messages" or "prompt"')
        if not (row.get("messages") or row.get("prompt")):
            raise AlignError(f"{path.name}, {place}: the prompt is empty")
        if "messages" in row and row.get("tools"):
            problem = "a bias is fitted to text, and a call of tools is none: leave out rows with tools"
            raise AlignError(f"{path.name}, {place}: {problem}", param="training_file")
        by_prompt.setdefault(prompt_of(row), []).append(row)
    groups = list(by_prompt.values())
    if len(groups) < MIN_PROMPTS:
        raise AlignError(f"{len(groups)} prompts are too few: {MIN_PROMPTS} are needed", param="training_file")
    groups = [groups[place] for place in rng.permutation(len(groups))]
    quarter = len(groups) // 4
    parts = groups[2 * quarter :], groups[:quarter], groups[quarter : 2 * quarter]
    return Parts(*([row for group in part for row in group] for part in parts))


def prompt_of(row: JsonObject) -> str:
    return json.dumps(row["messages"] if "messages" in row else row["prompt"])


def rewards_by_prompt(rows: Sequence[JsonObject], shards: Sequence[JsonObject]) -> list[float]:
    """The mean reward of each different prompt, over its rows and their answers: rows of one prompt tell of one prompt.

    ``shards``: ``rewards`` [rows, samples] of each, the rows of all in the order of ``rows``.
    """
    by_prompt: dict[str, list[float]] = {}
    rewards = [row for shard in shards for row in shard["rewards"]]
    for row, samples in zip(rows, rewards, strict=True):
        by_prompt.setdefault(prompt_of(row), []).append(mean_and_error(samples)[0])
    return [mean_and_error(means)[0] for means in by_prompt.values()]


def _rows(path: Path) -> list[tuple[str, JsonObject]]:
    try:
        return list(numbered_rows(path))
    except ValueError as error:
        raise AlignError(f"{path.name}, {error}", param="training_file") from error
