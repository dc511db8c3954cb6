"""What a run folder holds: a run of one seed or of several, its lock, its figures, and whether a config may go on with
it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ValidationError

from training.json_values import JsonObject

LOCK = "lock"  # backups leave out files of this name
LOCK_SECONDS = 1.0  # that a process waits for the lock: one that only reads a finished run holds it for less
FIGURES = "figures.json"
READ_ONLY = {errno.EACCES, errno.EPERM, errno.EROFS}
WITHOUT_LOCKS = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}  # of a file system


def has_single_run(folder: Path) -> bool:
    """Whether a run of one seed has started there: it writes config.json into the folder itself."""
    return (folder / "config.json").exists()


def has_several_seeds(folder: Path) -> bool:
    """Whether a run of several seeds has started there: its configs are in seed-<seed>, result.json in ``folder``."""
    started = (folder / "result.json").exists() or any(folder.glob("seed-*/config.json"))
    return started and not has_single_run(folder)


def other_run(saved: JsonObject, header: JsonObject, config: BaseModel, free: Container[str]) -> str | None:
    """What ``saved``, a config.json, is of where a run of ``header`` and ``config`` may not go on with it."""
    if saved["job"] != header["job"] or not _continues(saved["config"], config, free):
        return f"another run ({saved['job']})"
    # A folder of an earlier version has no "inputs".
    changed = [name for name, digest in saved.get("inputs", {}).items() if header["inputs"].get(name) != digest]
    return f"a run of another {', '.join(changed)}" if changed else None


def other_seeds(folder: Path, header: JsonObject, config: BaseModel, free: Container[str]) -> str | None:
    """As ``other_run``, of the runs in seed-<seed> below ``folder``."""
    saved_runs = (json.loads(started.read_text()) for started in sorted(folder.glob("seed-*/config.json")))
    return next(filter(None, (other_run(saved, header, config, free) for saved in saved_runs)), None)


def _continues(before: Mapping[str, Any], config: BaseModel, free: Container[str]) -> bool:
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


@contextmanager
def hold(folder: Path) -> Iterator[bool]:
    """Hold ``folder``'s lock, which the kernel releases however its holder dies. Gives False where another holder has
    it. In a folder that cannot be written, or on a file system without locks, nothing is held and it gives True."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        file = (folder / LOCK).open("ab")
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        yield True
        return
    with file:
        deadline = time.monotonic() + LOCK_SECONDS
        while not (is_free := _try_lock(file)) and time.monotonic() < deadline:
            time.sleep(0.05)
        yield is_free


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    return True


def note_figures(folder: Path) -> None:
    """Note in figures.json that the figures are complete, and their names."""
    partial = folder / f"{FIGURES}.partial"
    partial.write_text(json.dumps(_figures(folder)) + "\n")
    os.replace(partial, folder / FIGURES)


def forget_figures(folder: Path) -> None:
    """Have the figures drawn again: they are of another result."""
    (folder / FIGURES).unlink(missing_ok=True)


def has_figures(folder: Path) -> bool:
    """Whether the figures were completed, by this version or a later one, and none has been removed since."""
    noted = folder / FIGURES
    return noted.exists() and set(json.loads(noted.read_text())) <= set(_figures(folder))


def _figures(folder: Path) -> list[str]:
    figures = folder / "figures"
    return sorted(str(path.relative_to(figures)) for path in figures.rglob("*") if path.is_file())


def _without(config: Mapping[str, Any], names: Container[str]) -> JsonObject:
    return {name: value for name, value in config.items() if name not in names}
