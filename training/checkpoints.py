"""What the finished steps of a run returned: in a folder, or in object storage by a URL that fsspec knows.

A value is saved whole or not at all. One process at a time writes; others may read what is there when they open it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypedDict

from cachetools import LRUCache

VARIABLE = "IRO_STORAGE"  # a URL that fsspec knows, under which each new run gets a place for its checkpoints
CACHE_BYTES = 2**30  # of values from object storage that are kept on this machine's disk
OWNER = "run.txt"


class StorageUnavailable(OSError):
    """Object storage that cannot be reached, or does not let us in: no fault of the run's, which may go on later."""

    code = "storage_unavailable"


class About(TypedDict):
    """``metrics_bytes``: how long metrics.jsonl was. ``seconds``: what the step took to compute."""

    metrics_bytes: int
    seconds: float


class Checkpoints(Protocol):
    """Values (tensors, numbers, strings, lists and dicts of them) by the name of their step."""

    location: str

    def names(self) -> list[str]: ...
    def has(self, name: str) -> bool: ...
    def about(self, name: str) -> About: ...
    def load(self, name: str) -> Any: ...
    def save(self, name: str, value: Any, about: About) -> None: ...
    def close(self) -> None: ...


def open_checkpoints(location: str, cache: Path | None = None) -> Checkpoints:
    """Those in a folder, or under a URL. StorageUnavailable where it cannot be read.

    ``cache``: a folder for copies of what lies under a URL, which is emptied first; None: a temporary one.
    """
    if "://" in location and not location.startswith("file://"):
        return StoredCheckpoints(location, cache)
    return FolderCheckpoints(Path(location.removeprefix("file://")))


def claim(storage: str, run: str) -> str:
    """A place under ``storage`` that no other run has, for one called ``run``, which is noted there for people.

    StorageUnavailable where it cannot be written.
    """
    location = f"{storage.rstrip('/')}/{run}-{uuid.uuid4().hex[:12]}"
    files, root = _file_system(location)
    with _reaching(location):
        if "file" in files.protocol:  # in object storage there are no folders, and this would make a bucket
            files.makedirs(root, exist_ok=True)
        files.pipe_file(f"{root}/{OWNER}", f"{run}\n".encode())
    return location


class FolderCheckpoints:
    """A file each, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder.absolute())  # for processes that work elsewhere

    def names(self) -> list[str]:
        return [path.name.removesuffix(".pt") for path in self.folder.glob("*.pt")]

    def has(self, name: str) -> bool:
        return self._path(name).exists()

    def about(self, name: str) -> About:
        saved = _load(self._path(name))
        return {"metrics_bytes": saved["metrics_bytes"], "seconds": saved["seconds"]}

    def load(self, name: str) -> Any:
        return _load(self._path(name))["value"]

    def save(self, name: str, value: Any, about: About) -> None:
        import torch

        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        torch.save({**about, "value": value}, partial)
        os.replace(partial, path)

    def close(self) -> None:
        pass

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"


class StoredCheckpoints:
    """Objects under a URL. A value is an object of its own, and ``<name>.json``, written after it, tells which: so
    neither a new nor a replaced value is ever seen half written."""

    def __init__(self, location: str, cache: Path | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        self.location = location
        self.files, self.root = _file_system(location)
        if cache is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="iro-checkpoints-")
        self.cache = cache or Path(self._temporary.name)
        shutil.rmtree(self.cache, ignore_errors=True)  # what a killed process left
        self.cache.mkdir(parents=True)
        self._copies = _FileCache(cache_bytes, getsizeof=lambda path: path.stat().st_size)
        self._marks = self._read_marks()

    def names(self) -> list[str]:
        return list(self._marks)

    def has(self, name: str) -> bool:
        return name in self._marks

    def about(self, name: str) -> About:
        mark = self._marks[name]
        return {"metrics_bytes": mark["metrics_bytes"], "seconds": mark["seconds"]}

    def load(self, name: str) -> Any:
        object_name = self._marks[name]["object"]
        path = self._copies.get(object_name)
        if path is not None:
            return _load(path)
        path = self.cache / object_name
        with _reaching(self.location):
            self.files.get_file(f"{self.root}/{object_name}", str(path))
        value = _load(path)
        self._keep(object_name, path)
        return value

    def save(self, name: str, value: Any, about: About) -> None:
        import torch

        object_name = f"{name}-{uuid.uuid4().hex[:12]}.pt"
        path = self.cache / object_name
        torch.save(value, path)
        mark = {**about, "object": object_name}
        with _reaching(self.location):
            self.files.put_file(str(path), f"{self.root}/{object_name}")
            self.files.pipe_file(f"{self.root}/{name}.json", json.dumps(mark).encode())
            if before := self._marks.get(name):
                self.files.rm_file(f"{self.root}/{before['object']}")
        self._marks[name] = mark
        self._keep(object_name, path)

    def close(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def _keep(self, object_name: str, path: Path) -> None:
        try:
            self._copies[object_name] = path
        except ValueError:  # larger than the whole cache; whoever has it open still reads it
            path.unlink()

    def _read_marks(self) -> dict[str, Any]:
        with _reaching(self.location):
            try:
                paths = [path for path in self.files.ls(self.root, detail=False) if path.endswith(".json")]
            except FileNotFoundError:
                return {}
            marks = self.files.cat(paths) if paths else {}
        return {path.rsplit("/", 1)[-1].removesuffix(".json"): json.loads(mark) for path, mark in marks.items()}


class _FileCache(LRUCache[str, Path]):
    """Files by name, the longest unused ones removed."""

    def popitem(self) -> tuple[str, Path]:
        name, path = super().popitem()
        path.unlink()
        return name, path


def _file_system(location: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    with _reaching(location):
        files, root = url_to_fs(location, use_listings_cache=False)
    return files, root.rstrip("/")


@contextmanager
def _reaching(location: str) -> Iterator[None]:
    """Say in one line what does not work about a storage, whose library has errors of its own."""
    try:
        yield
    except ImportError as error:
        what = "pip install 'iro[s3]'" if location.startswith("s3") else str(error)
        raise StorageUnavailable(f"storage {location}: its library is missing: {what}") from error
    except Exception as error:  # botocore's errors share no class with others
        raise StorageUnavailable(f"storage {location} cannot be used: {error or type(error).__name__}") from error


def _load(path: Path) -> Any:
    import torch

    return torch.load(path, weights_only=True, mmap=True)
