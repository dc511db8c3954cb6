from __future__ import annotations

import io
import json
import os
import tempfile
import time

import httpx
import openai
import pytest
from datasets import Dataset
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import update

from iro_server.api.app import spool_uploads
from iro_server.api.errors import APIError
from iro_server.api.files import safe_name
from iro_server.api.jsonl import MAX_LINE, Row, checked_lines, lines_of
from iro_server.store import keys
from iro_server.store import tables as t
from iro_server.store.database import open_database
from tests.iro_server.api.serving import conforms, settings_for, upload
from training.iro.data import AlignError, load_prompts

ON_EACH_DATABASE = True
ROW = b'{"messages": [{"role": "user", "content": "hi"}], "label": 1}\n'


def other_project(served) -> openai.OpenAI:
    """A client of the same server whose project is another."""
    key = keys.internal(served.settings.data_dir)
    return served.client.with_options(api_key=key, project="proj_other")


def test_a_file_comes_back_as_it_was_sent(client):
    content = ROW + b'{"prompt": "Once upon", "reference": "\xc3\xa9"}\r\n\n'
    file = conforms(client.files.create(file=("rows.jsonl", content), purpose="fine-tune"))
    assert (file.bytes, file.filename, file.purpose) == (len(content), "rows.jsonl", "fine-tune")
    assert (file.status, file.expires_at) == ("processed", None)
    assert client.files.content(file.id).content == content
    assert conforms(client.files.retrieve(file.id)) == file


def test_files_are_listed_in_pages_newest_first_and_deleted(client):
    ids = [upload(client) for _ in range(3)]
    page = client.files.list(limit=2)
    assert [file.id for file in page.data] == [ids[2], ids[1]] and page.has_more
    assert page.get_next_page().data[0].id == ids[0]
    assert client.files.list(order="asc", after=ids[0], limit=1).data[0].id == ids[1]
    assert client.files.list(purpose="fine-tune", limit=1).data[0].id == ids[2]
    assert client.files.list(purpose="batch").data == []
    assert conforms(client.files.delete(ids[0])).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(ids[0])


