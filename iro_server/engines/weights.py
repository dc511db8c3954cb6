"""The weights of a model directory: their hash, remembered from start to start, and single tensors read from shards."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from iro_server import JsonObject

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
INDEX = "model.safetensors.index.json"
SETTLED_NS = 2_000_000_000  # a file written later than this before it was hashed may change again at the same mtime


def weight_files(directory: Path) -> list[Path]:
    return sorted(directory.glob("*.safetensors"))


def hash_weights(directory: Path) -> str:
    """SHA-256 over the directory's weights, all of which are read, as hex."""
    digest = hashlib.sha256()
    for path in weight_files(directory):
        with path.open("rb") as file:
            while block := file.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def remembered_hash(directory: Path, cache: Path) -> str:
    """``hash_weights``, which reads the weights only where a file's path, size, mtime or inode is not that of last
    time. ``cache`` is the folder of earlier hashes.
    """
    files = fingerprint(directory)
    record = read_record(record_path(directory, cache))
    return str(record["sha256"]) if record.get("files") == files else remember_hash(directory, cache)


def remember_hash(directory: Path, cache: Path) -> str:
    """``hash_weights``, kept in ``cache`` for ``remembered_hash``."""
    files, started = fingerprint(directory), time.time_ns()
    digest = hash_weights(directory)
    settled = all(mtime < started - SETTLED_NS for _, _, mtime, _ in files)
    if settled and fingerprint(directory) == files:
        content = {"directory": str(directory.resolve()), "files": files, "sha256": digest}
        try:
            write_record(record_path(directory, cache), content)
        except OSError as error:  # a read-only home, say: the next start reads the weights again
            log.warning("the hash of the weights is not kept for the next start: %s", error)
    return digest


def record_path(directory: Path, cache: Path) -> Path:
    return cache / f"{hashlib.sha256(os.fsencode(directory.resolve())).hexdigest()[:32]}.json"


def fingerprint(directory: Path) -> list[list[Any]]:
    """Of each file of weights: name, bytes, mtime in ns, inode."""
    stats = ((path.name, path.stat()) for path in weight_files(directory))
    return [[name, stat.st_size, stat.st_mtime_ns, stat.st_ino] for name, stat in stats]


def read_record(record: Path) -> JsonObject:
    """Empty where there is none that can be read."""
    try:
        return dict(json.loads(record.read_text()))
    except (OSError, ValueError):
        return {}


def write_record(record: Path, content: JsonObject) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=record.parent, delete=False) as file:
        json.dump(content, file)
    os.replace(file.name, record)


def read_tensor(directory: Path, suffix: str) -> Tensor:
    """The one tensor whose name is ``suffix`` or ends with ``.suffix``, from the shard that holds it.

    ValueError where no tensor or several have such a name, FileNotFoundError where its shard is missing.
    """
    names = tensor_names(directory)
    matching = [name for name in names if name == suffix or name.endswith(f".{suffix}")]
    if len(matching) != 1:
        raise ValueError(f"{directory}: {len(matching)} tensors are called {suffix!r}, not one: {matching[:4]}")
    with safe_open(directory / names[matching[0]], framework="pt") as shard:
        return shard.get_tensor(matching[0])


def tensor_names(directory: Path) -> dict[str, str]:
    """Of each tensor, the file it is in: by the index, which also lists shards that are not here, else by all files."""
    index = directory / INDEX
    if index.exists():
        return dict(json.loads(index.read_text())["weight_map"])
    names: dict[str, str] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as shard:
            names |= dict.fromkeys(shard.keys(), path.name)
    return names


def missing_shards(directory: Path) -> list[str]:
    """Files that the index lists and that are not here."""
    if not (directory / INDEX).exists():
        return []
    return sorted(name for name in set(tensor_names(directory).values()) if not (directory / name).exists())
