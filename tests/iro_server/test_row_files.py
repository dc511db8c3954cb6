"""Training rows out of Parquet, CSV and sets of Hugging Face datasets, from real files."""

from __future__ import annotations

import datetime
import json
import math
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict

from iro_server.store.row_files import BadRows, _child_problem, converted, format_of, table_rows, write_dataset

CHAT = [{"role": "system", "content": "Be brief.", "name": "s"}, {"role": "user", "content": "Hi"}]
ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "é\n"}], "label": 1, "tags": ["a", "b"]},
    {"messages": CHAT, "answer": {"text": "x"}},
]
FILLED = [
    {name: row.get(name) for name in ("messages", "label", "tags", "answer")} for row in ROWS
]  # as Arrow has them


def test_parquet_gives_each_row_its_own_fields_alone(tmp_path: Path) -> None:
    path = tmp_path / "rows.bin"
    Dataset.from_list(FILLED).to_parquet(str(path))
    assert format_of(path) == "parquet"
    assert list(table_rows(path, "parquet")) == ROWS
    assert [json.loads(line) for line in converted(path, "parquet")] == ROWS


def test_csv_has_texts_and_conversations_as_json(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('\ufeffprompt,answer\n000101,NA\n"a, ""b""\nc",\n', encoding="utf-8")
    assert format_of(path) == "csv"
    assert list(table_rows(path, "csv")) == [{"prompt": "000101", "answer": "NA"}, {"prompt": 'a, "b"\nc'}]
    chats = tmp_path / "chats.csv"
    tools = [{"type": "function", "function": {"name": "add"}}]
    Dataset.from_dict({"messages": [json.dumps(CHAT)], "tools": [json.dumps(tools)], "n": [3]}).to_csv(str(chats))
    assert list(converted(chats, "csv")) == [json.dumps({"messages": CHAT, "tools": tools, "n": "3"}).encode() + b"\n"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"prompt,b\nx,y\nx,y,z\n", "line 3 has 3 fields, and the first row 2"),
        ("a.csv", b"prompt,b\nx\n", "line 2 has 1 fields, and the first row 2"),
        ("a.csv", b'prompt\n"a"b\n', "cannot be read as csv"),
        ("a.csv", b"prompt,prompt\nx,y\n", "first row"),
        ("a.csv", b"", "first row"),
        ("a.csv", b"prompt\n\xff\n", "it is not UTF-8: save the file as UTF-8"),
        ("a.csv", b'messages\n"[{"\n', "row 1: the field 'messages'"),
        ("a.csv", b'prompt,tools\na,"[{"\n', "row 1: the field 'tools'"),
        ("a.csv", b"messages\n[NaN]\n", "row 1: the field 'messages' is no JSON: Out of range"),
        ("a.csv", b"messages\n" + b"[" * 100_000 + b"\n", "row 1: the field 'messages' is no JSON: maximum recursion"),
        ("a.csv", b'prompt,messages\na,\nb,"[""\\ud83d""]"\n', "row 2: the field 'messages' has half a surrogate pair"),
        ("a.parquet", b"PAR1 and nothing", "cannot be read as parquet"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_row(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    format = format_of(tmp_path / name)
    assert format is not None
    with pytest.raises(BadRows, match=told):
        list(table_rows(tmp_path / name, format))


@pytest.mark.parametrize("value", [datetime.datetime(2026, 1, 1), b"raw", math.nan])
def test_a_value_that_is_no_json_is_named(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "rows.parquet"
    Dataset.from_list([{"prompt": "a", "when": None}, {"prompt": "b", "when": value}]).to_parquet(str(path))
    with pytest.raises(BadRows, match="row 2: the field 'when'"):
        list(table_rows(path, "parquet"))


def test_the_reading_process_tells_what_is_wrong(tmp_path: Path) -> None:
    Dataset.from_list([{"prompt": "a", "raw": b"x"}]).to_parquet(str(tmp_path / "rows.parquet"))
    with pytest.raises(BadRows, match=r"^row 1: the field 'raw' is no JSON: .*; make it a text$"):
        list(converted(tmp_path / "rows.parquet", "parquet"))


def test_half_a_surrogate_pair_is_told_by_the_reading_process(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text('messages\n"[{""role"": ""user"", ""content"": ""\\ud83d""}]"\n')
    with pytest.raises(BadRows, match="row 1: the field 'messages' has half a surrogate pair"):
        list(converted(tmp_path / "rows.csv", "csv"))


@pytest.mark.parametrize(
    ("status", "errors", "problem"),
    [
        (-signal.SIGKILL, "", "it takes too much memory or time to read"),
        (-signal.SIGXCPU, "", "it takes too much memory or time to read"),
        (3, "", "it takes too much memory or time to read"),
        (-signal.SIGABRT, "terminate called …\n  what():  std::bad_alloc", "it takes too much memory or time to read"),
        (1, "Traceback …\nAssertionError", "it cannot be read as csv"),
        (-signal.SIGSEGV, "", "it cannot be read as csv"),
        (2, "row 1 is wrong", "row 1 is wrong"),
    ],
)
def test_only_a_process_at_its_limits_is_said_to_be(status: int, errors: str, problem: str) -> None:
    assert _child_problem(status, errors, "csv") == problem


def test_the_reading_process_has_a_gigabyte_and_is_the_first_to_be_ended(tmp_path: Path) -> None:
    table = tmp_path / "rows.csv"
    table.write_text("prompt\n" + "a\n" * 200_000)
    lines = converted(table, "csv")
    next(lines)
    children = Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()
    assert "1000\n" in [Path(f"/proc/{child}/oom_score_adj").read_text() for child in children]
    limits = "".join(Path(f"/proc/{child}/limits").read_text() for child in children)
    assert f"Max address space         {2**30} " in limits
    lines.close()


def test_no_long_line_is_read_as_a_whole(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text(f"prompt\n{'a' * 1000}\n")
    parts = list(converted(tmp_path / "rows.csv", "csv", 100))
    assert max(map(len, parts)) == 100 and json.loads(b"".join(parts)) == {"prompt": "a" * 1000}


@pytest.mark.slow(13)
def test_a_small_file_that_unpacks_to_more_than_memory_is_refused(tmp_path: Path) -> None:
    """Seven kilobytes that stand for 800 gigabytes: the process that reads them ends, and not this one."""
    text = "x" * (200 * 2**20)
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 4000, pa.int32()), pa.array([text]))
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"prompt": column}), path, compression="zstd")
    assert path.stat().st_size < 10_000
    with pytest.raises(BadRows, match="too much memory"):
        list(converted(path, "parquet"))


@pytest.fixture
def questions() -> Dataset:
    return Dataset.from_dict({"question": ["One?", "Two?"], "answer": ["1", None]})


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_local_set_becomes_training_rows(questions: Dataset, tmp_path: Path) -> None:
    DatasetDict(train=questions, test=questions.select([1])).save_to_disk(str(tmp_path / "set"))
    write_dataset(str(tmp_path / "set"), "train", "question", False, tmp_path / "chat.jsonl")
    asked = [[{"role": "user", "content": text}] for text in ("One?", "Two?")]
    assert rows_of(tmp_path / "chat.jsonl") == [{"messages": asked[0], "answer": "1"}, {"messages": asked[1]}]
    write_dataset(str(tmp_path / "set"), "test", "question", True, tmp_path / "text.jsonl")
    assert rows_of(tmp_path / "text.jsonl") == [{"prompt": "Two?"}]
    with pytest.raises(ValueError, match="no split 'dev', only: train, test"):
        write_dataset(str(tmp_path / "set"), "dev", "question", False, tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=r"choose by --prompt-column: question, answer"):
        write_dataset(str(tmp_path / "set"), "train", None, False, tmp_path / "x.jsonl")
    with pytest.raises(ValueError, match=r"no column 'prompts', only: question, answer"):
        write_dataset(str(tmp_path / "set"), "train", "prompts", False, tmp_path / "x.jsonl")
    assert not (tmp_path / "x.jsonl").exists()


@pytest.mark.parametrize("prompt", [None, ""])
def test_a_row_of_a_set_without_a_prompt_is_named(prompt: str | None, tmp_path: Path) -> None:
    Dataset.from_dict({"question": ["One?", prompt]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(BadRows, match=r"^row 2 has no question: fill it in, or leave the row out$"):
        write_dataset(str(tmp_path / "set"), "train", "question", False, tmp_path / "out/rows.jsonl")
    assert [*(tmp_path / "out").iterdir()] == []


def test_a_column_of_numbers_has_no_prompts(tmp_path: Path) -> None:
    Dataset.from_dict({"question": [7]}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(BadRows, match="row 1: the column 'question' has neither a text nor a conversation"):
        write_dataset(str(tmp_path / "set"), "train", "question", True, tmp_path / "rows.jsonl")


def test_a_folder_of_files_is_a_set_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    Dataset.from_list(FILLED).to_parquet(str(tmp_path / "set/train.parquet"))
    write_dataset(str(tmp_path / "set"), "train[1:]", None, False, tmp_path / "rows.jsonl")
    assert rows_of(tmp_path / "rows.jsonl") == [ROWS[1]]


@pytest.mark.slow(15)
def test_the_server_and_the_command_line_start_without_what_few_requests_need() -> None:
    code = "import sys, iro_server.api.app, iro_server.cli.main, training.iro.job"
    code += "; print({'datasets', 'pandas', 'pyarrow', 'sklearn'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