def test_a_file_is_its_own_projects_alone(served):
    id, other = upload(served.client), other_project(served)
    for call in (other.files.retrieve, other.files.content, other.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(id)
    assert other.files.list().data == []
    assert served.client.files.retrieve(id).id == id


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (ROW + b"{nope\n", "line 2 is not valid JSON: key must be a string at column 2"),
        (ROW + b"\n" + ROW, "line 2 is blank"),
        (ROW + ROW + b"[1, 2]\n", "line 3 is not a JSON object"),
        (b'{"prompt": "\xff"}', "line 1 is not UTF-8: save the file as UTF-8"),
        (b'{"prompt": "a\x00b"}', "line 1 is not valid JSON"),
        (ROW + b"\xef\xbb\xbf" + ROW, "line 2 is not valid JSON"),
        ('{"prompt": "a"}'.encode("utf-16"), "line 1 is not UTF-8 .it looks like UTF-16."),
        (b"[\n" + ROW + b"]\n", "line 1 is not valid JSON: EOF while parsing a list at column 1; .* one JSON object a"),
        (b"{\n  " + ROW + b"}\n", "line 1 is not valid JSON: EOF while parsing an object at column 1; .* .JSON Lines."),
        (b"[" + ROW.strip() + b"]\n", "line 1 is not a JSON object; the file holds one JSON object a line"),
        (ROW + b"{\n", r"line 2 is not valid JSON: EOF while parsing an object at column 1\.$"),
        (rb'{"prompt": "a", "label": "\ud800"}', "line 1 is not valid JSON"),
        (b'{"prompt": "a", "label": NaN}', "line 1 is not valid JSON"),
        (b'{"prompt": "a", "label": 1e999}', "line 1 is not valid JSON"),
        (b'{"prompt": "a", "label": 1' + b"0" * 5000 + b"}", "line 1 is not valid JSON: number out of range"),
        (b'{"prompt": "a", "label": ' + b"[" * 500 + b"]" * 500 + b"}", "line 1 is not valid JSON: recursion limit"),
        (b'{"label": 1}', "either 'messages' or 'prompt'; this one has 'label'"),
        (b"{}", "either 'messages' or 'prompt'; this one has no field"),
        (b'{"messages": [{"role": "user", "content": ""}], "prompt": "a"}', "either .* and this one both"),
        (b'{"messages": null, "prompt": "a"}', "line 1 is not a training row: messages: Input should be a valid list"),
        (b'{"messages": []}', "line 1 is not a training row: messages"),
        (b'{"messages": [{"role": "user"}]}', "messages.0: content is missing"),
        (b'{"messages": [{"role": "judge", "content": "3"}]}', "messages.0.role"),
        (b'{"messages": [{"role": "tool", "content": "3"}]}', "messages.0: a tool's message names its call"),
        (
            b'{"messages": [{"role": "tool", "tool_call_id": "a", "content": "3"}]}',
            "messages.0: .* must be a response to",
        ),
        (b'{"messages": [{"role": "assistant", "content": "3"}]}', "must have the role 'user' or 'tool'"),
        (ROW.replace(b'"label": 1', b'"tools": [{"name": "f"}]'), "tools.0.type: Field required"),
        (ROW.replace(b'"label": 1', b'"tools": "f"'), "tools: Input should be a valid list"),
        (b'{"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}', "content: a part of the type 'image"),
        (b"[" * 100_000, "over the limit"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_leaves_nothing(served, content, told):
    before = set(served.settings.files_dir.iterdir()) if served.settings.files_dir.exists() else set()
    with pytest.raises(openai.APIStatusError, match=told) as refused:
        upload(served.client, content)
    assert refused.value.status_code == (413 if "limit of" in told or "over the" in told else 400)
    assert set(served.settings.files_dir.iterdir()) == before


def test_a_byte_order_mark_is_no_part_of_the_first_row(served):
    id = upload(served.client, b"\xef\xbb\xbf" + ROW)
    (prompt,) = load_prompts(served.settings.files_dir / id, "training_file", served.engine, max_tokens=4)
    assert prompt.item["label"] == 1


def test_a_message_may_come_in_parts_of_text(served):
    parts = [{"type": "text", "text": "a"}, {"type": "input_text", "text": "b"}]
    rows = [{"messages": [{"role": "user", "content": content}]} for content in (parts, "ab")]
    id = upload(served.client, b"\n".join(json.dumps(row).encode() for row in rows))
    whole, joined = load_prompts(served.settings.files_dir / id, "training_file", served.engine, max_tokens=4)
    assert whole.token_ids == joined.token_ids


@pytest.mark.parametrize("turns", [3, 4])
def test_a_row_may_hold_calls_of_tools_and_their_results_as_a_chat_does(served, turns):
    """The last message is a tool's result, or the user's after it."""
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 2}'}}
    conversation = [
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
        {"role": "user", "content": "And in words?"},
    ][:turns]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    id = upload(served.client, json.dumps({"messages": conversation, "tools": tools}).encode())
    (prompt,) = load_prompts(served.settings.files_dir / id, "training_file", served.engine, max_tokens=4)
    assert prompt.item["messages"] == conversation


@pytest.mark.parametrize(
    ("content", "tools", "problem"),
    [
        ("hi", '[{"type": "function"}]', "line 1: messages or tools lack the field 'function'"),
        ("hi", '["add"]', "line 1: messages or tools are not in OpenAI's shape"),
        (r"hi \ud83d", "[]", "line 1: half a surrogate pair"),
    ],
)
def test_a_row_that_cannot_be_rendered_is_named_by_its_fields(tmp_path, served, content, tools, problem):
    """Of a file that was not uploaded."""
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"messages": [{{"role": "user", "content": "{content}"}}], "tools": {tools}}}\n')
    with pytest.raises(AlignError, match=problem):
        load_prompts(path, "training_file", served.engine, max_tokens=4)


@pytest.mark.parametrize("purpose", ["assistants", "vision", "user_data"])
def test_another_purpose_is_refused(client, purpose):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("x.jsonl", ROW), purpose=purpose)
    assert (refused.value.param, refused.value.code) == ("purpose", "invalid_value")
    assert "fine-tune" in refused.value.message


