"""What a run folder holds: a run of one seed or of several, and whether a config may go on with it."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from training.json_values import JsonObject


def has_single_run(folder: Path) -> bool:
    """Whether a run of one seed has started there: it writes config.json into the folder itself."""
    return (folder / "config.json").exists()


def has_several_seeds(folder: Path) -> bool:
    """Whether a run of several seeds has started there: its configs are in seed-<seed>, result.json in ``folder``."""
    started = (folder / "result.json").exists() or any(folder.glob("seed-*/config.json"))
    return started and not has_single_run(folder)


def continues(before: Mapping[str, Any], config: BaseModel, free: Container[str]) -> bool:
    """Whether a run of the saved config ``before`` may go on with ``config``: they differ in the fields ``free`` alone.

    A field that an earlier version did not have counts as its default.
    """
    try:
        saved = type(config).model_validate(before)
    except ValidationError:
        return False
    saved_fields, fields = (_without(job_config.model_dump(mode="json"), free) for job_config in (saved, config))
    return saved_fields == fields


def is_record_of(finished: Path, header: JsonObject, extendable: Iterable[str]) -> bool:
    """Whether the record ``finished`` exists and has the steps of ``header``, by whose config the run goes on: the
    fields ``extendable`` are equal."""
    if not finished.exists():
        return False
    recorded = json.loads(finished.read_text())["config"]
    return all(recorded.get(name) == header["config"][name] for name in extendable)


def _without(config: Mapping[str, Any], names: Container[str]) -> JsonObject:
    return {name: value for name, value in config.items() if name not in names}
