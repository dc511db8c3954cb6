"""Training rows as prompts, and which prompts serve what: validation, and a slice for each iteration."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iro_server.engines.describe import Description
from iro_server.engines.prompts import item_prompt_ids
from iro_server.graders.base import Grader
from iro_server.jobs.estimates.verdict import SHOWING
from iro_server.store.row_files import format_of, table_rows
from training.iro.config import AlignConfig
from training.iro.seeds import SPLIT
from training.json_values import JsonObject
from training.run import rng_of

SHOWING_VALIDATION = 4  # different prompts of a validation file, of which two are left to check the gain on
HELDOUT_SHARE = 0.2  # of an iteration's prompts, for choosing the fit's settings and for diagnostics


class AlignError(ValueError):
    """An alignment that cannot go on. ``code`` and ``param`` say to a program what ``str`` says to a person."""

    def __init__(self, message: str, code: str = "invalid_data", param: str | None = None):
        super().__init__(message)
        self.code, self.param = code, param


@dataclass(frozen=True)
class Prompt:
    """``index``: its row in the file, from 0, which seeds its rollouts."""

    index: int
    token_ids: tuple[int, ...]
    item: JsonObject


@dataclass(frozen=True)
class Slice:
    """One iteration's prompts: value functions are fitted on ``train`` and judged on ``heldout``."""

    train: list[Prompt]
    heldout: list[Prompt]