nasty = st.sampled_from(
    [
        b"\x00",
        b"\xef\xbb\xbf",
        rb"\ud800",
        b"9" * 5000,
        b"[" * 300,
        b"\r",
        b"NaN",
        b"1e400",
        b"\xff",
        b'"',
        b"\n",
        b"\\",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user", "assistant", "tool"]), "content": values})
)
rows = st.dictionaries(st.text(), values) | st.fixed_dictionaries(
    {"messages": messages | values}, optional={"prompt": st.text(), "x": values}
)
encoded = rows.map(lambda row: json.dumps(row).encode())
lines = st.lists(st.lists(encoded | nasty | st.binary(max_size=20), max_size=3).map(b"".join), max_size=4)


@given(lines.map(b"\n".join))
@example(b'{"prompt": "a", "prompt": "b"}')
@example(b'{"prompt": "a", "prompt": ""}')
@example(b'{"prompt": "a"}\r\n{"prompt": "b"}\r\n')
def test_any_bytes_are_rows_or_are_refused_by_line(content):
    try:
        passed = list(checked_lines(lines_of(io.BytesIO(content))))
    except APIError as error:
        assert error.status == 400 and ("line " in error.message or "empty" in error.message)
        return
    assert b"".join(passed) == content
    for line in content.decode("utf-8-sig").split("\n"):
        if line.strip():
            row = json.loads(line)
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
            assert Row.model_validate(row)


def test_a_line_without_end_is_refused_before_it_is_read():
    with pytest.raises(APIError, match="line 2 is longer than"):
        list(checked_lines(lines_of(io.BytesIO(ROW + b" " * (MAX_LINE + 1) + ROW))))


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("../../etc/passwd", "passwd"),
        (r"C:\rows\träin 😀.jsonl", "träin 😀.jsonl"),
        ("a\x00\n\u202e.jsonl", "a.jsonl"),
        ("..", "upload.jsonl"),
        ("x" * 400, "x" * 255),
    ],
)
def test_a_filename_is_one_name(given, stored):
    assert safe_name(given) == stored


def test_a_name_beyond_ascii_comes_back(client):
    file = client.files.create(file=("träin 😀.jsonl", ROW), purpose="fine-tune")
    assert file.filename == "träin 😀.jsonl"
    assert "filename*=utf-8''tr%C3%A4in" in client.files.content(file.id).response.headers["content-disposition"]


def test_a_file_expires(served):
    client = served.client
    policy = {"anchor": "created_at", "seconds": 3600}
    file = conforms(client.files.create(file=("rows.jsonl", ROW), purpose="fine-tune", expires_after=policy))
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    with open_database(served.settings).begin() as session:
        session.execute(update(t.File).where(t.File.id == file.id).values(expires_at=int(time.time())))
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(file.id)
    assert file.id not in [listed.id for listed in client.files.list()]


def test_expires_after_may_come_as_json(client):
    fields = {"purpose": "fine-tune", "expires_after": '{"anchor": "created_at", "seconds": 7200}'}
    answer = httpx.post(f"{client.base_url}files", data=fields, files={"file": ("rows.jsonl", ROW)}).json()
    assert answer["expires_at"] == answer["created_at"] + 7200


@pytest.mark.parametrize(
    ("policy", "param"),
    [
        ({"anchor": "created_at", "seconds": 3599}, "expires_after.seconds"),
        ({"anchor": "created_at", "seconds": 2_592_001}, "expires_after.seconds"),
        ({"anchor": "last_active_at", "seconds": 3600}, "expires_after.anchor"),
        ({"seconds": 3600}, "expires_after.anchor"),
    ],
)
def test_an_expiry_out_of_range_is_refused(client, policy, param):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("rows.jsonl", ROW), purpose="fine-tune", expires_after=policy)
    assert refused.value.param == param


