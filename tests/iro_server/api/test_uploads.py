from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from sqlalchemy import update

from iro_server.api import uploads
from iro_server.store import tables as t
from iro_server.store.database import open_database
from tests.iro_server.api.serving import conforms
from tests.iro_server.api.test_files import other_project

ON_EACH_DATABASE = True
CONTENT = b"".join(b'{"prompt": "row %d", "label": "\xc3\xa9"}\n' % i for i in range(50))
SIZE = len(CONTENT)
HALVES = [CONTENT[:555], CONTENT[555:]]  # in the middle of a line


def begin(client, size=SIZE, **more):
    kind = {"filename": "rows.jsonl", "mime_type": "application/jsonl", "purpose": "fine-tune"}
    return conforms(client.uploads.create(bytes=size, **kind, **more))


def send(client, upload, parts=HALVES):
    return [conforms(client.uploads.parts.create(upload.id, data=part)).id for part in parts]


def refused(call, *args, **kwargs):
    with pytest.raises(openai.BadRequestError) as error:
        call(*args, **kwargs)
    return error.value


def test_the_clients_own_chunked_upload_works(served, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(CONTENT)
    upload = served.client.uploads.upload_file_chunked(
        file=tmp_path / "rows.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
        part_size=100,
        md5=hashlib.md5(CONTENT).hexdigest(),
    )
    assert conforms(upload).status == "completed" and upload.file.filename == "rows.jsonl"
    assert served.client.files.content(upload.file.id).content == CONTENT
    assert conforms(served.client.files.retrieve(upload.file.id)) == upload.file
    assert not (served.settings.parts_dir / upload.id).exists()


def test_parts_are_joined_in_the_order_named(client):
    upload = begin(client, expires_after={"anchor": "created_at", "seconds": 3600})
    assert (upload.status, upload.expires_at, upload.file) == ("pending", upload.created_at + 3600, None)
    second, first = send(client, upload, HALVES[::-1])
    file = client.uploads.complete(upload.id, part_ids=[first, second]).file
    assert client.files.content(file.id).content == CONTENT
    assert file.expires_at == file.created_at + 3600


def test_completing_again_gives_the_same_file(client):
    upload = begin(client)
    ids = send(client, upload)
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(lambda _: client.uploads.complete(upload.id, part_ids=ids), range(4)))
    done.append(client.uploads.complete(upload.id, part_ids=ids))
    (file_id,) = {each.file.id for each in done}
    assert client.files.content(file_id).content == CONTENT
    client.files.delete(file_id)
    assert conforms(client.uploads.complete(upload.id, part_ids=ids)).file is None


def test_what_does_not_fit_is_refused_and_may_be_mended(served):
    client = served.client
    upload, foreign = begin(client), begin(client)
    ids = send(client, upload)
    (other,) = send(client, foreign, [CONTENT])
    before = set(served.settings.files_dir.iterdir())
    for part_ids, code in [
        ([*ids, "part_unknown"], "invalid_part"),
        ([other], "invalid_part"),
        ([ids[0], ids[0]], "invalid_part"),
        (ids[:1], "invalid_upload_size"),
    ]:
        error = refused(client.uploads.complete, upload.id, part_ids=part_ids)
        assert (error.param, error.code) == ("part_ids", code)
    assert refused(client.uploads.complete, upload.id, part_ids=ids, md5="0" * 32).code == "md5_mismatch"
    assert "line 1 is not valid JSON" in refused(client.uploads.complete, upload.id, part_ids=ids[::-1]).message
    assert set(served.settings.files_dir.iterdir()) == before
    assert client.uploads.complete(upload.id, part_ids=ids).status == "completed"


def test_a_cancelled_upload_takes_nothing_more(served):
    client = served.client
    upload = begin(client)
    ids = send(client, upload)
    assert conforms(client.uploads.cancel(upload.id)).status == "cancelled"
    assert not (served.settings.parts_dir / upload.id).exists()
    for call in (
        lambda: client.uploads.parts.create(upload.id, data=b"x"),
        lambda: client.uploads.complete(upload.id, part_ids=ids),
        lambda: client.uploads.cancel(upload.id),
    ):
        assert refused(call).code == "upload_cancelled"


def test_an_upload_expires(served):
    upload = begin(served.client)
    ids = send(served.client, upload)
    with open_database(served.settings).begin() as session:
        session.execute(update(t.Upload).where(t.Upload.id == upload.id).values(expires_at=t.now()))
    assert refused(served.client.uploads.parts.create, upload.id, data=b"x").code == "upload_expired"
    assert refused(served.client.uploads.complete, upload.id, part_ids=ids).code == "upload_expired"


def test_sizes_are_bounded(served, monkeypatch):
    client = served.client
    assert refused(begin, client, size=served.settings.max_upload_bytes + 1).param == "bytes"
    upload = begin(client, size=100)
    send(client, upload, [b"x" * 100, b"x" * 100])
    assert refused(client.uploads.parts.create, upload.id, data=b"x").code == "too_large"
    monkeypatch.setattr(uploads, "MAX_PART", 50)
    assert refused(client.uploads.parts.create, begin(client).id, data=b"x" * 51).code == "part_too_large"


def test_an_upload_is_its_own_projects_alone(served):
    upload, other = begin(served.client), other_project(served)
    for call in (
        lambda: other.uploads.parts.create(upload.id, data=b"x"),
        lambda: other.uploads.complete(upload.id, part_ids=["part_1"]),
        lambda: other.uploads.cancel(upload.id),
    ):
        with pytest.raises(openai.NotFoundError):
            call()


@pytest.mark.parametrize(
    ("change", "param"),
    [({"size": 0}, "bytes"), ({"expires_after": {"anchor": "created_at", "seconds": 1}}, "expires_after.seconds")],
)
def test_a_bad_upload_is_refused(client, change, param):
    assert refused(begin, client, **change).param == param


def test_a_part_that_arrives_while_its_upload_is_cancelled_is_refused(client, monkeypatch):
    upload = client.uploads.create(filename="a.jsonl", bytes=3, mime_type="text/jsonl", purpose="fine-tune")
    write_whole = uploads.files.write_whole

    def slow(path, blocks):
        def with_end():
            yield from blocks
            client.uploads.cancel(upload.id)

        return write_whole(path, with_end())

    monkeypatch.setattr(uploads.files, "write_whole", slow)
    with pytest.raises(openai.BadRequestError) as refused:
        client.uploads.parts.create(upload.id, data=b"abc")
    assert refused.value.code == "upload_cancelled"
