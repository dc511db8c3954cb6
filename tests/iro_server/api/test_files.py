from __future__ import annotations

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iro_server.api.errors import APIError
from iro_server.api.jsonl import checked_lines
from iro_server.store.files import write_whole
from tests.iro_server.api.serving import conforms, upload
from training.iro.data import load_prompts

ROW = b'{"messages": [{"role": "user", "content": "hi"}], "label": 1}\n'


def test_a_file_comes_back_as_it_was_sent(client):
    content = ROW + b'{"prompt": "Once upon", "reference": "\xc3\xa9"}\n\n'
    file = conforms(client.files.create(file=("rows.jsonl", content), purpose="fine-tune"))
    assert (file.bytes, file.filename, file.purpose) == (len(content), "rows.jsonl", "fine-tune")
    assert client.files.content(file.id).content == content
    assert client.files.retrieve(file.id) == file


def test_files_are_listed_in_pages_newest_first_and_deleted(client):
    ids = [upload(client) for _ in range(3)]
    page = client.files.list(limit=2)
    assert [file.id for file in page.data] == [ids[2], ids[1]] and page.has_more
    assert page.get_next_page().data[0].id == ids[0]
    assert client.files.list(order="asc", after=ids[0], limit=1).data[0].id == ids[1]
    assert client.files.delete(ids[0]).deleted
    for call in (client.files.retrieve, client.files.content, client.files.delete):
        with pytest.raises(openai.NotFoundError):
            call(ids[0])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "empty"),
        (b"\n\n", "empty"),
        (ROW + b"{nope\n", "line 2 is not valid JSON"),
        (ROW + b"\n" + ROW, "line 2 is blank"),
        (ROW + ROW + b"[1, 2]\n", "line 3 is not a JSON object"),
        (b'{"prompt": "\xff"}', "line 1 is not valid JSON"),
        (ROW + b"\xef\xbb\xbf" + ROW, "line 2 is not valid JSON"),
        ('{"prompt": "a"}'.encode("utf-16"), "line 1 is not valid JSON"),
        (b'{"label": 1}', "either 'messages' or 'prompt'"),
        (b'{"messages": []}', "line 1 is not a training row: messages"),
        (b'{"messages": [{"role": "user"}]}', "messages.0.content"),
        (b"[" * 100_000, "over the limit"),
    ],
)
def test_a_bad_file_is_refused_by_line_and_leaves_nothing(served, content, told):
    before = set(served.settings.files_dir.iterdir()) if served.settings.files_dir.exists() else set()
    with pytest.raises(openai.APIStatusError, match=told) as refused:
        upload(served.client, content)
    assert refused.value.status_code == (413 if "limit" in told else 400)
    assert set(served.settings.files_dir.iterdir()) == before


def test_a_byte_order_mark_is_no_part_of_the_first_row(served):
    id = upload(served.client, b"\xef\xbb\xbf" + ROW)
    (prompt,) = load_prompts(served.settings.files_dir / id, "training_file", served.engine, max_tokens=4)
    assert prompt.item["label"] == 1


def test_another_purpose_is_refused(client):
    with pytest.raises(openai.BadRequestError) as refused:
        client.files.create(file=("x.jsonl", ROW), purpose="vision")
    assert refused.value.param == "purpose"


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_any_bytes_pass_or_are_refused(lines):
    try:
        passed = list(checked_lines(lines))
    except APIError as error:
        assert error.status == 400
    else:
        assert passed == lines


def test_a_failed_write_leaves_nothing(tmp_path):
    def blocks():
        yield b"half"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(tmp_path / "file", blocks())
    assert list(tmp_path.iterdir()) == []