def test_bytes_that_changed_on_the_disk_are_not_sent(served):
    id = upload(served.client, ROW)
    path = served.settings.files_dir / id
    path.write_bytes(ROW.replace(b"hi", b"ho"))
    with pytest.raises(openai.InternalServerError) as damaged:
        served.client.files.content(id)
    assert damaged.value.code == "file_corrupt"
    path.unlink()
    with pytest.raises(openai.InternalServerError) as lost:
        served.client.files.content(id)
    assert lost.value.code == "file_corrupt"


def test_a_full_disk_is_told_and_leaves_nothing(served, monkeypatch):
    monkeypatch.setattr(t, "new_id", lambda prefix: f"{prefix}full")
    upload_path = served.settings.files_dir / "file-full.partial"
    upload_path.parent.mkdir(exist_ok=True)
    upload_path.symlink_to("/dev/full")
    with pytest.raises(openai.APIStatusError) as refused:
        upload(served.client, ROW * 1000)
    assert (refused.value.status_code, refused.value.code) == (507, "storage_full")
    assert not list(served.settings.files_dir.glob("file-full*"))
    with pytest.raises(openai.NotFoundError):
        served.client.files.retrieve("file-full")


def test_a_form_with_many_files_is_refused(client):
    many = [("file", (f"{i}.jsonl", ROW)) for i in range(3)]
    answer = httpx.post(f"{client.base_url}files", data={"purpose": "fine-tune"}, files=many)
    assert answer.status_code == 400 and "Too many files" in answer.json()["error"]["message"]


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
@pytest.mark.parametrize("parts", [False, True])
def test_a_table_is_stored_as_the_jsonl_of_its_rows(served, tmp_path, suffix, parts):
    rows = [{"prompt": "a", "label": "1"}, {"prompt": "é\n"}]
    path = tmp_path / f"my.rows.{suffix}"
    table = Dataset.from_list(rows)
    table.to_parquet(str(path)) if suffix == "parquet" else table.to_csv(str(path))
    client = served.client
    if parts:
        kind = {"mime_type": "application/octet-stream", "purpose": "fine-tune"}
        file = client.uploads.upload_file_chunked(file=path, part_size=100, **kind).file
    else:
        file = client.files.create(file=path, purpose="fine-tune")
    content = client.files.content(file.id).content
    assert [json.loads(line) for line in content.splitlines()] == rows
    assert (file.filename, file.bytes) == ("my.rows.jsonl", len(content))
    assert len(load_prompts(served.settings.files_dir / file.id, "training_file", served.engine, 4)) == 2
    assert not list(served.settings.files_dir.glob("*.table"))


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"prompt": "a"}, {"text": "b"}], "row 2 is not a training row: a row has either 'messages' or 'prompt'"),
        ([{"messages": [{"role": "tool", "content": "3"}]}], "row 1 is not a training row: messages.0: a tool's"),
        ([{"prompt": "a", "score": float("nan")}], "row 1: the field 'score'"),
    ],
)
def test_a_bad_row_of_a_table_is_refused_and_leaves_nothing(served, tmp_path, rows, told):
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    before = set(served.settings.files_dir.glob("*"))
    with pytest.raises(openai.BadRequestError, match=told) as refused:
        served.client.files.create(file=tmp_path / "rows.parquet", purpose="fine-tune")
    assert (refused.value.param, refused.value.code) == ("file", "invalid_file")
    assert set(served.settings.files_dir.glob("*")) == before


def test_an_upload_waits_in_the_data_directory_while_it_arrives(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", None)
    spool_uploads(settings_for(tmp_path))
    with tempfile.SpooledTemporaryFile(max_size=1) as arriving:
        arriving.write(b"more than stays in memory")
        assert os.readlink(f"/proc/self/fd/{arriving.fileno()}").startswith(f"{tmp_path}/spool/")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("prompt,answer\nhi,caf\u00e9\n".encode("latin-1"), "it is not UTF-8: save the file as UTF-8"),
        (b"prompt;answer\nhi;there\n", "'prompt;answer', one column: separate columns by commas"),
    ],
)
def test_a_csv_of_another_encoding_or_separator_is_refused_with_what_to_change(served, content, told):
    with pytest.raises(openai.BadRequestError, match=told):
        served.client.files.create(file=("rows.csv", content), purpose="fine-tune")
