"""Training rows out of Parquet and CSV files, and out of sets of Hugging Face ``datasets``, as JSON objects.

``python -m iro_server.store.row_files parquet|csv PATH`` writes them as JSONL: a server reads what strangers upload in
a process of its own, whose memory is bounded.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, get_args

from iro_server import JsonObject

if TYPE_CHECKING:
    from datasets import Dataset

Format = Literal["parquet", "csv"]
PARQUET_MAGIC = b"PAR1"
ROWS_AT_ONCE = 16
STRUCTURED = ("messages", "tools")  # fields that a table may have as JSON in a text
UNREADABLE, OUT_OF_MEMORY = 2, 3  # the process's exit status
LIMIT_SIGNALS = (signal.SIGKILL, signal.SIGXCPU)  # that end a process at its limits
CHILD_MEMORY = 2**30  # bytes of address space
CHILD_SECONDS = 600  # of CPU
READ_BUFFER = 2**20  # bytes, of a column


CHILD_ENVIRONMENT = {  # each thread would take address space
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "ARROW_IO_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    "OMP_NUM_THREADS": "1",
}


SAVE_AS_UTF_8 = "save the file as UTF-8"


class BadRows(ValueError):
    """A file whose rows cannot be read. The message names the row, where it is one row's fault."""


def table_format(name: str, head: bytes) -> Format | None:
    """Parquet by its first bytes, CSV by its name; None: JSONL."""
    if head.startswith(PARQUET_MAGIC):
        return "parquet"
    return "csv" if name.lower().endswith(".csv") else None


def format_of(path: Path) -> Format | None:
    with path.open("rb") as file:
        return table_format(path.name, file.read(len(PARQUET_MAGIC)))


def table_rows(path: Path, format: Format) -> Iterator[JsonObject]:
    """The rows of a Parquet or CSV file, as ``as_items`` gives them. CSV has texts alone. BadRows."""
    read = _parquet_rows if format == "parquet" else _csv_rows
    try:
        yield from as_items(read(path))
    except BadRows:
        raise
    except UnicodeDecodeError:  # of a CSV file, which tells of a block of rows at once
        raise BadRows(f"it is not UTF-8: {SAVE_AS_UTF_8}") from None
    except (ValueError, TypeError, KeyError, OSError, csv.Error) as error:  # pyarrow's errors among them
        raise BadRows(f"it cannot be read as {format}: {error}") from error


def _parquet_rows(path: Path) -> Iterator[JsonObject]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path, buffer_size=READ_BUFFER) as file:
        for batch in file.iter_batches(batch_size=ROWS_AT_ONCE, use_threads=False):
            yield from batch.to_pylist()


def _csv_rows(path: Path) -> Iterator[JsonObject]:
    """Empty lines are left out."""
    csv.field_size_limit(CHILD_MEMORY)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        header = next(lines, [])
        if not header or len(set(header)) < len(header) or not all(header):
            raise BadRows("its first row has to name each column, and none twice")
        if len(header) == 1 and ";" in header[0]:
            raise BadRows(f"its first row is {header[0][:100]!r}, one column: separate columns by commas")
        for fields in filter(None, lines):
            if len(fields) != len(header):
                raise BadRows(f"line {lines.line_num} has {len(fields)} fields, and the first row {len(header)}")
            yield dict(zip(header, fields, strict=True))


def write_dataset(name: str, split: str, prompt_column: str | None, as_text: bool, path: Path) -> None:
    """Write a set of the hub, or of a local folder, to ``path`` as JSONL of training rows.

    ``prompt_column``: conversations, or texts that are asked as a user's message, ``as_text`` continued as they stand;
    None: the set has ``messages`` or ``prompt`` itself. Its other columns are fields for the grader.
    ValueError for a split or column that is not there, BadRows for a row without a prompt.
    """
    if Path(name).is_file():
        raise ValueError(f"{name} is a file, not a set of the hub or a folder: give it as TRAIN, without --dataset")
    data = _load(name, split)
    columns = list(data.column_names)
    if prompt_column is None and not {"messages", "prompt"} & set(columns):
        raise ValueError(f"{name} has no column messages or prompt: choose by --prompt-column: {', '.join(columns)}")
    if prompt_column is not None and prompt_column not in columns:
        raise ValueError(f"{name} has no column {prompt_column!r}, only: {', '.join(columns)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    try:
        with unfinished.open("w", encoding="utf-8") as file:
            for number, item in enumerate(as_items(data), 1):
                row = item if prompt_column is None else _with_prompt(item, number, prompt_column, as_text)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _load(name: str, split: str) -> Dataset:
    from datasets import DatasetDict, load_dataset, load_from_disk

    if not (Path(name) / "state.json").exists() and not (Path(name) / "dataset_dict.json").exists():
        return load_dataset(name, split=split)
    saved = load_from_disk(name)
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"{name} has no split {split!r}, only: {', '.join(saved)}")
        return saved[split]
    return saved