@dataclass(frozen=True)
class Split:
    """A job's prompts by purpose; no prompt's text serves two purposes.

    ``slices``: an iteration's each. ``validation``: choose the best iteration. ``check``: compare that iteration with
    the frozen model once, at the end; ``validation`` itself where that has the only prompt. ``left_out``: rows of the
    training file whose prompts the validation file has as well.
    """

    slices: list[Slice]
    validation: list[Prompt]
    check: list[Prompt]
    left_out: int = 0

    @property
    def check_groups(self) -> list[list[int]]:
        """Places in ``check`` of each different prompt's rows."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, prompt in enumerate(self.check):
            places.setdefault(prompt.token_ids, []).append(place)
        return list(places.values())

    @property
    def choosing(self) -> list[Prompt]:
        """Those that may choose something of the job, for validation first."""
        return [*self.validation, *(p for part in self.slices for p in [*part.train, *part.heldout])]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt.token_ids) for prompt in [*self.choosing, *self.check])

    @property
    def holds_out_again(self) -> bool:
        """Whether slices hold out the same prompt, of which a fit of the earlier one has been refitted."""
        held_out = [prompt.index for part in self.slices for prompt in part.heldout]
        return len(set(held_out)) < len(held_out)


def shards_of(prompts: Sequence[Prompt], size: int) -> list[Sequence[Prompt]]:
    """In order, ``size`` at once, the last perhaps fewer."""
    return [prompts[start : start + size] for start in range(0, len(prompts), size)]


def numbered_rows(path: Path) -> Iterator[tuple[str, JsonObject]]:
    """The rows of a JSONL, Parquet or CSV file, each with its place, such as "line 3". ValueError with the place.

    JSONL is read line by line, not by way of Arrow, which would give every row the fields of all.
    """
    if (format := format_of(path)) is not None:
        for number, item in enumerate(table_rows(path, format), 1):
            yield f"row {number}", item
        return
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
        if line.strip():
            try:
                item = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            yield f"line {number}", item


def load_prompts(path: Path, param: str, model: Description, max_tokens: int) -> list[Prompt]:
    """The rows of a file. AlignError with the number of one that is no row, or too long for the model."""
    prompts: list[Prompt] = []
    room = model.info.max_length - max_tokens
    rows = numbered_rows(path)
    while (row := _next(rows, path, param)) is not None:
        place, item = row
        try:
            if not isinstance(item, dict) or ("messages" in item) == ("prompt" in item):
                raise ValueError('not an object with either "messages" or "prompt"')
            if not isinstance(item.get("prompt", ""), str):
                raise ValueError('"prompt" is not a text')
            shown = [item.get(name) for name in ("prompt", "messages", "tools")]
            # Fails for half a surrogate pair, of which a tokenizer says less.
            json.dumps(shown, ensure_ascii=False).encode()
            token_ids = item_prompt_ids(model.tokenizer, item)
        except Exception as error:  # chat templates raise errors of many kinds for messages they cannot render
            raise AlignError(f"{path.name}, {place}: {_row_problem(error)}", param=param) from error
        if not 0 < len(token_ids) <= room:
            raise AlignError(f"{path.name}, {place}: {_no_room(len(token_ids), model, max_tokens)}", param=param)
        prompts.append(Prompt(len(prompts), tuple(token_ids), item))
    if not prompts:
        raise AlignError(f"{path.name} has no rows", param=param)
    return prompts


def _no_room(tokens: int, model: Description, max_tokens: int) -> str:
    if tokens == 0:
        return "the prompt has no tokens"
    longest = model.info.max_length
    return (
        f"the prompt has {tokens} tokens, and the answer up to {max_tokens}: together over the model's context of "
        f"{longest}. Shorten the prompt, or lower max_tokens" + f" to {longest - tokens}" * (tokens < longest)
    )


def _row_problem(error: Exception) -> str:
    """What an error says of the row that could not be rendered."""
    if isinstance(error, UnicodeEncodeError):
        return "half a surrogate pair, which is no text"
    if isinstance(error, KeyError):
        return f"messages or tools lack the field {error}"
    if isinstance(error, TypeError | AttributeError):
        return f"messages or tools are not in OpenAI's shape: {error}"
    return str(error)


def _next(rows: Iterator[tuple[str, Any]], path: Path, param: str) -> tuple[str, Any] | None:
    try:
        return next(rows, None)
    except OSError as error:
        raise AlignError(f"{path.name}: {error.strerror}", param=param) from error
    except ValueError as error:
        raise AlignError(f"{path.name}, {error}", param=param) from error


def check(config: AlignConfig, model: Description, grader: Grader) -> list[str]:
    """Warnings about the files. AlignError where nothing could come of them: what can be known before anything runs."""
    parts = split(config, model, rng_of(config.seed, SPLIT))
    training = {prompt.index: prompt for part in parts.slices for prompt in [*part.train, *part.heldout]}
    validation = {prompt.index: prompt for prompt in [*parts.validation, *parts.check]}
    files = {"training_file": training, "validation_file": validation}
    if not config.validation_file:
        files = {"training_file": training | validation}
    warnings = [*_too_few_to_check(parts)]
    if parts.left_out:
        has = "1 row of the training_file has a prompt" if parts.left_out == 1 else ""
        has = has or f"{parts.left_out} rows of the training_file have prompts"
        warnings.append(f"{has} that the validation_file has too: the job does not train on them")
    for field in sorted(grader.item_fields()):
        for param, prompts in files.items():
            lacking = [index for index, prompt in sorted(prompts.items()) if field not in prompt.item]
            if len(lacking) == len(prompts):
                raise AlignError(f"the grader reads item.{field}, a field that no row of the {param} has", param=param)
            if lacking:
                rows = f"{len(lacking)} of {len(prompts)} rows of the {param}, row {lacking[0] + 1} the first,"
                warnings.append(f"{rows} lack the field {field!r} that the grader reads: they cannot be graded")
    return warnings


def _too_few_to_check(parts: Split) -> Iterator[str]:
    """A warning where the prompts that chose nothing give no interval of the gain."""
    if len(parts.check_groups) < 2:
        count = "no prompt" if parts.check is parts.validation else "1 prompt"
        yield (
            f"{count} is left to show a gain on, and 2 are needed: whatever the job learns, its model will answer as "
            f"the frozen one unless iro.keep_unproven is set; use {SHOWING} different prompts or more, or a "
            f"validation_file of {SHOWING_VALIDATION} or more, with validation_prompts of 2 or more"
        )


def split(config: AlignConfig, model: Description, rng: np.random.Generator) -> Split:
    """Slices, one an iteration, and prompts for validation and for the final check, which occur in none.

    Slices are disjoint unless ``prompts_per_iteration`` is more than an equal share. Rows of the same prompt stay
    together, whatever else they hold.
    """
    rows = load_prompts(config.training_file, "training_file", model, config.min_room)
    training = by_text([rows[i] for i in rng.permutation(len(rows))])
    if config.validation_file:
        held = by_text(load_prompts(config.validation_file, "validation_file", model, config.min_room))
    else:
        held = training[: max(1, len(training) // 4)][: 2 * config.validation_prompts]
    pool = held[: 2 * config.validation_prompts]
    half = math.ceil(len(pool) / 2)
    reserved = {group[0].token_ids for group in held}
    left_out = sum(row.token_ids in reserved for row in rows) if config.validation_file else 0
    training = [group for group in training if group[0].token_ids not in reserved]
    asked = config.prompts_per_iteration
    _check_count(config, len(training), len(rows), left_out)
    validation = _flat(pool[:half])
    size = min(asked or len(training) // config.iterations, len(training))
    return Split(
        slices=_slices(training, size, config.iterations),
        validation=validation,
        check=_flat(pool[half:]) or validation,
        left_out=left_out,
    )


def _check_count(config: AlignConfig, prompts: int, rows: int, left_out: int) -> None:
    """AlignError where the different ``prompts`` that are left of the ``rows`` for training are too few."""
    needed = 2 if config.prompts_per_iteration else 2 * config.iterations
    if prompts >= needed:
        return
    others = (
        "the validation_file has the prompts of the others too" if left_out else "the others are validation prompts"
    )
    raise AlignError(
        f"{prompts} training prompts are too few: each iteration takes 2, and iterations is "
        f"{config.iterations}; add {needed - prompts} different prompts or more"
        + f" (of {rows} rows; {others}, or they repeat a prompt)"
        * (rows > prompts),
        param="training_file",
    )


def by_text(prompts: Sequence[Prompt]) -> list[list[Prompt]]:
    """Rows of equal prompts together, in the order of their first."""
    groups: dict[tuple[int, ...], list[Prompt]] = {}
    for prompt in prompts:
        groups.setdefault(prompt.token_ids, []).append(prompt)
    return list(groups.values())


def _slices(groups: Sequence[list[Prompt]], size: int, iterations: int) -> list[Slice]:
    """Of ``size`` prompts each. Where they overlap, a prompt that one of them holds out is in the training part of
    none."""
    held_out = _held_out(size)
    if size * iterations <= len(groups):
        parts = [groups[t * size : (t + 1) * size] for t in range(iterations)]
        return [Slice(train=_flat(part[held_out:]), heldout=_flat(part[:held_out])) for part in parts]
    common = _held_out(len(groups))
    return [
        Slice(train=_window(groups[common:], t, size - held_out), heldout=_window(groups[:common], t, held_out))
        for t in range(iterations)
    ]


def _held_out(size: int) -> int:
    return max(1, round(size * HELDOUT_SHARE))


def _window(groups: Sequence[list[Prompt]], number: int, count: int) -> list[Prompt]:
    """The ``number``-th ``count`` groups, from 0, of the groups over and over."""
    return _flat([groups[(number * count + place) % len(groups)] for place in range(count)])


def _flat(groups: Sequence[list[Prompt]]) -> list[Prompt]:
    return [prompt for group in groups for prompt in group]
