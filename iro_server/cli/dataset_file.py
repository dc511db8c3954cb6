"""The training file that ``iro align --dataset`` writes into its run folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from iro_server.store.row_files import write_dataset


def put_dataset(folder: Path, name: str, split: str | None, prompt_column: str | None, as_text: bool) -> Path:
    """Write a data set as ``train.jsonl`` of the run folder ``folder``; see ``write_dataset``.

    ValueError, with the folder's files unchanged, where it holds a run of another training file.
    """
    train = folder.resolve() / "train.jsonl"
    candidate = train.with_name("train.new.jsonl")
    write_dataset(name, split or "train", prompt_column, as_text, candidate)
    try:
        if _has_other_rows(folder, train, candidate):
            raise ValueError(f"{folder} holds a run of another training_file; choose another folder")
        os.replace(candidate, train)
    finally:
        candidate.unlink(missing_ok=True)
    return train


def refuse_without_dataset(split: str | None, prompt_column: str | None, as_text: bool) -> None:
    """ValueError for an option that says how --dataset is read."""
    options = {"--split": split is not None, "--prompt-column": prompt_column is not None, "--text": as_text}
    if names := [name for name, is_set in options.items() if is_set]:
        raise ValueError(f"{', '.join(names)}: only with --dataset")


def _has_other_rows(folder: Path, train: Path, candidate: Path) -> bool:
    """Whether the run in ``folder``, if there is one, has read other rows than those of ``candidate``."""
    started = folder / "config.json"
    if not started.exists():
        return False
    digest = json.loads(started.read_text()).get("inputs", {}).get("training_file")
    if digest is None:  # a folder of an earlier version
        return train.exists() and train.read_bytes() != candidate.read_bytes()
    return bool(hashlib.sha256(candidate.read_bytes()).hexdigest() != digest)