def _with_prompt(item: JsonObject, number: int, column: str, as_text: bool) -> JsonObject:
    """The training row of the set's row ``number``, from 1."""
    fields = {name: value for name, value in item.items() if name not in (column, "messages", "prompt")}
    prompt = item.get(column)
    if prompt is None or prompt == []:
        raise BadRows(f"row {number} has no {column}: fill it in, or leave the row out")
    if not isinstance(prompt, str | list):
        raise BadRows(f"row {number}: the column {column!r} has neither a text nor a conversation")
    if isinstance(prompt, list):
        return {"messages": prompt} | fields
    return ({"prompt": prompt} if as_text else {"messages": [{"role": "user", "content": prompt}]}) | fields


def as_items(rows: Iterable[Mapping[str, object]]) -> Iterator[JsonObject]:
    """Rows as JSON objects: fields that are null or an empty text are left out, ``STRUCTURED`` ones may be texts.

    BadRows for a row with a value that JSON has no word for, or with half a surrogate pair.
    """
    for number, row in enumerate(rows, 1):
        item = {name: _without_nulls(value) for name, value in row.items() if value is not None and value != ""}
        for name, value in item.items():
            try:
                if name in STRUCTURED and isinstance(value, str):
                    item[name] = json.loads(value)
                json.dumps(item[name], ensure_ascii=False, allow_nan=False).encode()
            except UnicodeEncodeError:
                raise BadRows(f"row {number}: the field {name!r} has half a surrogate pair, which is no text") from None
            except (ValueError, TypeError, RecursionError) as error:
                raise BadRows(f"row {number}: the field {name!r} is no JSON: {error}; make it a text") from None
        yield item


def _without_nulls(value: object) -> object:
    """Arrow gives every struct of a column all fields that one of them has."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def converted(path: Path, format: Format, line_bytes: int = -1) -> Iterator[bytes]:
    """The file's rows as lines of JSONL, read by a process of their own. BadRows, at the latest after the last line.

    ``line_bytes``: of a longer line its parts of that length are given, so that none is in memory as a whole.
    """
    command = [sys.executable, "-m", "iro_server.store.row_files", format, str(path)]
    environment = os.environ | CHILD_ENVIRONMENT
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert child.stdout is not None and child.stderr is not None
    try:
        yield from iter(partial(child.stdout.readline, line_bytes), b"")
        problem = child.stderr.read().decode(errors="replace").strip()
        if child.wait() != 0:
            raise BadRows(_child_problem(child.returncode, problem, format))
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()


def _child_problem(status: int, errors: str, format: Format) -> str:
    """What is wrong with the file whose reading process ended with ``status`` and the text ``errors`` on stderr."""
    if status == UNREADABLE and errors:
        return errors.splitlines()[-1]
    if status == OUT_OF_MEMORY or -status in LIMIT_SIGNALS or "bad_alloc" in errors:
        return "it takes too much memory or time to read"
    return f"it cannot be read as {format}"


def main(arguments: list[str], out: BinaryIO) -> int:
    with contextlib.suppress(OSError):  # where memory runs out, the kernel ends this process and not the server
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_AS, (CHILD_MEMORY, CHILD_MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (CHILD_SECONDS, CHILD_SECONDS))
    format, path = arguments
    if format not in get_args(Format):
        raise ValueError(f"{format} is neither parquet nor csv")
    try:
        for item in table_rows(Path(path), "parquet" if format == "parquet" else "csv"):
            out.write(json.dumps(item, ensure_ascii=False).encode() + b"\n")
    except BadRows as error:
        print(" ".join(str(error).split()), file=sys.stderr, flush=True)
        return UNREADABLE
    except MemoryError:
        return OUT_OF_MEMORY
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:], sys.stdout.buffer)
    sys.stdout.flush()
    os._exit(status)  # pyarrow's threads, which an unfinished read leaves, can crash the interpreter's own end
