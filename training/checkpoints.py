"""What the finished steps of a run returned: in a folder, or in object storage by a URL that fsspec knows.

A value is saved whole or not at all, with tables of Hugging Face ``datasets`` beside it as Arrow files, which are
mapped into memory when they are read. One process at a time writes; others may read what is there when they open it.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NotRequired, Protocol, TypeAlias, TypedDict, TypeVar

from cachetools import LRUCache

if TYPE_CHECKING:
    from datasets import Dataset
    from fsspec import AbstractFileSystem

SavedValue: TypeAlias = Any  # tensors, numbers, strings, lists and dicts of them, as torch.load returns them
Value = TypeVar("Value")

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


class Mark(About):
    """What ``<name>.json`` holds: the objects of a value and of its tables. Earlier versions wrote no "tables"."""

    object: str
    tables: NotRequired[dict[str, str]]


@dataclass(frozen=True)
class WithTables(Generic[Value]):
    """A step's value, and tables to be kept beside it."""

    value: Value
    tables: Mapping[str, Dataset]


class Checkpoints(Protocol):
    """Values (tensors, numbers, strings, lists and dicts of them) by the name of their step, with or without tables.

    ``save`` raises ValueError for a name with "/". ``table`` raises KeyError for one that was never saved, or dropped.
    """

    location: str

    def names(self) -> list[str]: ...
    def has(self, name: str) -> bool: ...
    def about(self, name: str) -> About: ...
    def load(self, name: str) -> SavedValue: ...
    def table(self, name: str, table: str) -> Dataset: ...
    def save(self, name: str, value: object, about: About) -> None: ...
    def drop_table(self, name: str, table: str) -> None: ...
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

    def load(self, name: str) -> SavedValue:
        return _load(self._path(name))["value"]

    def table(self, name: str, table: str) -> Dataset:
        path = self._table_path(name, table)
        if not path.exists():
            raise KeyError(f"{name} has no table {table!r}")
        return _read_table(path)

    def save(self, name: str, value: object, about: About) -> None:
        import torch

        _check_name(name)
        value, tables = _parts(value)
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        for table, rows in tables.items():  # first: a value that is there has its tables
            _write_table(rows, partial)
            os.replace(partial, self._table_path(name, table))
        torch.save({**about, "value": value}, partial)
        os.replace(partial, path)

    def drop_table(self, name: str, table: str) -> None:
        self._table_path(name, table).unlink(missing_ok=True)

    def close(self) -> None:
        pass

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.pt"

    def _table_path(self, name: str, table: str) -> Path:
        return self.folder / f"{name}.{table}.arrow"


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

    def load(self, name: str) -> SavedValue:
        return self._read(self._marks[name]["object"], _load)

    def table(self, name: str, table: str) -> Dataset:
        objects = self._marks[name].get("tables", {})
        if table not in objects:
            raise KeyError(f"{name} has no table {table!r}")
        return self._read(objects[table], _read_table)

    def save(self, name: str, value: object, about: About) -> None:
        import torch

        _check_name(name)
        value, tables = _parts(value)
        version = uuid.uuid4().hex[:12]
        objects = {table: f"{name}-{version}.{table}.arrow" for table in tables}
        mark: Mark = {**about, "object": f"{name}-{version}.pt", "tables": objects}
        torch.save(value, self.cache / f"{name}-{version}.pt")
        for table, rows in tables.items():
            _write_table(rows, self.cache / objects[table])
        before = self._marks.get(name)
        with _reaching(self.location):
            for object_name in _objects(mark):
                self.files.put_file(str(self.cache / object_name), f"{self.root}/{object_name}")
            self._write_mark(name, mark)
            for object_name in _objects(before) if before else ():
                self.files.rm_file(f"{self.root}/{object_name}")
        for object_name in _objects(mark):
            self._keep(object_name)

    def drop_table(self, name: str, table: str) -> None:
        mark = self._marks[name]
        if table not in mark.get("tables", {}):
            return
        remaining = {label: object_name for label, object_name in mark["tables"].items() if label != table}
        with _reaching(self.location):
            self._write_mark(name, {**mark, "tables": remaining})
            self.files.rm_file(f"{self.root}/{mark['tables'][table]}")

    def _write_mark(self, name: str, mark: Mark) -> None:
        self.files.pipe_file(f"{self.root}/{name}.json", json.dumps(mark).encode())
        self._marks[name] = mark

    def _read(self, object_name: str, read: Callable[[Path], Value]) -> Value:
        """``read`` of the object's copy on this machine."""
        path = self._copies.get(object_name)
        if path is not None:
            return read(path)
        path = self.cache / object_name
        with _reaching(self.location):
            self.files.get_file(f"{self.root}/{object_name}", str(path))
        value = read(path)
        self._keep(object_name)
        return value

    def close(self) -> None:
        shutil.rmtree(self.cache, ignore_errors=True)

    def _keep(self, object_name: str) -> None:
        path = self.cache / object_name
        try:
            self._copies[object_name] = path
        except ValueError:  # larger than the whole cache; whoever has it open still reads it
            path.unlink()

    def _read_marks(self) -> dict[str, Mark]:
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


def _file_system(location: str) -> tuple[AbstractFileSystem, str]:
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
        detail = "pip install 'iro-align[s3]'" if location.startswith("s3") else str(error)
        raise StorageUnavailable(f"storage {location}: its library is missing: {detail}") from error
    except Exception as error:  # botocore's errors share no class with others
        raise StorageUnavailable(f"storage {location} cannot be used: {error or type(error).__name__}") from error


def _load(path: Path) -> SavedValue:
    import torch

    return torch.load(path, weights_only=True, mmap=True)


def _check_name(name: str) -> None:
    """Raises ValueError for a name that would be a path: `names` would not list it."""
    if "/" in name:
        raise ValueError(f"step {name}: a name has no /; write - instead")


def _parts(value: object) -> tuple[object, Mapping[str, Dataset]]:
    return (value.value, value.tables) if isinstance(value, WithTables) else (value, {})


def _objects(mark: Mark) -> list[str]:
    return [mark["object"], *mark.get("tables", {}).values()]


def _write_table(table: Dataset, path: Path) -> None:
    import pyarrow as pa

    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.data.schema) as writer:
        writer.write_table(table.data.table)


def _read_table(path: Path) -> Dataset:
    from datasets import Dataset

    return Dataset.from_file(str(path))
